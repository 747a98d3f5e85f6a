"""gateway.observe: the catalogue, the counters, the rate limit, the masking and the curves."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import observe
from gateway.observe import Curve, Fact


@pytest.fixture(autouse=True)
def _fresh_log() -> Iterator[None]:
    observe.configure("info", True)
    yield
    observe.configure()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_catalogue_is_consistent() -> None:
    assert len({fact.event for fact in Fact}) == len(Fact)
    assert [fact.index for fact in Fact] == list(range(len(Fact)))
    for fact in Fact:
        assert fact.event == fact.name.lower()
        assert fact.level in observe.LEVELS
        assert fact.meaning.endswith(".")


def test_note_counts_and_logs(capsys: pytest.CaptureFixture[str]) -> None:
    before = observe.counters()["connected"]
    observe.note(Fact.CONNECTED, client_id="GID_demo@@@1")
    assert observe.counters()["connected"] == before + 1
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["client_id"]) == ("connected", "info", "GID_demo@@@1")


def test_count_never_logs(capsys: pytest.CaptureFixture[str]) -> None:
    before = observe.counters()["qos0_dropped"]
    observe.count(Fact.QOS0_DROPPED, 3)
    observe.count(Fact.QOS0_DROPPED)
    assert observe.counters()["qos0_dropped"] == before + 4
    assert lines(capsys) == []


def test_reasons_are_counted_on_their_own() -> None:
    before = observe.reasons().get(("message_dropped", "test_reason"), 0)
    observe.note(Fact.MESSAGE_DROPPED, reason="test_reason")
    observe.count(Fact.MESSAGE_DROPPED, 2, "test_reason")
    assert observe.reasons()[("message_dropped", "test_reason")] == before + 3


def test_one_line_a_second_and_the_rest_is_reported(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(observe.time, "monotonic", lambda: clock[0])
    observe.configure("info", True)
    for _ in range(5):
        observe.note(Fact.PROTOCOL_ERROR)
    observe.note(Fact.TAKEN_OVER)  # another fact has a limit of its own
    clock[0] += 0.99
    observe.note(Fact.PROTOCOL_ERROR)
    clock[0] += 0.02
    observe.note(Fact.PROTOCOL_ERROR)
    clock[0] += 60
    observe.note(Fact.PROTOCOL_ERROR)
    observe.note(Fact.PROTOCOL_ERROR)
    assert [(line["event"], line.get("suppressed")) for line in lines(capsys)] == [
        ("protocol_error", None),
        ("taken_over", None),
        ("protocol_error", 5),
        ("protocol_error", None),
    ]


def test_burst(capsys: pytest.CaptureFixture[str]) -> None:
    observe.configure("info", True, burst=3)
    for _ in range(10):
        observe.note(Fact.PROTOCOL_ERROR)
    assert len(lines(capsys)) == 3


def test_level_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    observe.configure("error", True)
    observe.note(Fact.PROTOCOL_ERROR)
    observe.log.info("starting")
    observe.note(Fact.STORE_FAILED)
    assert [line["event"] for line in lines(capsys)] == ["store_failed"]


@pytest.mark.parametrize("as_json", [True, False])
def test_secrets_and_bytes_are_never_written(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    observe.configure("info", as_json)
    observe.note(Fact.CONNECTED, password="hunter2", secret_key="hunter2", upload_token="hunter2", payload="hunter2", data=b"hunter2")
    captured = capsys.readouterr().err
    assert "connected" in captured
    assert "hunter2" not in captured
    assert "7 bytes" in captured


def test_traceback_shows_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    hidden = b"hunter" + b"2"
    try:
        raise ValueError(len(hidden))
    except ValueError:
        observe.note(Fact.INTERNAL_ERROR, exc_info=True)
    captured = capsys.readouterr().err
    assert "ValueError: 7" in captured
    assert "hunter2" not in captured


def test_a_device_cannot_forge_lines(capsys: pytest.CaptureFixture[str]) -> None:
    observe.configure("info", False)
    observe.note(Fact.CONNECTED, client_id="a\n2026 error forged \x1b[31m b", empty="", topic="x" * 9000)
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1
    assert "\x1b" not in captured
    assert len(captured) < 1000


class TestCurve:
    def test_sums(self) -> None:
        curve = Curve(buckets=3, seconds=10)
        for now in (100, 101.5, 109.9, 110):
            curve.add(now)
        curve.add(129, 4)
        assert curve.points(129) == [(100, 3.0), (110, 1.0), (120, 4.0)]
        assert curve.points(139) == [(110, 1.0), (120, 4.0), (130, None)]
        assert curve.points(1000) == [(980, None), (990, None), (1000, None)]

    def test_levels(self) -> None:
        curve = Curve(buckets=2, seconds=60)
        curve.put(0, 5)
        curve.put(59, 7)
        curve.put(60, 1)
        assert curve.points(61) == [(0, 7.0), (60, 1.0)]

    def test_a_late_value_never_overwrites_a_newer_bucket(self) -> None:
        curve = Curve(buckets=2, seconds=1)
        curve.add(10, 5)
        curve.add(8, 100)
        curve.put(8, 100)
        assert curve.points(10) == [(9, None), (10, 5.0)]

    @given(st.lists(st.integers(0, 500), max_size=50).map(sorted))
    def test_nothing_inside_the_ring_is_lost(self, times: list[int]) -> None:
        curve = Curve(buckets=7, seconds=3)
        for now in times:
            curve.add(now)
        last = times[-1] if times else 0
        first = (last // 3 - 6) * 3
        assert sum(value or 0 for _, value in curve.points(last)) == sum(1 for now in times if now >= first)


def test_every_line_names_the_node_where_processes_share_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    observe.configure("info", True, node_id="here-1")
    observe.log.info("joined", node="there-2/5")
    observe.configure()
    line = json.loads(capsys.readouterr().err)
    assert (line["node_id"], line["node"]) == ("here-1", "there-2/5")
