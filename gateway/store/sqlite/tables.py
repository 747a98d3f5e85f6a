"""What an operation of the SQLite store works on: the connection, the limits, and the counts kept beside the tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Limits:
    """offline, retained, outbox: entries. offline_ms, session_ms: milliseconds; session_ms 0 = never."""

    offline: int
    offline_ms: int
    session_ms: int
    retained: int
    outbox: int


@dataclass(slots=True)
class Counts:
    """Rows of the tables, so that neither limits nor gauges need a query. position: the last number given to a position, an epoch or a
    body. appended, overflowed: since the opening, items that came into the outbox and offline messages that the limit removed."""

    position: int = 0
    sessions: int = 0
    subscriptions: int = 0
    offline: int = 0
    remembered: int = 0
    retained: int = 0
    outbox: int = 0
    appended: int = 0
    overflowed: int = 0


class Tables:
    """What an operation works on. It changes `counts` along with the rows; both are taken back together."""

    __slots__ = ("counts", "db", "limits")

    def __init__(self, db: sqlite3.Connection, counts: Counts, limits: Limits) -> None:
        self.db = db
        self.counts = counts
        self.limits = limits

    def next(self) -> int:
        """A number greater than any before it, restarts included."""
        self.counts.position += 1
        return self.counts.position


Operation = Callable[[Tables], Any]
