"""Who reads the embedded log: a consumer, its place in each queue, and when that place is committed (design section 4)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import trio

from backend_adapters.local.log import Log, cure, first_offset
from backend_adapters.local.queues import Fresh, LocalQueue, LocalTopic
from backend_adapters.local.segments import decode
from backend_adapters.offsets import OffsetTracker, Unresolved
from gateway import observe
from gateway.ports import BackendError, Listener, Queue, Received, Refusal, Start

READ_BYTES = 1024 * 1024  # of one read from the file, but one segment at the least
READ_MESSAGES = 512
COMMIT_TICK = 0.5  # seconds between two looks at what may be committed, while anything waits for it
RETRY = 1.0  # seconds after a failed read or commit
CLOSE_DEADLINE = 3.0


class Cursor:
    """One queue of one consumer. position: the next offset to be given to the listener. committed: -1 when nothing is."""

    def __init__(self, consumer: LocalConsumer, queue: LocalQueue, position: int, committed: int) -> None:
        self.queue = queue
        self.position = position
        self.committed = committed
        self.tracker = OffsetTracker(position, changed=self._changed, bounds=consumer.unresolved)
        self.scope = trio.CancelScope()
        self.stopped = trio.Event()
        self._consumer = consumer
        self._replay_end = queue.end  # what was there before may have been read before
        self._stopping = False
        self._news: trio.Event | None = None  # it waits for messages
        self._room: trio.Event | None = None  # it waits until less is unresolved
        self._waits_for_commit = False

    @property
    def group(self) -> str | None:
        """None: a reader, whose place is never committed."""
        return self._consumer.group

    @property
    def lag(self) -> int:
        """Messages between the committed place and the end; of a reader, between what is resolved and the end."""
        base = self.tracker.resolved if self.group is None else self.committed
        return max(0, self.queue.end - max(base, self.queue.min))

    def wake(self) -> None:
        """There are new messages."""
        if self._news is not None:
            self._news.set()

    def stop(self) -> None:
        """End after the batch that the listener has."""
        self._stopping = True
        self.wake()
        if self._room is not None:
            self._room.set()

    def commit_done(self) -> None:
        """The committer has nothing more to wait for."""
        self._waits_for_commit = False

    def _changed(self) -> None:
        if self._room is not None and not self.tracker.full:
            self._room.set()
        if not self._waits_for_commit and self._consumer.group is not None:
            self._waits_for_commit = True
            self._consumer.committer.add(self)

    async def run(self) -> None:
        """Read until stopped or cancelled."""
        try:
            with self.scope:
                while not self._stopping:
                    await self._turn()
        finally:
            self.stopped.set()

    async def _turn(self) -> None:
        tracker, queue = self.tracker, self.queue
        if tracker.full:
            self._room = trio.Event()
            await self._room.wait()
            self._room = None
            return
        if self.position >= queue.end:
            self._news = trio.Event()
            await self._news.wait()
            self._news = None
            return
        fresh = queue.fresh(self.position)
        if fresh is not None:
            batch, following = self._from_memory(fresh)
        else:
            read = await self._from_file()
            if read is None or self._stopping:
                return
            batch, following = read
        tracker.receive(batch)
        self.position = following
        if batch:
            await self._give(batch)
        tracker.advance(following)
        queue.passed()

    async def _give(self, batch: list[Received]) -> None:
        try:
            await self._consumer.listener.received(batch)
        except Exception:  # noqa: BLE001 - a listener's fault never stops a queue
            observe.note(observe.Fact.INTERNAL_ERROR, topic=self.queue.name.topic, queue=self.queue.name.id, exc_info=True)

    def _from_memory(self, fresh: Fresh) -> tuple[list[Received], int]:
        skip = self.position - fresh.first
        messages, born = (fresh.messages[skip:], fresh.born[skip:]) if skip else (fresh.messages, fresh.born)
        tags, name, stored_at, settled = self._consumer.tags, self.queue.name, fresh.stored_at, self.tracker.settled
        replay_end = self._replay_end
        batch = [
            Received(
                name, offset, message.tag, message.body, message.properties, message.id, stored_at, born_at, offset < replay_end, settled
            )
            for offset, (message, born_at) in enumerate(zip(messages, born, strict=True), self.position)
            if tags is None or message.tag in tags
        ]
        return batch, self.position + len(messages)

    async def _from_file(self) -> tuple[list[Received], int] | None:
        """None: nothing could be read; try again."""
        log, queue = self._consumer.log, self.queue
        try:
            segments = await log.call(log.read, queue.ref, self.position, READ_MESSAGES, READ_BYTES)
        except sqlite3.Error as problem:
            observe.note(observe.Fact.BACKEND_RETRY, server=str(log.path), error=str(problem))
            await trio.sleep(RETRY)
            return None
        tags, settled, batch = self._consumer.tags, self.tracker.settled, []
        following = self.position
        for segment in segments:
            first = first_offset(segment.key)
            if first > following:
                observe.note(observe.Fact.OFFSET_GAP, first - following, topic=queue.name.topic, queue=queue.name.id, offset=first)
            skip = max(0, following - first)
            for offset, message in enumerate(decode(segment.data, skip), first + skip):
                if tags is None or message.tag in tags:
                    replayed = offset < self._replay_end
                    batch.append(
                        Received(
                            queue.name,
                            offset,
                            message.tag,
                            message.body,
                            message.properties,
                            message.id,
                            segment.stored,
                            message.born_at,
                            replayed,
                            settled,
                        )
                    )
            following = first + segment.length
        return batch, following if segments else queue.end  # none is left: retention took them all


class Committer:
    """Commits what was resolved two seconds ago, for all consumers together. Sleeps while there is nothing to commit."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._dirty: set[Cursor] = set()
        self._wanted = trio.Event()

    def add(self, cursor: Cursor) -> None:
        """Its low water moved."""
        self._dirty.add(cursor)
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if not self._dirty:
                self._wanted = trio.Event()
                await self._wanted.wait()
            try:
                await self._tick()
            except (sqlite3.Error, OSError):
                await trio.sleep(RETRY)  # noted by the log; tried again
            await trio.sleep(COMMIT_TICK)

    async def _tick(self) -> None:
        now = trio.current_time()
        moved = []
        for cursor in tuple(self._dirty):
            offset = cursor.tracker.committable(now)
            if offset > cursor.committed:
                moved.append((cursor, offset))
            elif offset >= cursor.tracker.resolved:
                self._dirty.discard(cursor)
                cursor.commit_done()
        await self._commit(moved)

    async def finish(self, cursors: list[Cursor]) -> None:
        """Commit what these have resolved by now, and never again. Raises sqlite3.Error."""
        self._dirty.difference_update(cursors)
        await self._commit([(cursor, cursor.tracker.resolved) for cursor in cursors if cursor.tracker.resolved > cursor.committed])

    async def _commit(self, moved: list[tuple[Cursor, int]]) -> None:
        rows = [(cursor.group, cursor.queue.ref, offset) for cursor, offset in moved if cursor.group is not None]
        if rows:
            await self._log.write(self._log.commit, rows)
            for cursor, offset in moved:
                cursor.committed = offset


