"""The load generator counts, checks and answers what it claims to: figures of a generator that miscounts are worth nothing."""

from __future__ import annotations

import pytest

from tests.bench import reference, wire
from tests.bench.bars import BARS, judge
from tests.bench.links import Link, Refused
from tests.bench.scenarios import SCENARIOS, percentile
from tests.bench.uplink import acknowledged
from tests.kit.wire import connect_bytes, publish_bytes, subscribe_bytes


def test_packets_are_those_of_the_test_device() -> None:
    assert wire.Login().connect("u1") == connect_bytes("bench-u1")
    assert wire.publish("t/1", b"x" * 300, 1, 7) == publish_bytes("t/1", b"x" * 300, qos=1, packet_id=7)
    assert wire.publish("t/1", b"", 0) == publish_bytes("t/1")
    assert wire.subscribe("t/#", 1) == subscribe_bytes(1, [("t/#", 1)])


def test_signed_connect() -> None:
    # HMAC-SHA1 of "GID_BENCH" with key "secret", as openssl computes it
    signed = wire.Login("GID_BENCH@@@", "key", "secret").connect("u1")
    assert signed == connect_bytes("GID_BENCH@@@u1", username="key", password=b"8e/sI7y1V3+qKadXKtVsCG32IIk=")


def test_outflow_is_a_ring_of_publishes_over_its_topics() -> None:
    flow = wire.Outflow(["t/0", "t/1"], b"p", 3)
    assert flow.packets[: flow.size] == publish_bytes("t/0", b"p", qos=1, packet_id=1)
    last = flow.packets[(wire.RING - 1) * flow.size : wire.RING * flow.size]
    assert last == publish_bytes("t/1", b"p", qos=1, packet_id=wire.RING)
    assert flow.packets[wire.RING * flow.size :] == flow.packets[: 3 * flow.size]


class _NoSocket:
    """Stands for a socket that nothing is read from."""

    recv = send = None

    def fileno(self) -> int:
        return -1


@pytest.mark.parametrize("piece", [1, 3, 4, 7, 50])
def test_pubacks_are_counted_however_they_are_cut(piece: int) -> None:
    link, acks = Link(_NoSocket(), 0), wire.puback_ring(16)  # type: ignore[arg-type]
    stream, counted = acks[: wire.RING * 4] * 2, 0
    for start in range(0, len(stream), piece):
        counted += acknowledged(link, stream[start : start + piece], acks)
    assert counted == 2 * wire.RING


def test_pubacks_out_of_order_are_refused() -> None:
    link, acks = Link(_NoSocket(), 0), wire.puback_ring(16)  # type: ignore[arg-type]
    with pytest.raises(Refused):
        acknowledged(link, b"\x40\x02\x00\x02\x40\x02\x00\x01", acks)


def test_inflow_counts_repeats_and_answers_each_packet() -> None:
    flow = wire.Inflow("t/1", 2, 1)
    stream = b"".join(publish_bytes("t/1", b"ab", qos=1, dup=number == 2, packet_id=number * 300) for number in range(1, 5))
    assert flow.size * 4 == len(stream)
    assert flow.check(stream, 4) == 1
    assert flow.answer(stream, 4) == b"".join(b"\x40\x02" + (number * 300).to_bytes(2) for number in range(1, 5))
    assert flow.answer(stream, 1) == b"\x40\x02\x01\x2c"


@pytest.mark.parametrize("wrong", [publish_bytes("t/2", b"ab", qos=1, packet_id=1), publish_bytes("t/1", b"abc", qos=1, packet_id=1)])
def test_inflow_refuses_what_it_did_not_expect(wrong: bytes) -> None:
    flow = wire.Inflow("t/1", 2, 1)
    right = publish_bytes("t/1", b"ab", qos=1, packet_id=1)
    with pytest.raises(ValueError, match="PUBLISH"):
        flow.check(right + wrong[: flow.size], 2)


def test_inflow_refuses_another_quality_of_service() -> None:
    flow = wire.Inflow("t/1", 2, 0)
    with pytest.raises(ValueError, match="unexpected"):
        flow.check(publish_bytes("t/1", b"ab") + b"\x31" + publish_bytes("t/1", b"ab")[1:], 2)


def test_message_of_a_batch() -> None:
    made = reference.message(b"body", {"UNIQ_KEY": "K", "TAGS": "T"})
    assert int.from_bytes(made[:4]) == len(made)
    assert made[16:24] == b"\0\0\0\x04body"
    assert made[24:] == b"\0\x11UNIQ_KEY\x01K\x02TAGS\x01T"


def test_every_bar_is_measured() -> None:
    measured = {(scenario.name, target) for scenario in SCENARIOS for target in scenario.targets}
    for bar in BARS:
        assert bar.above[:2] in measured
        assert bar.below is None or bar.below[:2] in measured


def test_ratios_are_taken_within_a_round() -> None:
    def one(gateway: float, mosquitto: float) -> dict[tuple[str, str], dict[str, float]]:
        return {("uplink1", "gateway-rocketmq"): {"rate": gateway}, ("uplink1", "mosquitto"): {"rate": mosquitto}}

    (outcome,) = judge([one(10, 100), one(40, 200), one(90, 300), {}])
    assert outcome.values == (0.1, 0.2, 0.3)
    assert outcome.median == 0.2
    assert outcome.reached
    assert not judge([one(14, 100)])[0].reached


def test_a_void_round_does_not_reach_the_bar() -> None:
    void = {("uplink1", "gateway-rocketmq"): {"void": 1.0}, ("uplink1", "mosquitto"): {"rate": 1.0}}
    (outcome,) = judge([void])
    assert (outcome.values, outcome.void, outcome.reached) == ((), 1, False)


def test_percentile() -> None:
    values = [number * 1_000_000 for number in range(100, 0, -1)]
    assert percentile(values, 50) == 51
    assert percentile(values, 99) == 100
