"""gateway.rules.offline: contract section 6, active mode."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.offline import Pace, PullRequest, first_period, parse_request

NUMBER = "maxPushNum is no whole number from 1 on"
ORDER = 'pushOrder is neither "ASC" nor "DESC"'


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"pushOrder": "ASC", "maxPushNum": 1}', PullRequest(False, 1)),
        (b'{"maxPushNum":20,"pushOrder":"DESC"}', PullRequest(True, 20)),
        (b'{"pushOrder": "ASC", "maxPushNum": 30}', PullRequest(False, 30)),
        (b'{"pushOrder": "ASC", "maxPushNum": 31}', PullRequest(False, 30)),
        (b'{"pushOrder": "ASC", "maxPushNum": 1e300}', PullRequest(False, 30)),
        (b'{"pushOrder": "DESC", "maxPushNum": 20.0}', PullRequest(True, 20)),
        (b'{"pushOrder": "DESC", "maxPushNum": 2, "more": [1]}', PullRequest(True, 2)),
        ('{"pushOrder": "ASC", "maxPushNum": 3}'.encode("utf-16"), PullRequest(False, 3)),
        (b'{"pushOrder": "ASC", "maxPushNum": 0}', NUMBER),
        (b'{"pushOrder": "ASC", "maxPushNum": -1}', NUMBER),
        (b'{"pushOrder": "ASC", "maxPushNum": 2.5}', NUMBER),
        (b'{"pushOrder": "ASC", "maxPushNum": "20"}', NUMBER),
        (b'{"pushOrder": "ASC", "maxPushNum": true}', NUMBER),
        (b'{"pushOrder": "ASC", "maxPushNum": NaN}', NUMBER),
        (b'{"pushOrder": "ASC", "maxPushNum": 1e999}', NUMBER),
        (b'{"pushOrder": "ASC", "maxPushNum": null}', NUMBER),
        (b'{"pushOrder": "ASC"}', NUMBER),
        (b'{"maxPushNum": 20}', ORDER),
        (b'{"pushOrder": "asc", "maxPushNum": 20}', ORDER),
        (b'{"pushOrder": ["ASC"], "maxPushNum": 20}', ORDER),
        (b'["ASC", 20]', "it is no JSON object"),
        (b"20", "it is no JSON object"),
        (b"", "it is no JSON"),
        (b"ASC", "it is no JSON"),
        (b"\xff\xfe\x00", "it is no JSON"),
        (b"[" * 60_000, "it is no JSON"),
        (b'{"pushOrder": "ASC", "maxPushNum": ' + b"9" * 5000 + b"}", "it is no JSON"),
    ],
)
def test_requests(payload: bytes, expected: PullRequest | str) -> None:
    assert parse_request(payload, 30) == expected


@given(st.sampled_from(["ASC", "DESC"]), st.integers(min_value=1), st.integers(1, 1000))
def test_the_number_is_clamped(order: str, number: int, most: int) -> None:
    assert parse_request(json.dumps({"pushOrder": order, "maxPushNum": number}).encode(), most) == (order == "DESC", min(number, most))


@given(st.binary(max_size=80))
def test_no_bytes_raise(payload: bytes) -> None:
    assert isinstance(parse_request(payload, 30), PullRequest | str)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=2), max_leaves=4
)


@given(st.sampled_from(["ASC", "DESC"]) | JSON, JSON)
def test_what_is_taken_is_in_its_bounds(order: Any, number: Any) -> None:
    found = parse_request(json.dumps({"pushOrder": order, "maxPushNum": number}).encode(), 30)
    if isinstance(found, PullRequest):
        assert order in ("ASC", "DESC")
        assert 1 <= found.most <= 30


def test_first_period() -> None:
    assert first_period(90, 60.0) == 90.0
    assert first_period(0, 60.0) == 60.0


class TestPace:
    def test_the_sixth_in_a_second_is_not_taken(self) -> None:
        pace = Pace(5)
        assert [pace.take(10 + number / 10) for number in range(7)] == [True] * 5 + [False, False]
        assert not pace.take(10.99)
        assert pace.take(11.0)
        assert not pace.take(11.05)
        assert pace.take(11.1)

    def test_one_that_is_not_taken_does_not_count(self) -> None:
        pace = Pace(1)
        assert [pace.take(number / 4) for number in range(9)] == [True, False, False, False, True, False, False, False, True]

    @given(st.integers(1, 7), st.lists(st.integers(0, 3000), max_size=60).map(sorted))
    def test_never_more_in_any_second(self, most: int, at: list[int]) -> None:
        pace = Pace(most, 1000)
        taken = [now for now in at if pace.take(now)]
        for begin in range(len(taken) - most):
            assert taken[begin + most] - taken[begin] >= 1000
        refused = list(at)
        for now in taken:
            refused.remove(now)
        for now in refused:  # only when the second is full
            assert sum(1 for each in taken if now - 1000 < each <= now) >= most