class LocalConsumer:
    """A running subscription of one topic; made by `LocalBackend.consume`."""

    def __init__(
        self,
        log: Log,
        committer: Committer,
        nursery: trio.Nursery,
        topic: LocalTopic,
        tags: frozenset[str] | None,
        group: str | None,
        listener: Listener,
        owns: Callable[[Queue], bool] | None,
        closed: Callable[[LocalConsumer], None],
        unresolved: Unresolved,
    ) -> None:
        self.unresolved = unresolved
        self.log = log
        self.committer = committer
        self.tags = tags
        self.group = group
        self.listener = listener
        self.cursors: dict[Queue, Cursor] = {}
        self._nursery = nursery
        self._topic = topic
        self._owns = owns
        self._closed = closed
        self._starts: dict[Queue, int] = {}
        self._changing = trio.Lock()
        self._open = True

    async def begin(self, start: Start | int) -> None:
        """The first assignment. The places of queues that come later count from now too. Raises BackendError."""
        for queue in self._topic.queues:
            if start is Start.FIRST:
                position = queue.min
            elif start is Start.LAST:
                position = queue.end
            else:
                position = await self._ask(self.log.call, self.log.offset_at, queue.ref, queue.min, queue.end, start)
            self._starts[queue.name] = position
        await self._assign()

    async def _ask(self, call: Callable[..., Any], work: Callable[..., Any], *args: Any) -> Any:
        try:
            return await call(work, *args)
        except (sqlite3.Error, OSError) as problem:
            raise BackendError(Refusal.UNAVAILABLE, f"{self.log.path}: {problem}; {cure(problem)}") from problem

    async def _assign(self) -> None:
        async with self._changing:
            if not self._open:
                return
            owns = self._owns
            wanted = [queue for queue in self._topic.queues if owns is None or owns(queue.name)]
            names = {queue.name for queue in wanted}
            await self._revoke([cursor for name, cursor in self.cursors.items() if name not in names])
            gained = [queue for queue in wanted if queue.name not in self.cursors]
            if gained:
                await self._gain(gained)

    async def _gain(self, gained: list[LocalQueue]) -> None:
        committed: dict[int, int] = {}
        if self.group is not None:
            committed = await self._ask(self.log.call, self.log.offsets, self.group)
            # Without this a death before the first commit would begin at another end, and skip what came in between.
            first = [(self.group, queue.ref, self._starts[queue.name]) for queue in gained if queue.ref not in committed]
            if first:
                await self._ask(self.log.write, self.log.commit, first)
                committed.update((ref, offset) for _, ref, offset in first)
        for queue in gained:
            known = committed.get(queue.ref, -1)
            wanted = self._starts[queue.name] if known < 0 else known
            position = min(max(wanted, queue.min), queue.end)
            if position != wanted:
                observe.note(observe.Fact.OFFSET_GAP, abs(position - wanted), topic=queue.name.topic, queue=queue.name.id, offset=position)
            cursor = Cursor(self, queue, position, min(known, position))
            queue.readers.append(cursor)
            self.cursors[queue.name] = cursor
            self.listener.assigned(queue.name, position)
            self._nursery.start_soon(cursor.run)

    async def _revoke(self, cursors: list[Cursor]) -> None:
        """Let the listener finish what it has, commit, take the queues back; 3 s for all of it."""
        if not cursors:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_DEADLINE):
            for cursor in cursors:
                cursor.stop()
            with trio.move_on_after(CLOSE_DEADLINE * 2 / 3):
                for cursor in cursors:
                    await cursor.stopped.wait()
            for cursor in cursors:
                cursor.scope.cancel()
                await cursor.stopped.wait()
            try:
                await self.committer.finish(cursors)
            except (sqlite3.Error, OSError):
                pass  # noted by the log; the messages come again
        for cursor in cursors:
            del self.cursors[cursor.queue.name]
            cursor.queue.readers.remove(cursor)
            cursor.queue.passed()
            self.listener.revoked(cursor.queue.name)

    # ---------------------------------------------------------------- the port

    async def retag(self, tags: frozenset[str] | None) -> None:
        """As the port says. At once: a batch is filtered only after it was read."""
        self.tags = tags
        await trio.lowlevel.checkpoint()

    async def lag(self) -> dict[Queue, int]:
        """As the port says."""
        await trio.lowlevel.checkpoint()
        return {name: cursor.lag for name, cursor in self.cursors.items()}

    def committed(self, queue: Queue) -> int:
        """As the port says."""
        cursor = self.cursors.get(queue)
        return -1 if cursor is None else cursor.committed

    def reassign(self) -> None:
        """As the port says."""
        self._nursery.start_soon(self._reassign)

    async def _reassign(self) -> None:
        while True:
            try:
                return await self._assign()
            except BackendError:
                await trio.sleep(RETRY)  # noted by the log

    async def close(self) -> None:
        """As the port says. Again: nothing."""
        if self._open:
            self._open = False
            async with self._changing:
                await self._revoke(list(self.cursors.values()))
            self._closed(self)
