"""Packet ids of what is in flight to one client (clause 2.3.1)."""

from __future__ import annotations

from collections.abc import Container

GREATEST = 65535


def next_free(last: int, in_use: Container[int]) -> int:
    """The first id after `last` that isn't in use, going round after 65535; 0 when all are in use [MQTT-2.3.1-2].

    Going round, not lowest first: an id comes back as late as possible, so a late acknowledgement can't hit its successor.
    """
    candidate = last % GREATEST + 1
    if candidate not in in_use:
        return candidate
    for step in range(1, GREATEST):
        candidate = (last + step) % GREATEST + 1
        if candidate not in in_use:
            return candidate
    return 0
