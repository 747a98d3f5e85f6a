"""A backend in memory with just what the API uses of the port, and views that are set by a test."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import trio

from gateway.ports import BackendError, Health, Listener, Message, Queue, Receipt, Received, Refusal, Start, Stored, TopicInfo


class Reader:
    """One consumer of the backend below: everything from `position` on, a message at a time."""

    def __init__(self, backend: MemoryBackend, topic: str, tags: frozenset[str] | None, listener: Listener, position: int) -> None:
        self.backend = backend
        self.topic = topic
        self.tags = tags
        self.listener = listener
        self.position = position
        self.closed = False

    async def run(self) -> None:
        queue = Queue(self.topic, "memory", 0)
        while not self.closed:
            log = self.backend.logs[self.topic]
            if self.position < len(log):
                message = log[self.position]
                if self.tags is None or message.tag in self.tags:
                    found = Received(
                        queue, self.position, message.tag, message.body, message.properties, message.id, 1000, 900, False, lambda: None
                    )
                    await self.listener.received([found])
                self.position += 1
            else:
                await self.backend.grown.wait()

    async def close(self) -> None:
        self.closed = True
        self.backend.readers.remove(self)
        self.backend.wake()


class MemoryBackend:
    """Topics that exist: those in `topics`."""

    full = False

    def __init__(self, nursery: trio.Nursery, *topics: str) -> None:
        self.nursery = nursery
        self.logs: dict[str, list[Message]] = {topic: [] for topic in topics}
        self.readers: list[Reader] = []
        self.grown = trio.Event()
        self._ids = count(1)

    def wake(self) -> None:
        self.grown.set()
        self.grown = trio.Event()

    def new_id(self) -> str:
        return f"{next(self._ids):032X}"

    async def room(self) -> None:
        await trio.lowlevel.checkpoint()

    def submit(self, message: Message, done: Stored) -> None:
        if message.topic not in self.logs:
            done(BackendError(Refusal.NO_SUCH_TOPIC, f"no topic {message.topic}: create it"))
            return
        self.logs[message.topic].append(message)
        self.wake()
        done(Receipt(Queue(message.topic, "memory", 0), len(self.logs[message.topic]) - 1))

    async def topic(self, name: str) -> TopicInfo | None:
        return TopicInfo(name, (Queue(name, "memory", 0),)) if name in self.logs else None

    async def create_topic(self, name: str, queues: int = 8) -> TopicInfo:
        self.logs.setdefault(name, [])
        return TopicInfo(name, tuple(Queue(name, "memory", number) for number in range(queues)))

    async def consume(
        self,
        topic: str,
        tags: frozenset[str] | None,
        group: str | None,
        listener: Listener,
        *,
        start: Start | int = Start.FIRST,
        owns: Callable[[Queue], bool] | None = None,
    ) -> Reader:
        if topic not in self.logs:
            raise BackendError(Refusal.NO_SUCH_TOPIC, f"no topic {topic}: create it")
        assert group is None
        reader = Reader(self, topic, tags, listener, len(self.logs[topic]) if start is Start.LAST else 0)
        self.readers.append(reader)
        self.nursery.start_soon(reader.run)
        return reader


class FixedViews:
    """Views with the answers of a test."""

    def __init__(self) -> None:
        self.servers = [Health("store", True, "open"), Health("rocketmq 127.0.0.1:9876", True, "answers")]
        self.numbers: dict[str, float] = {"connections": 3, "backend_retries_total": 2, "backend_lag demo/0": 7}
        self.broken = False

    async def health(self) -> list[Health]:
        if self.broken:
            raise RuntimeError("a fault of ours")
        return self.servers

    def gauges(self) -> dict[str, float]:
        return self.numbers
