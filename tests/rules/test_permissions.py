"""gateway.rules.permissions: which filters cover which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mqtt.topics import matches
from gateway.rules.permissions import covers, may_publish, may_subscribe, readable_parents


@pytest.mark.parametrize(
    ("allowed", "requested"),
    [
        ("#", "#"),
        ("#", "a/b"),
        ("#", "+/b/#"),
        ("+/#", "#"),
        ("a/#", "a"),
        ("a/#", "a/#"),
        ("a/#", "a/+/b/#"),
        ("a/+", "a/b"),
        ("a/+", "a/+"),
        ("a/+/#", "a/+"),
        ("+", "a"),
        ("$SYS/#", "$SYS/x"),
        ("a/", "a/"),
        ("a/+", "a/"),
    ],
)
def test_covered(allowed: str, requested: str) -> None:
    assert covers(allowed, requested)


@pytest.mark.parametrize(
    ("allowed", "requested"),
    [
        ("a/#", "#"),
        ("a/#", "+"),
        ("a/#", "b/c"),
        ("a/#", "ab"),
        ("a/+", "a/#"),
        ("a/+", "a"),
        ("a/+/#", "a/#"),
        ("+", "#"),
        ("+", "+/a"),
        ("a/b", "a/+"),
        ("#", "$SYS/#"),
        ("+/#", "$SYS/x"),
        ("a", "a/#"),
        ("a/b", "a"),
    ],
)
def test_not_covered(allowed: str, requested: str) -> None:
    assert not covers(allowed, requested)


LEVEL = st.sampled_from(["a", "b", "", "+", "$x"])
FILTER = (
    st.tuples(st.lists(LEVEL, max_size=3), st.booleans()).map(lambda made: "/".join([*made[0], *(["#"] if made[1] else [])])).filter(bool)
)
NAME = st.lists(st.sampled_from(["a", "b", "", "$x", "c"]), min_size=1, max_size=5).map("/".join).filter(bool)


@given(FILTER, FILTER, st.lists(NAME, max_size=30))
def test_what_is_covered_is_never_more(allowed: str, requested: str, names: list[str]) -> None:
    if covers(allowed, requested):
        assert all(matches(allowed, name) for name in names if matches(requested, name))


def _instances(requested: str) -> list[str]:
    """Topics that together stand for all that a filter matches: wildcards replaced by fresh levels, "#" by none, one and two of them."""
    levels = ["fresh" if level == "+" else level for level in requested.split("/")]
    if levels[-1] != "#":
        return ["/".join(levels)]
    return ["/".join([*levels[:-1], *["fresh"] * more]) for more in range(3) if len(levels) + more > 1]


@given(FILTER, FILTER)
def test_what_is_not_covered_has_a_witness(allowed: str, requested: str) -> None:
    assert covers(allowed, requested) == all(matches(allowed, name) for name in _instances(requested))


def test_publish() -> None:
    assert may_publish(["a/#", "b/+"], "b/x")
    assert may_publish(["#"], "anything/at/all")
    assert not may_publish(["a/#", "b/+"], "b/x/y")
    assert not may_publish(["#"], "$SYS/x")
    assert not may_publish([], "a")


def test_subscribe() -> None:
    assert may_subscribe(["a/#", "b/+"], "b/+")
    assert not may_subscribe(["a/#", "b/+"], "b/#")
    assert not may_subscribe([], "a")


@pytest.mark.parametrize(
    ("filters", "requested", "parents"),
    [
        (["#"], "#", ["demo", "other"]),
        (["demo/#"], "#", ["demo"]),
        (["demo/#"], "+/a", ["demo"]),
        (["demo/+"], "+/a", ["demo"]),
        (["demo/+"], "#", []),
        (["#"], "demo/a", ["demo"]),
        (["#"], "nowhere/a", []),
        (["other/#"], "demo/a", []),
        (["#"], "+", ["demo", "other"]),
        (["demo"], "+", ["demo"]),
    ],
)
def test_readable_parents(filters: list[str], requested: str, parents: list[str]) -> None:
    assert readable_parents(filters, requested, ["demo", "other"]) == parents
