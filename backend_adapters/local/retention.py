"""Removes the oldest messages of the embedded log: past their time, or past their topic's size (contract section 11)."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping

import trio

from backend_adapters.local.log import Log
from backend_adapters.local.queues import LocalTopic

_SOONEST = 60.0  # seconds between two looks at the clock
_LATEST = 3600.0
_RETRY = 5.0
_SPARE = 64  # past its bound a topic gives back a 64th of it, so that not every batch has to remove one


class Retention:
    """seconds: how long messages stay. size: bytes of one topic. Works in small steps; the writer gets its turn between them."""

    def __init__(self, log: Log, topics: Mapping[str, LocalTopic], seconds: float, size: int) -> None:
        self._log = log
        self._topics = topics
        self._seconds = seconds
        self._size = size
        self._wanted = trio.Event()

    def stored(self, topic: LocalTopic) -> None:
        """The topic grew."""
        if topic.size > self._size:
            self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wanted = trio.Event()
            try:
                for topic in list(self._topics.values()):
                    await self.apply(topic)
            except (sqlite3.Error, OSError):
                await trio.sleep(_RETRY)  # noted by the log
                continue
            with trio.move_on_after(self._pause()):
                await self._wanted.wait()

    def _pause(self) -> float:
        oldest = min((topic.oldest for topic in self._topics.values() if topic.oldest >= 0), default=None)
        if oldest is None:
            return _LATEST
        return min(max(oldest / 1000 + self._seconds - time.time(), _SOONEST), _LATEST)

    async def apply(self, topic: LocalTopic) -> None:
        """Remove what is over. Raises sqlite3.Error."""
        refs = {queue.ref: queue for queue in topic.queues}
        target = self._size - self._size // _SPARE if topic.size > self._size else self._size
        while True:
            before = int((time.time() - self._seconds) * 1000)
            excess = max(0, topic.size - target)
            if not excess and not 0 <= topic.oldest < before:
                return
            states = await self._log.write(self._log.trim, list(refs), before, excess)
            if not states:
                return
            for state in states:
                refs[state.ref].trimmed(state)
