"""A running subscription: which queues are read, with which tags, and what is committed (design section 4)."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from backend_adapters.offsets import Unresolved
from gateway import observe
from gateway.ports import BackendError, Listener, Queue, Refusal, Start

from . import codes
from .connection import Lost
from .endpoints import guarded
from .reader import Reader, Refused
from .routes import Route, Routes

FIRST_ASSIGNMENT = 5.0  # seconds in which at least one queue's position must become known
_COMMIT = 1.0  # seconds between two commits
_LAST_COMMIT = 3.0  # seconds for the commits at the end
_LAG = 3.0  # seconds

_CURES = {
    codes.GROUP_NOT_EXIST: "Create the consumer group: mqadmin updateSubGroup -c <cluster> -g {group}",
    codes.NO_PERMISSION: "Give this access key SUB on topic {topic} and group {group}",
    codes.TOPIC_NOT_EXIST: "Create the topic: mqadmin updateTopic -c <cluster> -t {topic}",
}


class Subscription:
    """Implements the port's `Consumer`. wire_topic and wire_group: as the servers know them (namespace)."""

    def __init__(
        self, routes: Routes, topic: str, tags: frozenset[str] | None, group: str | None, listener: Listener, start: Start | int,
        owns: Callable[[Queue], bool] | None, wire_topic: str, wire_group: str, declared: frozenset[str],
        changed: Callable[[Subscription], None], unresolved: Unresolved,
    ) -> None:  # fmt: skip
        self.unresolved = unresolved
        self.topic = topic
        self.group = group
        self.tags = tags
        self.listener = listener
        self.start = start
        self.wire_topic = wire_topic
        self.wire_group = wire_group
        self.complaint = ""
        self.cure = ""
        self.received = 0
        self.version = time.time_ns() // 1_000_000
        self.declared: frozenset[str] | None = None if tags is None else tags | declared
        self.readers: dict[Queue, Reader] = {}
        # brokers that have an offset of this group and topic. A broker that has none forgets one of two that reach it together
        # (ConsumerOffsetManager.commitOffset: get, then put, unlocked), so the first one goes alone
        self.committed_on: set[str] = set()
        self.closed = False
        self._routes = routes
        self._owns = owns
        self._changed = changed
        self._route: Route | None = None
        self._assigned_once = False
        self._nursery: trio.Nursery | None = None
        self._ended = trio.Event()
        self._gone = trio.Event()

    @property
    def expression(self) -> str:
        """The tags as a pull carries them."""
        return expression(self.tags)

    # -- living

    async def run(self) -> None:
        """Until `close`. On cancellation from outside the last commit still happens, within its deadline."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._routes.watch(self.topic, self._routed)
                nursery.start_soon(guarded, f"commits of {self.topic}", self._commit_for_ever)
                await self._ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self.closed = True
            self._routes.unwatch(self.topic, self._routed)
            with trio.move_on_after(_LAST_COMMIT, shield=True):
                await self._commit_last(list(self.readers.values()))
            for queue in list(self.readers):
                self._drop(queue)
            self._changed(self)
            self._gone.set()

    async def first_assignment(self) -> None:
        """Return when the positions are known, of all queues, or after 5 s of some. Raises BackendError (UNAVAILABLE)."""
        with trio.move_on_after(FIRST_ASSIGNMENT):
            while self._route is None:
                await trio.sleep(0.02)
            for reader in list(self.readers.values()):
                await reader.assigned.wait()
        self._assigned_once = True
        if self.readers and not any(reader.assigned.is_set() for reader in self.readers.values()):
            brokers = ", ".join(sorted({queue.broker for queue in self.readers}))
            raise BackendError(
                Refusal.UNAVAILABLE, f"no broker of topic {self.topic} answers ({brokers}). {self.complaint} {self.cure}".rstrip()
            )

    async def close(self) -> None:
        """See the port."""
        self.end()
        await self._gone.wait()

    def end(self) -> None:
        """Begin to close."""
        self._ended.set()

    # -- queues

    def _routed(self, route: Route | None) -> None:
        if route is None:
            self.complain(codes.TOPIC_NOT_EXIST, "the topic does not exist any more")
            return
        if self._route is None or route.readable != self._route.readable:
            self._route = route
            self.reassign()

    def reassign(self) -> None:
        """See the port."""
        if self._route is None or self._nursery is None:
            return
        mine = [queue for queue in self._route.readable if self._owns is None or self._owns(queue)]
        for queue in mine:
            if queue not in self.readers:
                reader = self.readers[queue] = Reader(queue, self, self._routes.brokers[queue.broker], self._assigned_once)
                self._nursery.start_soon(self._live, reader)
        for queue in set(self.readers).difference(mine):
            reader = self.readers[queue]
            if not reader.leaving:
                reader.stop()

    async def _live(self, reader: Reader) -> None:
        queue = reader.queue
        await guarded(f"queue {queue.topic}/{queue.broker}/{queue.id}", reader.run)
        if reader.leaving:
            with trio.move_on_after(_LAST_COMMIT):
                await self._commit_last([reader])
            self._drop(queue)
            self.reassign()  # it may be ours again

    def _drop(self, queue: Queue) -> None:
        reader = self.readers.pop(queue)
        if reader.assigned.is_set():
            try:
                self.listener.revoked(queue)
            except Exception:  # noqa: BLE001  logged with its traceback
                observe.note(observe.Fact.INTERNAL_ERROR, where="revoked", topic=self.topic, exc_info=True)

    # -- tags

    async def retag(self, tags: frozenset[str] | None) -> None:
        """See the port. Each queue's position stands still from here on until it was pulled with the new tags."""
        if tags != self.tags:
            self.tags = tags
            wider = None if tags is None or self.declared is None else self.declared | tags
            if wider != self.declared:
                self.declared = wider
                self.version = time.time_ns() // 1_000_000
                self._changed(self)
            for reader in self.readers.values():
                reader.interrupt()
        await trio.lowlevel.checkpoint()

    # -- offsets

    def committed(self, queue: Queue) -> int:
        """See the port."""
        reader = self.readers.get(queue)
        return -1 if reader is None else reader.committed

    async def _commit_for_ever(self) -> None:
        while True:
            await trio.sleep(_COMMIT)
            if self.group is not None:
                self._commit(trio.current_time())

    def _commit(self, now: float) -> None:
        first: set[str] = set()  # brokers that get their first offset now
        for reader in self.readers.values():
            broker = reader.queue.broker
            if reader.leaving or reader.tracker is None or broker in first:
                continue
            if broker not in self.committed_on:
                first.add(broker)
            reader.commit(now)

    async def _commit_last(self, readers: list[Reader]) -> None:
        async def commit(mine: list[Reader]) -> None:
            for reader in mine:
                try:
                    await reader.commit_last()
                except (Lost, Refused) as error:
                    observe.note(observe.Fact.BACKEND_RETRY, reason="last_commit_failed", topic=self.topic, detail=str(error))

        if self.group is not None:
            async with trio.open_nursery() as nursery:
                for broker in {reader.queue.broker for reader in readers}:
                    nursery.start_soon(commit, [reader for reader in readers if reader.queue.broker == broker])

    async def lag(self) -> dict[Queue, int]:
        """See the port."""
        ends: dict[Queue, int] = {}
        failures: list[str] = []

        async def ask(reader: Reader) -> None:
            try:
                end = await reader.end()
            except (Lost, Refused) as error:
                failures.append(str(error))
                return
            tracker = reader.tracker
            done = reader.committed if reader.committed >= 0 and self.group is not None else tracker.resolved if tracker else end
            ends[reader.queue] = max(0, end - done)

        with trio.move_on_after(_LAG) as deadline:
            async with trio.open_nursery() as nursery:
                for reader in list(self.readers.values()):
                    nursery.start_soon(ask, reader)
        if failures or deadline.cancelled_caught:
            raise BackendError(
                Refusal.UNAVAILABLE, f"the end of topic {self.topic} is not known: {'; '.join(failures) or 'no answer in time'}"
            )
        return ends

    # -- what goes wrong

    def stale(self, queue: Queue) -> None:
        """A broker says that it has no such queue."""
        self._routes.stale(queue)

    def complain(self, code: int, text: str) -> None:
        """Remember for `health` why reading does not work; code 0: it works."""
        if code == 0:
            self.complaint = ""
            return
        cure = _CURES.get(code, "").format(group=self.group, topic=self.topic)
        if text != self.complaint:
            observe.note(observe.Fact.CONSUMER_REFUSED, topic=self.topic, group=self.group, detail=text, cure=cure)
        self.complaint, self.cure = text, cure

    def reset(self, broker: str, queue_id: int, offset: int) -> None:
        """An operator's RESET_OFFSET for one queue."""
        reader = self.readers.get(Queue(self.topic, broker, queue_id))
        if reader is not None:
            reader.jump(offset)


def expression(tags: frozenset[str] | None) -> str:
    """`A || B`, or `*` for all."""
    return "*" if tags is None else " || ".join(sorted(tags))
