"""What an account may publish and subscribe, given its lists of topic filters (contract sections 3 and 11)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.mqtt.topics import matches, split_parent


def covers(allowed: str, requested: str) -> bool:
    """Whether every topic that the filter `requested` matches is matched by the filter `allowed` too. Both are well formed."""
    if requested[:1] == "$" and allowed[:1] in ("#", "+"):
        return False  # [MQTT-4.7.2-1]
    if allowed == "#":
        return True
    want = ["+", "#"] if requested == "#" else requested.split("/")  # a topic has one level at least
    may = allowed.split("/")
    for index, level in enumerate(may):
        if level == "#":
            return True  # "#" takes what remains, nothing included
        if index == len(want) or want[index] == "#":
            return False
        if level not in ("+", want[index]):
            return False
    return len(may) == len(want)


def may_publish(filters: Iterable[str], topic: str) -> bool:
    """Whether one of an account's `publish` filters matches the topic."""
    return any(matches(allowed, topic) for allowed in filters)


def may_subscribe(filters: Iterable[str], requested: str) -> bool:
    """Whether one of an account's `subscribe` filters covers the requested filter."""
    return any(covers(allowed, requested) for allowed in filters)


def readable_parents(filters: Sequence[str], requested: str, bridged: Iterable[str]) -> list[str]:
    """The bridged parents for which the requested filter is allowed. A wildcard in its first level stands for each of them in turn."""
    first, rest = split_parent(requested)
    if first == "#":
        rest = "/#"
    elif first != "+":
        return [first] if first in bridged and may_subscribe(filters, requested) else []
    return [parent for parent in bridged if may_subscribe(filters, parent + rest)]
