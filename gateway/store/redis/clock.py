"""The clock that all nodes of the store share: that of Redis, by way of this machine's monotonic one."""

from __future__ import annotations

import time

from gateway.store.redis.engine import Command, Steps, checked
from gateway.store.redis.instance import Instance

GOOD_MS = 20  # a question that took so long to answer tells the time to half of it
OLD_MS = 10_000  # an older reading is replaced by any; quartz drifts less than 1 ms in it


class Clock:
    """Never goes back: when Redis's clock did, it stands until that has caught up. Before the first reading it is this machine's."""

    def __init__(self) -> None:
        self._offset: float | None = None  # ms, to the monotonic clock
        self._read_at = 0.0
        self._last = 0

    def now(self) -> int:
        """ms since 1970."""
        offset = self._offset
        ms = time.time_ns() // 1_000_000 if offset is None else int(_monotonic() + offset)
        if ms > self._last or self._offset is None:
            self._last = ms
        return self._last

    def take(self, asked: float, answered: float, server: float) -> None:
        """A reading: when it was asked for and answered (ms of the monotonic clock), and what Redis said (ms since 1970)."""
        if self._offset is None:
            self._last = 0  # the machine's clock may be ahead; nobody has been told the store's time yet
        elif answered - asked > GOOD_MS and answered - self._read_at < OLD_MS:
            return
        self._offset = server - (asked + answered) / 2
        self._read_at = answered


def read(at: Instance) -> Steps[tuple[float, float, float]]:
    """The arguments of `Clock.take`."""
    asked = _monotonic()
    (reply,) = checked((yield [Command(("TIME",), at.keys.marks())]))
    return asked, _monotonic(), int(reply[0]) * 1000 + int(reply[1]) / 1000


def _monotonic() -> float:
    return time.monotonic_ns() / 1_000_000
