"""Sends: which queue a message belongs to, and where it goes while that queue's broker is down (design section 3, point 3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from zlib import crc32

import trio

from gateway import observe
from gateway.ports import BackendError, Message, Queue, Refusal, Stored

from .endpoints import guarded
from .lanes import Entry, Lane, Limits, refuse
from .messages import MessageError, encode_message
from .routes import Route, Routes


class _Detour:
    """A key's unfinished entries: where they are, and how many."""

    __slots__ = ("count", "lane")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.count = 0


class _Sender:
    """One topic: its lanes over the sorted list of all writable queues, and the detours.

    All unfinished entries of one key are in one lane, always; that keeps their order. While the broker of a lane is down, and after the
    list has changed, each key with unfinished entries has a detour, so that later ones follow it.
    """

    def __init__(self, topic: str, producer: Producer) -> None:
        self.topic = topic
        self.lanes: list[Lane] = []
        self.retired: list[Lane] = []  # lanes of removed queues, until they are empty
        self.detours: dict[int, _Detour] = {}
        self.unrouted: deque[Entry] = deque()
        self._producer = producer

    def take(self, entry: Entry) -> None:
        lanes = self.lanes
        if not lanes:
            self.unrouted.append(entry)
            return
        lane = lanes[entry.key % len(lanes)]
        if self.detours or lane.broker.down:
            self._place(entry, lane)
        else:
            lane.add(entry)

    def _place(self, entry: Entry, home: Lane) -> None:
        detour = self.detours.get(entry.key)
        lane = detour.lane if detour is not None else home if entry.ordered else self._live(home)
        if home.broker.down or detour is not None:
            self._count(entry.key, lane)
        lane.add(entry)

    def _count(self, key: int, lane: Lane) -> None:
        """One more unfinished entry of `key`, in `lane`."""
        detour = self.detours.get(key)
        if detour is None or detour.lane is not lane:
            detour = self.detours[key] = _Detour(lane)
        detour.count += 1

    def _live(self, home: Lane) -> Lane:
        """`home` or the next lane whose broker isn't down; `home` if there is none."""
        lanes = self.lanes
        if not home.broker.down:
            return home
        at = lanes.index(home)
        for step in range(1, len(lanes)):
            lane = lanes[(at + step) % len(lanes)]
            if not lane.broker.down:
                return lane
        return home

    def stray(self, lane: Lane) -> None:
        """The broker of `lane` is down, or its queue is no more: find other lanes for what waits there.

        Keys with an entry in flight, whose outcome is not known, stay as a whole; so do keys with an ordered one while there is hope."""
        if not self.lanes or not (lane.waiting or lane.inflight):
            return
        patient = set() if lane.removed else {entry.key for entry in lane.waiting if entry.ordered}
        for key in {entry.key for entry in (*lane.inflight, *lane.waiting)}:
            self.detours.pop(key, None)
        for entry in lane.inflight:
            self._count(entry.key, lane)  # so what waits behind it stays, too
        entries, lane.waiting = lane.waiting, deque()
        for entry in entries:
            detour = self.detours.get(entry.key)
            if detour is not None:
                target = detour.lane
            elif entry.key in patient:
                target = lane
            else:
                home = self.lanes[entry.key % len(self.lanes)]
                target = home if entry.ordered else self._live(home)
            self._count(entry.key, target)
            target.add(entry)

    def finished(self, batch: list[Entry]) -> None:
        self._producer.finished(batch)
        if self.detours:
            for entry in batch:
                detour = self.detours.get(entry.key)
                if detour is not None:
                    detour.count -= 1
                    if detour.count == 0:
                        del self.detours[entry.key]

    def routed(self, route: Route | None) -> None:
        """The route is known, or has changed; None: there is no such topic."""
        if route is None:
            self._refuse_all()
            return
        if [lane.queue for lane in self.lanes] != list(route.writable):
            self._rebuild(route)
        while self.unrouted and self.lanes:
            self.take(self.unrouted.popleft())

    def _refuse_all(self) -> None:
        """There is no such topic. What is in flight still finds its own end."""
        for lane in self.lanes:
            lane.removed = True
            lane.wake()
        self.retired += self.lanes
        self.lanes = []
        entries: list[Entry] = []
        for retired in self.retired:
            entries += retired.waiting
            retired.waiting.clear()
        entries += self.unrouted
        self.unrouted.clear()
        if not any(lane.inflight for lane in self.retired):
            self._producer.drop(self)
        if entries:
            observe.note(observe.Fact.TOPIC_MISSING, topic=self.topic, messages=len(entries))
        error = BackendError(
            Refusal.NO_SUCH_TOPIC, f"topic {self.topic} does not exist. Create it: mqadmin updateTopic -c <cluster> -t {self.topic}"
        )
        for entry in entries:
            refuse(entry.done, error)
        self.finished(entries)

    def _rebuild(self, route: Route) -> None:
        """Other queues than before. What is unfinished stays where it is, and its keys with it; what waits in a removed lane leaves."""
        self.detours = {}
        for lane in (*self.lanes, *self.retired):
            for entry in (*lane.inflight, *lane.waiting):
                self._count(entry.key, lane)
        old = {lane.queue: lane for lane in self.lanes}
        self.lanes = [old.pop(queue) if queue in old else self._producer.open_lane(queue, self) for queue in route.writable]
        for lane in old.values():
            lane.removed = True
            self.retired.append(lane)
        for lane in list(self.retired):
            self.stray(lane)
            lane.wake()

    def abandon(self) -> list[Entry]:
        """Everything unfinished, in the order of each key."""
        entries: list[Entry] = []
        for lane in (*self.lanes, *self.retired):
            entries += lane.inflight
            entries += lane.waiting
            lane.inflight = []
            lane.waiting.clear()
        entries += self.unrouted
        self.unrouted.clear()
        return entries


