"""gateway.rules.limits: contract section 11."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.limits import Bucket, admit_subscriptions, topic_fits


@pytest.mark.parametrize(
    ("topic", "fits"),
    [
        ("x" * 10, True),
        ("x" * 11, False),
        ("ü" * 10, True),
        ("x" * 10 + "/p2p/" + "c" * 5, True),
        ("x" * 11 + "/p2p/" + "c" * 5, False),
        ("x" * 10 + "/p2p/" + "c" * 6, False),
        ("x/a/p2p/" + "c" * 5, False),
        ("x/p2px/" + "c" * 5, False),
    ],
)
def test_topic_length(topic: str, fits: bool) -> None:
    assert topic_fits(topic, 10, 5) is fits


def test_a_client_id_of_any_settable_length_is_not_counted() -> None:
    assert topic_fits("demo/p2p/" + "c" * 1024, 10)
    assert not topic_fits("demo/p2p/" + "c" * 1025, 10)


class TestAdmitSubscriptions:
    def test_the_ones_beyond_are_refused(self) -> None:
        assert admit_subscriptions(set(), 0, ["a", "b", "c"], 2) == [True, True, False]

    def test_what_is_there_already_replaces_itself(self) -> None:
        assert admit_subscriptions({"a", "b"}, 2, ["a", "c", "b", "c"], 2) == [True, False, True, False]
        assert admit_subscriptions({"a"}, 1, ["c", "c", "d"], 2) == [True, True, False]

    @given(st.sets(st.sampled_from("abcdef")), st.lists(st.sampled_from("abcdef")), st.integers(0, 6))
    def test_never_more_than_the_limit(self, present: set[str], requested: list[str], limit: int) -> None:
        admitted = admit_subscriptions(present, len(present), requested, limit)
        after = present | {name for name, ok in zip(requested, admitted, strict=True) if ok}
        assert len(after) <= max(limit, len(present))


class TestBucket:
    def test_burst_then_rate(self) -> None:
        bucket = Bucket(rate=5, burst=5, now=100.0)
        assert [bucket.take(100.0) for _ in range(6)] == [True] * 5 + [False]
        assert not bucket.take(100.125)
        assert bucket.take(100.25)
        assert not bucket.take(100.25)

    def test_wait(self) -> None:
        bucket = Bucket(rate=4, burst=2, now=0.0)
        assert bucket.wait(0.0, 2) == 0
        assert bucket.take(0.0, 2)
        assert bucket.wait(0.0) == 0.25
        assert bucket.wait(0.125) == 0.125
        assert bucket.take(0.25)

    def test_it_never_holds_more_than_the_burst_and_time_never_runs_backwards(self) -> None:
        bucket = Bucket(rate=1, burst=2, now=0.0)
        assert bucket.take(1000.0, 2)
        assert not bucket.take(5.0)
        assert not bucket.take(1000.5)

    @given(st.lists(st.floats(0, 10), max_size=60).map(sorted))
    def test_no_window_of_time_gives_more_than_burst_plus_rate(self, times: list[float]) -> None:
        bucket = Bucket(rate=3, burst=4, now=0.0)
        taken = [now for now in times if bucket.take(now)]
        for index, start in enumerate(taken):
            for count, end in enumerate(taken[index:], 1):
                assert count <= 4 + 3 * (end - start) + 1e-6
