"""Which offset of one queue may be committed: the lowest that is not resolved, as it was some seconds ago (design section 4). Pure.

Use, per batch that was read: `receive(batch)`, `await listener.received(batch)`, `advance(next_offset)`; and `committable(now)` on a tick.
Each `Received` gets `tracker.settled` as its `settled`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.ports import Received

COMMIT_DELAY = 2.0  # seconds; covers a store that syncs its own writes once a second
_SNAPSHOTS = 8  # a delay is divided into so many steps: the delay is exceeded by an eighth at most
_COMPACT_FROM = 32  # fewer resolved messages behind a held one are not worth a compaction


class Unresolved(NamedTuple):
    """A queue with so many messages, or bytes of bodies, unresolved is not read further."""

    messages: int = 10_000
    bytes: int = 64 * 1024 * 1024


DEFAULT_UNRESOLVED = Unresolved()


def _ignore() -> None:
    """Nobody waits for a change."""


class OffsetTracker:
    """One queue from `position` (the first offset that will be read) on.

    `changed` is called after each move: a reader that waits for room, or a committer that sleeps while nothing is to commit, looks again.
    Not for use by several threads.
    """

    __slots__ = ("_batch", "_boundary", "_bounds", "_bytes", "_changed", "_committable", "_delay", "_held", "_snapshots", "_stale")

    def __init__(
        self, position: int, delay: float = COMMIT_DELAY, changed: Callable[[], None] = _ignore, bounds: Unresolved = DEFAULT_UNRESOLVED
    ) -> None:
        self._boundary = position  # everything before it was given to the listener, which returned
        self._delay = delay
        self._changed = changed
        self._bounds = bounds
        self._held: deque[Received] = deque()  # in ascending offsets; resolved ones stay only behind a held one
        self._stale = 0  # how many of `_held` are resolved
        self._bytes = 0  # bodies of `_held` and `_batch`
        self._batch: Sequence[Received] = ()  # with the listener now
        self._snapshots: deque[tuple[float, int]] = deque()
        self._committable = position

    @property
    def resolved(self) -> int:
        """The low water: the lowest offset that is not resolved. What an orderly end commits."""
        held = self._held
        return held[0].offset if held else self._boundary

    @property
    def position(self) -> int:
        """Up to where the listener has been."""
        return self._boundary

    @property
    def unresolved(self) -> int:
        """Messages that are held, and those with the listener now."""
        return max(0, len(self._held) - self._stale) + len(self._batch)

    @property
    def unresolved_bytes(self) -> int:
        """Their bodies, in bytes; at most twice as much while resolved ones lie between held ones."""
        return self._bytes

    @property
    def full(self) -> bool:
        """At the bound in messages or bytes: read no further."""
        return self._bytes >= self._bounds.bytes or self.unresolved >= self._bounds.messages

    def receive(self, batch: Sequence[Received]) -> None:
        """Ascending offsets that the listener gets next. The tracker has a hold of its own on each until `advance`, so that one which is
        held and released meanwhile is not taken for resolved before the listener returned."""
        assert not self._batch, "receive before the former batch was advanced"
        size = 0
        for message in batch:
            message.holds += 1
            size += len(message.body)
        self._batch = batch
        self._bytes += size

    def advance(self, next_offset: int) -> None:
        """The listener has returned; what it does not hold is resolved, and so are the offsets below `next_offset` that no message came
        from (filtered, or gone by retention)."""
        batch, self._batch = self._batch, ()
        held = self._held
        for message in batch:
            message.holds -= 1
            if message.holds:
                held.append(message)
            else:
                self._bytes -= len(message.body)
        if next_offset > self._boundary:
            self._boundary = next_offset
        self._changed()

    def settled(self) -> None:
        """The last hold of one message of this queue is gone."""
        held = self._held
        self._stale += 1
        if held and not held[0].holds:
            while held and not held[0].holds:
                self._bytes -= len(held.popleft().body)
                self._stale -= 1
            if not held:
                self._stale = 0
        elif self._stale > _COMPACT_FROM and self._stale * 2 > len(held):
            self._compact()
        self._changed()

    def _compact(self) -> None:
        """Forget resolved messages behind a held one, so that one slow receiver pins neither memory nor the bound for the others."""
        self._held = deque(message for message in self._held if message.holds)
        self._stale = 0
        self._bytes = sum(len(message.body) for message in self._held) + sum(len(message.body) for message in self._batch)

    def committable(self, now: float) -> int:
        """The low water of at least `delay` seconds ago (monotonic seconds), as seen by the calls before this one; never falls."""
        snapshots = self._snapshots
        due = now - self._delay
        while snapshots and snapshots[0][0] <= due:
            self._committable = snapshots.popleft()[1]
        resolved = self.resolved
        last = snapshots[-1] if snapshots else (None, self._committable)
        if resolved != last[1] and (last[0] is None or now - last[0] >= self._delay / _SNAPSHOTS):
            snapshots.append((now, resolved))
        if not self._delay:
            self._committable = resolved
            snapshots.clear()
        return self._committable
