"""A device's PUBLISHes on one connection: checks, routing, hand-over to the backend, acknowledgements and back-pressure (clauses 3.3.4,
4.3;
contract sections 5 and 11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from gateway import observe
from gateway.mqtt import encode
from gateway.mqtt.packets import Publish
from gateway.ports import BackendError, Message, Refusal, StoreError
from gateway.rules.presence import Reason
from gateway.runtime import system_topics
from gateway.runtime.uplink import KEEP_ROUTES, Acknowledging, Fifo, Pending, TopicPath, Uplink

if TYPE_CHECKING:
    from gateway.runtime.link import Link, Shared

UNSTORED_WHEN_FULL = 32  # PUBLISHes of one link while the backend's backlog is full: a device with few in flight still gets its PINGRESP


class Inbound:
    """A QoS 2 PUBLISH of the device whose PUBREL is missing. id: its UNIQ_KEY; stored: the backend has it; underway: it is on its way
    there.
    waiting: PUBLISHes that repeat it, perhaps on a newer connection, and are answered when it is stored."""

    __slots__ = ("id", "stored", "underway", "waiting")

    def __init__(self, id: str, stored: bool) -> None:
        self.id = id
        self.stored = stored
        self.underway = False
        self.waiting: list[Pending] | None = None

    def settle(self, pending: Pending) -> None:
        """The backend has answered the attempt `pending`."""
        self.underway = False
        self.stored = pending.failure is None
        waiting, self.waiting = self.waiting or (), None
        for repeat in waiting:
            repeat(pending.failure or True)


class Inlet(Acknowledging):
    """Made with a link's first PUBLISH: a device that only listens has none. ordered: it asked for ordered sending; inbound: its QoS 2
    ids."""

    __slots__ = ("_fifo", "_heavy", "_link", "_paths", "_room", "_shared", "_uplink", "inbound", "ordered")

    def __init__(self, link: Link, shared: Shared, inbound: dict[int, Inbound]) -> None:
        self._link = link
        self._shared = shared
        self._uplink: Uplink = shared.uplink
        self._heavy = shared.settings.limits.unstored_bytes
        self._fifo = Fifo(self, shared.uplink.stored)
        self._paths: dict[str, TopicPath] = {}
        self._room: trio.Event | None = None
        self.inbound = inbound
        self.ordered = False

    # ------------------------------------------------------------ PUBLISH

    def publish(self, packet: Publish) -> None:
        """Take it: to the backend, or answered in its turn, or the link ends."""
        path = self._paths.get(packet.topic)
        if path is None:
            path = self._path(packet)
            if path is None:
                return
        if packet.oversize:
            self._too_large(packet)
            return
        uplink, fifo, qos = self._uplink, self._fifo, packet.qos
        client_id = self._link.client_id
        if qos == 1:
            pending = fifo.add(encode.puback(packet.packet_id), len(packet.payload))
            self._submit(path, packet, uplink.message(path, packet, client_id, self.ordered), pending)
        elif qos:
            self._publish_once(path, packet)
        elif uplink.backend.full:
            observe.count(observe.Fact.QOS0_DROPPED)
        else:
            self._submit(path, packet, uplink.message(path, packet, client_id, self.ordered), None)

    def _submit(self, path: TopicPath, packet: Publish, message: Message, pending: Pending | None) -> None:
        """To the backend, behind what waits at the gate; to the retained messages too when RETAIN is set."""
        if packet.retain:
            self._retain(path, packet, message.id, pending)
        self._fifo.submit(self._uplink.backend, message, pending or _unacknowledged)

    def _retain(self, path: TopicPath, packet: Publish, id: str, pending: Pending | None) -> None:
        """Kept before the acknowledgement [MQTT-3.3.1-5]; a P2P message has no topic that anybody could subscribe."""
        if path.route.p2p:
            return
        if pending is not None:
            pending.waits += 1
        uplink, topic = self._uplink, packet.topic

        def kept(result: object) -> None:
            if result is False:
                observe.note(observe.Fact.RETAINED_REFUSED, topic=topic)
            elif isinstance(result, StoreError):
                observe.note(observe.Fact.STORE_FAILED, operation="retain", topic=topic, error=str(result))
            if pending is not None:
                pending(result)

        uplink.store.retain(topic, uplink.retained(topic, packet.payload, packet.qos, id), kept)

    def _publish_once(self, path: TopicPath, packet: Publish) -> None:
        """QoS 2, method A of clause 4.3.3: the id is known until PUBREL, so that a repeat is not stored again [MQTT-4.3.3-2]."""
        fifo, uplink, link = self._fifo, self._uplink, self._link
        packet_id = packet.packet_id
        answer = encode.pubrec(packet_id)
        known = self.inbound.get(packet_id)
        if known is not None and known.stored:
            fifo.answer(answer)
            return
        if known is not None and known.underway:
            if not fifo.holds(known):  # it came on an older connection
                known.waiting = [*(known.waiting or ()), fifo.add(answer, 0)]
            return
        message = uplink.message(path, packet, link.client_id, self.ordered, known.id if known is not None else "")
        first = known is None
        known = known or Inbound(message.id, False)
        self.inbound[packet_id] = known
        known.underway = True
        pending = fifo.add(answer, len(packet.payload), known)
        if first and link.persistent:
            if packet.retain:
                self._retain(path, packet, message.id, pending)
            opened = fifo.submit_after(uplink.backend, message, pending)
            uplink.store.inbound_put(link.client_id, link.epoch, packet_id, message.id, opened)
        else:
            self._submit(path, packet, message, pending)

    def pubrel(self, packet_id: int) -> None:
        """The device will not send this PUBLISH again: forget its id, in the store first, then PUBCOMP [MQTT-4.3.3-2]."""
        link = self._link
        known = self.inbound.pop(packet_id, None)
        answer = encode.pubcomp(packet_id)
        if known is None or not link.persistent:
            link.transport.write(answer)
            return

        def removed(result: object) -> None:
            if isinstance(result, StoreError):
                observe.note(observe.Fact.STORE_FAILED, operation="inbound_remove", client_id=link.client_id, error=str(result))
                link.kick(Reason.UNAVAILABLE)  # without PUBCOMP the device sends its PUBREL again
            else:
                link.transport.write(answer)

        self._uplink.store.inbound_remove(link.client_id, link.epoch, packet_id, removed)

    # ------------------------------------------------------------ checks

    def _path(self, packet: Publish) -> TopicPath | None:
        """Where the topic leads, after its checks; None: answered or refused."""
        access, link, topic = self._shared.access, self._link, packet.topic
        if topic.startswith("$"):
            system_topics.publish(link, self, self._shared.offline.pulling, packet)
            self._answer(packet)
            return None
        path = self._uplink.path(topic, link.client_id, not link.persistent)
        problem = ""
        if path is None:
            problem = "its first level is no bridged topic"
        elif not access.topic_fits(topic):
            problem = "longer than limits.topic_length"
        elif not access.may_publish(link.account, topic):
            problem = "the account may not publish to it"
        if problem:
            link.deny(observe.Fact.PUBLISH_REFUSED, topic=topic, problem=problem)
            return None
        assert path is not None
        if len(self._paths) >= KEEP_ROUTES:
            self._paths.clear()
        self._paths[topic] = path
        return path

    def _answer(self, packet: Publish) -> None:
        """Acknowledge a PUBLISH that goes nowhere, behind those before it [MQTT-4.6.0-2]."""
        if packet.qos:
            self._fifo.answer(encode.puback(packet.packet_id) if packet.qos == 1 else encode.pubrec(packet.packet_id))

    def _too_large(self, packet: Publish) -> None:
        """Over limits.payload_bytes: dropped but acknowledged, else it comes again for ever (contract section 11)."""
        observe.note(observe.Fact.PAYLOAD_TOO_LARGE, client_id=self._link.client_id, topic=packet.topic, size=packet.oversize)
        self._answer(packet)

    # ------------------------------------------------------------ acknowledgements and back-pressure

    def acknowledge(self, answer: bytes, pending: Pending | None) -> None:
        """PUBACK or PUBREC: the message is stored."""
        self._link.transport.write(answer)

    def unstorable(self, pending: Pending) -> None:
        """Too large or forbidden characters: taken, else it comes again for ever; anything else closes, and nothing is acknowledged."""
        failure, link = pending.failure, self._link
        reason = failure.refusal if isinstance(failure, BackendError) else "store_failed"
        if reason is not Refusal.CLOSED:
            observe.note(observe.Fact.UPLINK_REFUSED, client_id=link.client_id, reason=reason, error=str(failure))
        if reason in (Refusal.TOO_LARGE, Refusal.INVALID):
            if pending.inbound is not None:
                pending.inbound.stored = True
            link.transport.write(pending.answer)
        else:
            link.kick(Reason.UNAVAILABLE)

    def settled(self) -> None:
        """Room again?"""
        room = self._room
        if room is not None and not self.over:
            room.set()

    @property
    def over(self) -> bool:
        """So much is unstored that the link is not read (design section 3.6)."""
        fifo = self._fifo
        unstored = fifo.unstored
        if unstored < UNSTORED_WHEN_FULL:
            return fifo.unstored_bytes >= self._heavy
        limits = self._shared.settings.limits
        return unstored >= limits.unstored_count or fifo.unstored_bytes >= self._heavy or self._uplink.backend.full

    async def pause(self) -> None:
        """Back-pressure: this link is not read, and its keep-alive stands still, until enough is stored."""
        link = self._link
        link.paused = True
        try:
            while self.over and not link.ending:
                self._room = trio.Event()
                await self._room.wait()
        finally:
            self._room = None
            link.paused = False
            link.last = trio.current_time()

    async def settle(self, seconds: float) -> None:
        """Wait until what came before is stored, `seconds` at most: packets of one connection take effect in order."""
        with trio.move_on_after(seconds):
            while self._fifo.unstored and not self._link.ending:
                await trio.sleep(0.001)

    def wake(self) -> None:
        """The link ends: a `pause` is over."""
        if self._room is not None:
            self._room.set()

    async def within_rate(self, packet: Publish) -> bool:
        """The TPS quota: QoS 0 is dropped, the others wait (contract section 11)."""
        link = self._link
        if packet.qos:
            link.paused = True
            try:
                await self._shared.rate.wait()
            finally:
                link.paused = False
                link.last = trio.current_time()
            return True
        if self._shared.rate.take():
            return True
        observe.note(observe.Fact.QUOTA_REACHED, reason="tps")
        return False


def _unacknowledged(_result: object) -> None:
    """QoS 0: nobody waits for the answer."""
