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


class PacketIds:
    """Gives out packet ids. `last` is the one given last, 0 at first; a restored session sets it."""

    __slots__ = ("last",)

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def take(self, in_use: Container[int]) -> int:
        """The next free id 1..65535, or 0 (and `last` stays) when all are in use [MQTT-2.3.1-2]."""
        number = next_free(self.last, in_use)
        if number:
            self.last = number
        return number
