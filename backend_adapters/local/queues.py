"""One queue of the embedded log in memory: its bounds, and its newest messages for consumers that have caught up."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from backend_adapters.local.log import QueueState
from gateway.ports import Message, Queue, TopicInfo

BROKER = "local"
_TAIL_BYTES = 4 * 1024 * 1024  # kept for consumers a little behind; who is further behind reads the file
_TAIL_MESSAGES = 4096


class Fresh(NamedTuple):
    """Consecutive messages that were just stored. born: ms, one for each. size, total: bytes, as in `log.Segment`."""

    first: int
    messages: Sequence[Message]
    born: Sequence[int]
    stored_at: int
    size: int
    total: int


class Reader(Protocol):
    """Who reads a queue. position: the next offset it needs."""

    position: int

    def wake(self) -> None: ...


class LocalQueue:
    """name: as the port shows it. ref: its number in the file. min, end: offsets that can be read. next: the offset that is given next;
    those from `end` on are on their way to the disk. total: bytes ever given to the file, for the writer. oldest, newest: ms, -1 without
    messages."""

    __slots__ = (
        "_base",
        "_stored_total",
        "_tail",
        "_tail_count",
        "_tail_size",
        "end",
        "min",
        "name",
        "newest",
        "next",
        "oldest",
        "readers",
        "ref",
        "total",
    )

    def __init__(self, topic: str, state: QueueState) -> None:
        self.name = Queue(topic, BROKER, state.number)
        self.ref = state.ref
        self.next = self.end = state.end
        self.total = self._stored_total = state.total
        self.newest = state.newest
        self.readers: list[Reader] = []
        self._tail: deque[Fresh] = deque()
        self._tail_size = 0
        self._tail_count = 0
        self.trimmed(state)

    def trimmed(self, state: QueueState) -> None:
        """Messages were removed from the front."""
        self.min = state.min
        self.oldest = state.oldest
        self._base = self._stored_total if state.oldest < 0 else state.base

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._stored_total - self._base

    def stored(self, fresh: Fresh) -> None:
        """These are on the disk now; whoever waits for them is woken."""
        self.end = fresh.first + len(fresh.messages)
        self._stored_total = fresh.total
        self.newest = fresh.stored_at
        if self.oldest < 0:
            self.oldest = fresh.stored_at
        if not self.readers:
            return
        self._tail.append(fresh)
        self._tail_size += fresh.size
        self._tail_count += len(fresh.messages)
        while self._tail_size > _TAIL_BYTES or self._tail_count > _TAIL_MESSAGES:
            self._drop()
        for reader in self.readers:
            reader.wake()

    def fresh(self, position: int) -> Fresh | None:
        """The newest messages from `position` on, None when they are to be read from the file."""
        for fresh in self._tail:
            if fresh.first <= position < fresh.first + len(fresh.messages):
                return fresh
        return None

    def passed(self) -> None:
        """A reader moved on or left: what all of them have is forgotten."""
        lowest = min((reader.position for reader in self.readers), default=self.end)
        while self._tail and self._tail[0].first + len(self._tail[0].messages) <= lowest:
            self._drop()

    def _drop(self) -> None:
        fresh = self._tail.popleft()
        self._tail_size -= fresh.size
        self._tail_count -= len(fresh.messages)


class LocalTopic:
    """A topic and its queues, in the order of their numbers."""

    __slots__ = ("info", "name", "queues")

    def __init__(self, name: str, states: Sequence[QueueState]) -> None:
        self.name = name
        self.queues = [LocalQueue(name, state) for state in states]
        self.info = TopicInfo(name, tuple(queue.name for queue in self.queues))

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return sum(queue.size for queue in self.queues)

    @property
    def oldest(self) -> int:
        """ms, -1 without messages."""
        return min((queue.oldest for queue in self.queues if queue.oldest >= 0), default=-1)
