"""What every operation of the Redis store works on: the keys of the instance, its limits, and what is known of the shards' counts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.store.redis.keys import SHARDS, Keys

FIELDS = ("sessions", "subscriptions", "offline", "remembered", "outbox")
SESSIONS, SUBSCRIPTIONS, OFFLINE, REMEMBERED, OUTBOX = range(len(FIELDS))


@dataclass(frozen=True, slots=True)
class Limits:
    """offline, retained, outbox: entries of the instance. offline_ms, session_ms: milliseconds; session_ms 0 = never."""

    offline: int
    offline_ms: int
    session_ms: int
    retained: int
    outbox: int


class Counts:
    """The rows of each shard as last heard: with every answer of a script that changes them (`lib/counts`), and all of them every few
    seconds. So the own node's changes show at once, another node's a little later. Written by the writer's thread alone.

    retained: messages of the instance. overflowed, appended: since the start, offline messages that this node's puts removed past the
    limit; shards to whose outbox this node added something, until `wake` of the store takes them."""

    def __init__(self) -> None:
        self.retained = 0
        self.overflowed = 0
        self.appended: deque[int] = deque()
        self._shards: list[tuple[int, ...]] = [(0,) * len(FIELDS)] * SHARDS
        self._totals = [0] * len(FIELDS)

    def take(self, shard: int, reply: Sequence[Any]) -> None:
        """reply: what `counts_of` of the script library returned, or HMGET with FIELDS."""
        new = tuple(int(value or 0) for value in reply)
        totals = self._totals
        for n, (before, after) in enumerate(zip(self._shards[shard], new, strict=True)):
            totals[n] += after - before
        self._shards[shard] = new

    def total(self, field: int) -> int:
        return self._totals[field]

    def beside(self, field: int, shard: int) -> int:
        """All but those of `shard`."""
        return self._totals[field] - self._shards[shard][field]


class Places:
    """In which order messages were put, and what of the limit is known. Touched by the writer's thread alone.

    exact: messages that waited when they were last counted, -1 before that; since: how many this node put after that. trimming: a job is at
    it; again: and another one has put something meanwhile. lost: since the start, references removed because their body was gone."""

    def __init__(self) -> None:
        self.exact = -1
        self.since = 0
        self.trimming = False
        self.again = False
        self.lost = 0
        self._last = 0

    def take(self, n: int, now: int) -> int:
        """The first of n numbers that nobody else gets on this node: microseconds since 1970, or a little more. now: ms."""
        first = max(now * 1000, self._last + 1)
        self._last = first + n - 1
        return first


class Instance:
    """keys, limits, counts, places; now: ms since 1970, by the store's clock once that is known."""

    __slots__ = ("counts", "keys", "limits", "now", "places")

    def __init__(self, name: str, limits: Limits) -> None:
        self.keys = Keys(name)
        self.limits = limits
        self.counts = Counts()
        self.places = Places()
        self.now: Callable[[], int] = _machine_ms


def _machine_ms() -> int:
    return time.time_ns() // 1_000_000