class Producer:
    """All topics' senders, and the bound of what waits in them."""

    def __init__(self, routes: Routes, group: str, wire: Callable[[str], str], backlog: int, backlog_bytes: int, batch: Limits) -> None:
        self.waiting = 0
        self.waiting_bytes = 0
        self.peak = 0
        self.stored = 0
        self._routes = routes
        self._group = group
        self._wire = wire
        self._backlog = backlog
        self._backlog_bytes = backlog_bytes
        self._batch = batch
        self._senders: dict[str, _Sender] = {}
        self._nursery: trio.Nursery | None = None
        self._later: list[Lane] = []
        self._closed = False
        self._eased = trio.Event()

    # -- taking messages

    def submit(self, message: Message, done: Stored) -> None:
        """See the port. A message that can't be encoded keeps its place, so that its `done` comes in the order of its key."""
        if self._closed:
            refuse(done, BackendError(Refusal.CLOSED, "the backend is closed"))
            return
        record: bytes | MessageError
        try:
            record = encode_message(message)
            self.waiting_bytes += len(record)
        except MessageError as error:
            record = error
        self.waiting += 1
        sender = self._senders.get(message.topic)
        if sender is None:
            sender = self._open(message.topic)
        sender.take(Entry(record, done, crc32(message.key.encode("utf-8", "surrogatepass")), message.ordered))

    def finished(self, batch: list[Entry]) -> None:
        """`done` of these was called."""
        if self.waiting > self.peak:
            self.peak = self.waiting
        self.waiting -= len(batch)
        self.stored += len(batch)
        for entry in batch:
            if isinstance(entry.record, bytes):
                self.waiting_bytes -= len(entry.record)
        if self._eased.statistics().tasks_waiting:
            eased, self._eased = self._eased, trio.Event()
            eased.set()

    @property
    def full(self) -> bool:
        return self.waiting >= self._backlog or self.waiting_bytes >= self._backlog_bytes

    async def room(self) -> None:
        """Until not `full`."""
        while self.full and not self._closed:
            await self._eased.wait()

    async def drain(self) -> None:
        """Until nothing waits."""
        while self.waiting and not self._closed:
            await self._eased.wait()

    # -- living

    async def run(self) -> None:
        """Serve until cancelled; what is unfinished then gets CLOSED."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for lane in self._later:
                    self._start(lane)
                self._later.clear()
                await trio.sleep_forever()
        finally:
            self._closed = True
            self._nursery = None
            error = BackendError(Refusal.CLOSED, "the backend was closed before the message was stored")
            for sender in self._senders.values():
                entries = sender.abandon()
                for entry in entries:
                    refuse(entry.done, error)
                self.finished(entries)
            self._eased.set()

    def _open(self, topic: str) -> _Sender:
        sender = self._senders[topic] = _Sender(topic, self)
        self._routes.watch(topic, sender.routed)
        return sender

    def drop(self, sender: _Sender) -> None:
        """Its topic does not exist; the next message for it asks again."""
        self._routes.unwatch(sender.topic, sender.routed)
        self._senders.pop(sender.topic, None)

    def open_lane(self, queue: Queue, sender: _Sender) -> Lane:
        """A lane that runs."""
        broker = self._routes.brokers[queue.broker]
        if self._brokers_changed not in broker.watchers:
            broker.watchers.append(self._brokers_changed)
        lane = Lane(queue, self._wire(queue.topic), self._group, broker, self._batch, sender.finished, sender.stray, self._routes.stale)
        if self._nursery is None:
            self._later.append(lane)
        else:
            self._start(lane)
        return lane

    def _start(self, lane: Lane) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._live, lane)

    async def _live(self, lane: Lane) -> None:
        await guarded(f"queue {lane.queue.topic}/{lane.queue.broker}/{lane.queue.id}", lane.run)
        sender = self._senders.get(lane.queue.topic)
        if sender is not None and lane in sender.retired:
            sender.retired.remove(lane)

    def _brokers_changed(self) -> None:
        """A broker is down or up: what waits for one that is down may go elsewhere."""
        for sender in self._senders.values():
            for lane in sender.lanes:
                if lane.broker.down:
                    sender.stray(lane)

    @property
    def retries(self) -> int:
        return sum(lane.retries for sender in self._senders.values() for lane in sender.lanes)
