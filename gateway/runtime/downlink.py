"""From backend messages to devices: one consumer per bridged parent topic, and when its tag filter is widened to devices' own messages
(contract section 5, design section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import trio

from gateway import observe
from gateway.ports import Backend, BackendError, Consumer, Health, Queue, Received, Refusal, Retained, Store, StoreError
from gateway.rules import envelope
from gateway.runtime.outbound import Outbound
from gateway.runtime.peers import Peers
from gateway.runtime.quota import Rate
from gateway.runtime.router import SLICE_SECONDS, Router
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.runtime.cluster.company import Company
    from gateway.runtime.cluster.reach import Whereabouts

NARROW_SECONDS = 60.0  # the wider filter goes so long after the last filter that needed it
CLOSE_SECONDS = 5.0
BRIDGING_SECONDS = 0.2  # between two looks whether another node has bridged a topic for the first time
RETRY_FIRST, RETRY_MOST = 0.5, 30.0


class Parent:
    """One bridged topic. ready: set when it is consumed; wide: devices' own messages are pulled too; old: per queue, where it ended then:
    what
    lies before was stored when nobody listened."""

    __slots__ = ("consumer", "idle_since", "lock", "name", "old", "problem", "ready", "version", "wide")

    def __init__(self, name: str) -> None:
        self.name = name
        self.consumer: Consumer | None = None
        self.ready = trio.Event()
        self.lock = trio.Lock()
        self.wide = False
        self.version = 0  # in a cluster: of its word on `wide`
        self.idle_since = 0.0
        self.problem: Health | None = None
        self.old: dict[Queue, int] = {}


class Downlink:
    """All bridged parents of this node. default_topic: "" or the topic of everything that is not bridged by name."""

    def __init__(self, backend: Backend, store: Store, router: Router, peers: Peers, settings: Settings, rate: Rate) -> None:
        bridge, limits = settings.bridge, settings.limits
        self._backend = backend
        self._store = store
        self._router = router
        self._peers = peers
        self._rate = rate
        self.company: Company | None = None  # in a cluster
        self.default_topic = bridge.default_topic
        self._downlink_tag, self._p2p_tag, self._uplink_tag = bridge.downlink_tag, bridge.p2p_tag, bridge.uplink_tag
        self._instance = settings.gateway.instance
        self._group = f"GID_MQTTGW_{settings.gateway.instance}"
        self._create_queues = settings.backend.create_queues if bridge.create_topics else 0
        self._largest_packet = max(limits.packet_bytes, limits.payload_bytes)
        self.assigned: set[Queue] = set()  # what this node reads
        self._read: dict[Queue, int] = {}  # per queue, up to where devices' messages have come back
        self.bridged = frozenset(bridge.topics)
        names = dict.fromkeys([*bridge.topics, *([bridge.default_topic] if bridge.default_topic else [])])
        self.parents = {name: Parent(name) for name in names}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Each parent begins as soon as the backend lets it."""
        try:
            async with trio.open_nursery() as nursery:
                for parent in self.parents.values():
                    nursery.start_soon(self._begin, parent)
                if self.company is None:
                    nursery.start_soon(self._narrow)
                self._peers.watch(self._reassign)
                task_status.started()
                await trio.sleep_forever()
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await self.close()

    async def close(self) -> None:
        """Consume no more; what is resolved is committed."""
        async with trio.open_nursery() as closing:
            for parent in self.parents.values():
                if parent.consumer is not None:
                    closing.start_soon(parent.consumer.close)

    # ------------------------------------------------------------ parents

    async def _begin(self, parent: Parent) -> None:
        """Consume `parent`; repeated with backoff until it works."""
        pause = RETRY_FIRST
        while True:
            try:
                await self._bridge(parent)
            except BackendError as error:
                missing = error.refusal is Refusal.NO_SUCH_TOPIC
                fact = observe.Fact.TOPIC_MISSING if missing else observe.Fact.BACKEND_UNAVAILABLE
                observe.note(fact, topic=parent.name, error=str(error))
                parent.problem = Health(f"topic {parent.name}", False, str(error), "create the topic" if missing else "start the server")
            except StoreError as error:
                observe.note(observe.Fact.STORE_FAILED, operation="mark", error=str(error))
                parent.problem = Health(f"topic {parent.name}", False, str(error), "mend the store")
            else:
                parent.problem = None
                parent.ready.set()
                observe.log.info("topic_bridged", topic=parent.name, group=self._group, devices_listen=parent.wide)
                return
            await trio.sleep(pause)
            pause = min(pause * 2, RETRY_MOST)

    async def bridged_all(self) -> None:
        """Wait until every parent is consumed."""
        for parent in self.parents.values():
            await parent.ready.wait()

    async def _bridge(self, parent: Parent) -> None:
        """Design section 4: the first bridging commits the end, so that a topic's history never floods the devices."""
        if await self._backend.topic(parent.name) is None:
            if not self._create_queues:
                raise BackendError(Refusal.NO_SUCH_TOPIC, f"topic {parent.name!r} does not exist: create it, or set bridge.create_topics")
            await self._backend.create_topic(parent.name, self._create_queues)
        await self.alone()
        mark = f"bridged/{self._group}/{parent.name}"
        while await self._store.mark(mark) is None:
            if self._peers.owner(mark) in ("", self._peers.node):  # "": nobody serves yet
                await self._backend.commit_end(parent.name, self._group)
                await self._store.set_mark(mark, "1")
            else:
                await trio.sleep(BRIDGING_SECONDS)
        # stored sessions may want devices' messages from before this start: wide at once where one listens
        owns = None
        if self.company is None:
            parent.wide = self._listened(parent)
        else:
            parent.wide, parent.version = await self.company.directory.look(parent.name)
            owns = self._peers.owns_queue
        parent.consumer = await self._backend.consume(parent.name, self._tags(parent.wide), self._group, Arrivals(self, parent), owns=owns)

    def _reassign(self) -> None:
        """The nodes that live are others now."""
        for parent in self.parents.values():
            if parent.consumer is not None:
                parent.consumer.reassign()

    async def alone(self) -> None:
        """With an embedded store no second gateway may be in this instance: each would take messages from the other (design section 5).
        Raises BackendError."""
        if self._store.cluster is not None:
            return
        others = await self._backend.members(self._group)
        if others:
            text = f"another gateway consumes in group {self._group}: {', '.join(others)}; stop it, or set another gateway.instance here"
            raise BackendError(Refusal.NOT_PERMITTED, text)

    def _tags(self, wide: bool) -> frozenset[str]:
        tags = {self._downlink_tag, self._p2p_tag}
        return frozenset(tags | {self._uplink_tag} if wide else tags)

    def touched_by(self, filter: str) -> list[Parent]:
        """The parents below which `filter` can match; none: it is no filter of a bridged topic."""
        first = filter.split("/", 1)[0]
        if first in ("#", "+"):
            return list(self.parents.values())
        name = first if first in self.bridged else self.default_topic
        return [self.parents[name]] if name else []

    def _listened(self, parent: Parent) -> bool:
        if parent.name == self.default_topic:
            return self._router.listens_outside(self.bridged - {parent.name})
        return self._router.listens_below(parent.name)

    async def widen(self, parents: Iterable[Parent]) -> None:
        """Returns when each of `parents` is pulled with devices' own messages: after it a SUBACK may leave."""
        for parent in parents:
            await parent.ready.wait()
            if self.company is not None:
                continue  # the index decides (runtime/cluster/breadth.py)
            parent.idle_since = 0.0
            if parent.wide:
                continue
            async with parent.lock:
                if not parent.wide:
                    assert parent.consumer is not None
                    await parent.consumer.retag(self._tags(True))
                    await self._age(parent, parent.consumer)
                    parent.wide = True

    async def set_wide(self, parent: Parent, wide: bool, version: int) -> None:
        """In a cluster: pull `parent` as its word of this version says."""
        async with parent.lock:
            if version > parent.version and parent.consumer is not None:
                if wide != parent.wide:
                    await parent.consumer.retag(self._tags(wide))
                    if wide:
                        await self._age(parent, parent.consumer)
                    parent.wide = wide
                parent.version = version

    async def _age(self, parent: Parent, consumer: Consumer) -> None:
        """The position of a narrow pull lags behind the end; what lies between is older than the subscription that widens it."""
        try:
            lag = await consumer.lag()
        except BackendError as error:  # then old messages may reach the new subscription: more than is due, never less
            observe.note(observe.Fact.BACKEND_UNAVAILABLE, topic=parent.name, error=str(error))
        else:
            parent.old = {queue: consumer.committed(queue) + behind for queue, behind in lag.items()}
            self._read.update(parent.old)

    async def _narrow(self) -> None:
        """Stop pulling devices' own messages where nobody listens any more."""
        while True:
            await trio.sleep(NARROW_SECONDS / 6)
            now = trio.current_time()
            for parent in self.parents.values():
                if parent.consumer is None or not parent.wide:
                    continue
                if self._listened(parent) or parent.lock.locked():
                    parent.idle_since = 0.0
                elif not parent.idle_since:
                    parent.idle_since = now
                elif now - parent.idle_since >= NARROW_SECONDS:
                    async with parent.lock:
                        parent.wide = False
                        parent.idle_since = 0.0
                        await parent.consumer.retag(self._tags(False))

    def on_its_way(self, stored: Mapping[Queue, int], parents: Iterable[Parent]) -> dict[Queue, int]:
        """Of what this node has stored in `parents` (newest offset per queue), the ends of the queues that are not read back so far."""
        names = {parent.name for parent in parents}
        return {queue: newest + 1 for queue, newest in stored.items() if queue.topic in names and newest >= self._read.get(queue, 0)}

    def committed(self, queue: Queue) -> int:
        """The offset committed for `queue`, or -1 when it is not ours."""
        parent = self.parents.get(queue.topic)
        return parent.consumer.committed(queue) if parent is not None and parent.consumer is not None else -1

    def health(self) -> list[Health]:
        """The parents that are not consumed yet."""
        return [parent.problem for parent in self.parents.values() if parent.problem is not None]

    # ------------------------------------------------------------ messages

    async def arrived(self, parent: Parent, messages: list[Received]) -> None:
        """A batch of one queue."""
        topic = parent.name
        if messages:
            self._read[messages[0].queue] = messages[-1].offset + 1
        old = parent.old.get(messages[0].queue, 0) if parent.old and messages else 0
        readable = [(found, received) for received in messages if (found := self._readable(topic, received)) is not None]
        whereabouts: Whereabouts | None = None
        if self.company is not None:
            await self.company.membership.sure()
            whereabouts = await self.company.reach.prepare(topic, [found for found, _ in readable])
        until = trio.current_time() + SLICE_SECONDS
        for found, received in readable:
            if received.offset < old and received.tag == self._uplink_tag:
                received.replayed = True
            await self._deliver(found, received, whereabouts)
            if trio.current_time() > until:
                await trio.lowlevel.checkpoint()
                until = trio.current_time() + SLICE_SECONDS
        if self._rate.limited:
            await self._rate.wait(len(messages))

    def _readable(self, topic: str, received: Received) -> envelope.Downlink | None:
        """The message for devices; None: it is none."""
        if received.tag != self._downlink_tag and received.properties.get(envelope.GATEWAY) != self._instance:
            return None  # a server app's message with a device's tag, or of another instance: never for devices (contract section 5)
        found = envelope.downlink(topic, received.tag, received.properties, default_topic=self.default_topic)
        if isinstance(found, envelope.Unroutable):
            observe.note(observe.Fact.MESSAGE_UNROUTABLE, reason=found, topic=topic, message_id=received.id)
            return None
        if len(received.body) > self._largest_packet:
            observe.note(observe.Fact.MESSAGE_UNROUTABLE, reason="too_large", topic=topic, message_id=received.id)
            return None
        return found

    async def _deliver(self, found: envelope.Downlink, received: Received, whereabouts: Whereabouts | None) -> None:
        if received.replayed and not found.qos:
            return
        message = Outbound(found.shown, received.body, found.qos, received.id, received.stored_at, received)
        company = self.company
        if found.p2p:
            message.volatile = not found.sender_persistent
            if company is None or whereabouts is None:
                self._router.to_one(found.p2p, message)
            else:
                company.reach.to_one(found.p2p, message, whereabouts)
            return
        if found.retain and received.tag == self._downlink_tag:
            self._retain(found, received)
        if company is not None and whereabouts is not None:
            company.reach.fan_out(found.topic, message, received.replayed, whereabouts)
        await self._router.fan_out(found.topic, message, received.replayed)

    def _retain(self, found: envelope.Downlink, received: Received) -> None:
        """A server app's retained message; a device's was kept before its acknowledgement."""
        keep = Retained(found.topic, received.body, found.qos, received.id, received.stored_at) if received.body else None
        received.hold()
        self._store.retain(found.topic, keep, _retained(received, found.topic))


def _retained(received: Received, topic: str) -> Callable[[Any], None]:
    def done(result: Any) -> None:
        if isinstance(result, StoreError):
            observe.note(observe.Fact.STORE_FAILED, operation="retain", topic=topic, error=str(result))
        elif result is False:
            observe.note(observe.Fact.RETAINED_REFUSED, topic=topic)
        received.release()

    return done


class Arrivals:
    """The listener of one parent."""

    __slots__ = ("_downlink", "_parent")

    def __init__(self, downlink: Downlink, parent: Parent) -> None:
        self._downlink = downlink
        self._parent = parent

    def assigned(self, queue: Queue, position: int) -> None:
        self._downlink.assigned.add(queue)
        observe.log.debug("queue_assigned", queue=f"{queue.topic}/{queue.broker}/{queue.id}", position=position)

    def revoked(self, queue: Queue) -> None:
        self._downlink.assigned.discard(queue)
        observe.log.debug("queue_revoked", queue=f"{queue.topic}/{queue.broker}/{queue.id}")

    async def received(self, messages: list[Received]) -> None:
        await self._downlink.arrived(self._parent, messages)
