"""The embedded backend: the port `Backend` on one SQLite file (contract sections 5 and 11, design section 3).

One transaction is in flight; what is submitted meanwhile is the next. `done` and consumers run when their transaction is on the disk.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import trio

from backend_adapters.local.consumer import CLOSE_DEADLINE, Committer, LocalConsumer
from backend_adapters.local.log import Log, Segment, cure, segment_key
from backend_adapters.local.queues import BROKER, Fresh, LocalQueue, LocalTopic
from backend_adapters.local.retention import Retention
from backend_adapters.local.segments import encode
from backend_adapters.offsets import DEFAULT_UNRESOLVED, Unresolved
from backend_adapters.rocketmq_remoting.ids import UniqueIds
from gateway import observe
from gateway.ports import (
    BackendError,
    Capabilities,
    Consumer,
    Health,
    Listener,
    Message,
    Queue,
    Receipt,
    Refusal,
    Start,
    Stored,
    TopicInfo,
)

TRANSACTION_MESSAGES = 4096  # a transaction is encoded in one go, while nothing else runs: some milliseconds
TRANSACTION_BYTES = 8 * 1024 * 1024
SEGMENT_MESSAGES = 512  # what one read from the file decodes at the least
SEGMENT_BYTES = 1024 * 1024
MOST_QUEUES = 256
_TOPIC = re.compile(r"[%|a-zA-Z0-9_-]{1,127}")  # RocketMQ's rule
_BACKOFF = (0.1, 5.0)  # seconds, first and longest, between two attempts to store


class _Building:
    """A segment that is being filled."""

    __slots__ = ("born", "first", "messages", "parts", "queue", "size")

    def __init__(self, queue: LocalQueue) -> None:
        self.queue = queue
        self.first = queue.next
        self.messages: list[Message] = []
        self.born: list[int] = []
        self.parts: list[bytes] = []
        self.size = 0


class _Transaction:
    """What is stored together, and who is told afterwards, in order."""

    __slots__ = ("answers", "bytes", "fresh", "segments")

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.fresh: list[tuple[LocalQueue, Fresh]] = []
        self.answers: list[tuple[Stored, Receipt | BackendError]] = []
        self.bytes = 0


class LocalBackend:
    """The embedded log in the file `path`.

    synchronous: "full" (what is acknowledged survives a power loss) or "normal" (only the death of the process). backlog_messages,
    backlog_bytes: from where on it is `full`. retention_seconds; retention_bytes of each topic: what is older or more is removed.
    unresolved: from where on a queue is not read further.
    """

    capabilities = Capabilities(ordered=True, offsets=True, delay=False)

    def __init__(
        self,
        path: Path,
        *,
        synchronous: str = "full",
        backlog_messages: int = 20_000,
        backlog_bytes: int = 64 * 1024 * 1024,
        retention_seconds: float = 3 * 86_400,
        retention_bytes: int = 1024 * 1024 * 1024,
        unresolved: Unresolved = DEFAULT_UNRESOLVED,
    ) -> None:
        self._unresolved = unresolved
        if synchronous not in ("full", "normal"):
            raise ValueError(f"synchronous is {synchronous!r}; it can be full or normal")
        self._log = Log(path, synchronous)
        self._backlog_messages = backlog_messages
        self._backlog_bytes = backlog_bytes
        self._topics: dict[str, LocalTopic] = {}
        self._creating = trio.Lock()
        self._ids = UniqueIds()
        self._backlog: deque[tuple[Message, Stored, int]] = deque()
        self._count = 0  # unstored messages: the backlog and the transaction in flight
        self._bytes = 0  # their bodies
        self._work = trio.Event()
        self._room = trio.Event()
        self._drained = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._ended = False
        self._consumers: set[LocalConsumer] = set()
        self._committer = Committer(self._log)
        self._retention = Retention(self._log, self._topics, retention_seconds, retention_bytes)
        self._transactions = 0
        self._stored = 0
        self._refused = 0

    # ---------------------------------------------------------------- life

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """As the port says. Raises BackendError (UNAVAILABLE) when the file can't be opened, e.g. is in use by another process."""
        await self._log.call(self._log.open)
        try:
            states = await self._log.call(self._log.topics)
            self._topics.update((name, LocalTopic(name, queues)) for name, queues in states.items())
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._pump)
                nursery.start_soon(self._committer.run)
                nursery.start_soon(self._retention.run)
                task_status.started()
        finally:
            await self._end()

    async def _end(self) -> None:
        """Commit what is resolved, close the file; what is still unstored is answered with CLOSED."""
        self._ended = True
        self._nursery = None
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_DEADLINE):
            for consumer in tuple(self._consumers):
                await consumer.close()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_DEADLINE):
            await self._log.call(self._log.close)
        while self._backlog:
            _, done, _ = self._backlog.popleft()
            self._answer(done, self._closed())
        self._count = self._bytes = 0
        self._room.set()
        self._drained.set()

    def _closed(self) -> BackendError:
        return BackendError(Refusal.CLOSED, f"{self._log.path} was closed before the message was stored")

    # ---------------------------------------------------------------- sending

    def new_id(self) -> str:
        """As the port says."""
        return self._ids.new()

    def submit(self, message: Message, done: Stored) -> None:
        """As the port says; what is refused waits for its turn too."""
        if self._ended:
            done(self._closed())
            return
        self._backlog.append((message, done, time.time_ns() // 1_000_000))
        self._count += 1
        self._bytes += len(message.body)
        if len(self._backlog) == 1:
            self._work.set()

    @property
    def full(self) -> bool:
        """As the port says."""
        return self._count >= self._backlog_messages or self._bytes >= self._backlog_bytes

    async def room(self) -> None:
        """As the port says."""
        while self.full and not self._ended:
            self._room = self._room if not self._room.is_set() else trio.Event()
            await self._room.wait()
        await trio.lowlevel.checkpoint()

    async def drain(self) -> None:
        """As the port says."""
        while self._count and not self._ended:
            self._drained = self._drained if not self._drained.is_set() else trio.Event()
            await self._drained.wait()
        await trio.lowlevel.checkpoint()

    async def _pump(self) -> None:
        """It runs after all tasks of the pass in which the first message came, so a burst is one transaction."""
        while True:
            if not self._backlog:
                self._work = trio.Event()
                await self._work.wait()
            transaction = self._form()
            try:
                if transaction.segments:
                    await self._store(transaction)
                else:
                    await trio.lowlevel.checkpoint()
            except trio.Cancelled:
                for done, _ in transaction.answers:
                    self._answer(done, self._closed())
                raise
            self._deliver(transaction)

    def _form(self) -> _Transaction:
        """Give offsets to what waits, and encode it."""
        transaction = _Transaction()
        now = time.time_ns() // 1_000_000
        building: dict[int, _Building] = {}
        backlog, answers = self._backlog, transaction.answers
        while backlog and len(answers) < TRANSACTION_MESSAGES and transaction.bytes < TRANSACTION_BYTES:
            message, done, born = backlog.popleft()
            transaction.bytes += len(message.body)
            topic = self._topics.get(message.topic)
            if topic is None:
                answers.append((done, BackendError(Refusal.NO_SUCH_TOPIC, f"{self._log.path} has no topic {message.topic!r}; create it")))
                continue
            try:
                head, record = encode(message, born)
                queue = topic.queues[crc32(message.key.encode()) % len(topic.queues)]
            except UnicodeEncodeError:
                answers.append((done, BackendError(Refusal.INVALID, "the key holds a lone surrogate, which is no UTF-8")))
                continue
            except BackendError as refusal:
                answers.append((done, refusal))
                continue
            segment = building.get(queue.ref)
            if segment is None:
                segment = building[queue.ref] = _Building(queue)
            elif len(segment.messages) >= SEGMENT_MESSAGES or segment.size >= SEGMENT_BYTES:
                self._finish(transaction, segment, now)
                segment = building[queue.ref] = _Building(queue)
            segment.parts += (head, record)
            segment.size += len(head) + len(record)
            segment.messages.append(message)
            segment.born.append(born)
            answers.append((done, Receipt(queue.name, queue.next)))
            queue.next += 1
        for segment in building.values():
            self._finish(transaction, segment, now)
        return transaction

    @staticmethod
    def _finish(transaction: _Transaction, building: _Building, now: int) -> None:
        queue = building.queue
        queue.total += building.size
        queue.newest = stored_at = max(now, queue.newest)  # never falls, whatever the clock does
        count = len(building.messages)
        transaction.segments.append(
            Segment(segment_key(queue.ref, building.first), count, stored_at, queue.total, b"".join(building.parts))
        )
        fresh = Fresh(building.first, building.messages, building.born, stored_at, building.size, queue.total)
        transaction.fresh.append((queue, fresh))

    async def _store(self, transaction: _Transaction) -> None:
        """Until it is on the disk, however long that takes."""
        pause, longest = _BACKOFF
        while True:
            try:
                await self._log.write(self._log.append, transaction.segments)
            except (sqlite3.Error, OSError) as problem:
                observe.note(observe.Fact.BACKEND_RETRY, server=str(self._log.path), error=str(problem), messages=len(transaction.answers))
                await trio.sleep(pause)
                pause = min(2 * pause, longest)
            else:
                return

    def _deliver(self, transaction: _Transaction) -> None:
        self._transactions += 1
        self._count -= len(transaction.answers)
        self._bytes -= transaction.bytes
        for queue, fresh in transaction.fresh:
            queue.stored(fresh)
            self._stored += len(fresh.messages)
        for name in {queue.name.topic for queue, _ in transaction.fresh}:
            self._retention.stored(self._topics[name])
        for done, answer in transaction.answers:
            self._answer(done, answer)
        if not self.full:
            self._room.set()
        if not self._count:
            self._drained.set()

    def _answer(self, done: Stored, answer: Receipt | BackendError) -> None:
        if isinstance(answer, BackendError):
            self._refused += 1
        try:
            done(answer)
        except Exception:  # noqa: BLE001 - one sender's fault is not the others'
            observe.note(observe.Fact.INTERNAL_ERROR, server=str(self._log.path), exc_info=True)

    # ---------------------------------------------------------------- topics and offsets

    async def topic(self, name: str) -> TopicInfo | None:
        """As the port says."""
        await trio.lowlevel.checkpoint()
        topic = self._topics.get(name)
        return None if topic is None else topic.info

    async def create_topic(self, name: str, queues: int = 8) -> TopicInfo:
        """As the port says. INVALID: a name that RocketMQ would not take, or no sensible number of queues."""
        if not _TOPIC.fullmatch(name):
            raise BackendError(Refusal.INVALID, f"{name!r} is no topic name: 1 to 127 letters, digits, _, -, % or |")
        if not 1 <= queues <= MOST_QUEUES:
            raise BackendError(Refusal.INVALID, f"topic {name}: {queues} queues; 1 to {MOST_QUEUES} can be")
        async with self._creating:
            topic = self._topics.get(name)
            if topic is None:
                states = await self._change(self._log.create_topic, name, queues, time.time_ns() // 1_000_000)
                topic = self._topics[name] = LocalTopic(name, states)
            return topic.info

    async def commit_end(self, topic: str, group: str) -> None:
        """As the port says."""
        rows = [(group, queue.ref, queue.end) for queue in self._known(topic).queues]
        await self._change(self._log.commit, rows)

    def _known(self, name: str) -> LocalTopic:
        if self._nursery is None:
            raise BackendError(Refusal.CLOSED, f"{self._log.path} is not open")
        topic = self._topics.get(name)
        if topic is None:
            raise BackendError(Refusal.NO_SUCH_TOPIC, f"{self._log.path} has no topic {name!r}; create it")
        return topic

    async def _change(self, work: Callable[..., Any], *args: Any) -> Any:
        if self._nursery is None:
            raise BackendError(Refusal.CLOSED, f"{self._log.path} is not open")
        try:
            return await self._log.write(work, *args)
        except (sqlite3.Error, OSError) as problem:
            raise BackendError(Refusal.UNAVAILABLE, f"{self._log.path}: {problem}; {cure(problem)}") from problem

    # ---------------------------------------------------------------- reading

    async def members(self, group: str) -> list[str]:
        """See the port: the lock on the file keeps every other process out."""
        return []

    async def consume(
        self,
        topic: str,
        tags: frozenset[str] | None,
        group: str | None,
        listener: Listener,
        *,
        start: Start | int = Start.FIRST,
        owns: Callable[[Queue], bool] | None = None,
    ) -> Consumer:
        """As the port says."""
        known = self._known(topic)
        assert self._nursery is not None
        consumer = LocalConsumer(
            self._log, self._committer, self._nursery, known, tags, group, listener, owns, self._consumers.discard, self._unresolved
        )
        await consumer.begin(start)
        self._consumers.add(consumer)
        return consumer

    # ---------------------------------------------------------------- how it is

    async def health(self) -> list[Health]:
        """As the port says."""
        await trio.lowlevel.checkpoint()
        name = f"{BROKER}:{self._log.path}"
        if self._nursery is None:
            return [Health(name, False, "not open", "start the gateway")]
        if self._log.trouble:
            return [Health(name, False, f"can't be written: {self._log.trouble}; {self._count} messages wait", self._log.cure)]
        return [Health(name, True, f"{len(self._topics)} topics, {sum(topic.size for topic in self._topics.values())} bytes")]

    def metrics(self) -> dict[str, float]:
        """As the port says."""
        trackers = [cursor.tracker for consumer in self._consumers for cursor in consumer.cursors.values()]
        return {
            "backlog": self._count,
            "backlog_bytes": self._bytes,
            "unresolved": sum(tracker.unresolved for tracker in trackers),
            "unresolved_bytes": sum(tracker.unresolved_bytes for tracker in trackers),
            "stored": self._stored,
            "refused": self._refused,
            "transactions": self._transactions,
            "retries": self._log.failures,
            "topics": len(self._topics),
            "log_bytes": sum(topic.size for topic in self._topics.values()),
        }
