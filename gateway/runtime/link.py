"""One live connection: reads packets, interprets them, and ends in one place (design section 3.1). Its parts: the sans-io connection, the
FIFO of unacknowledged PUBLISHes, the mailbox, and what all links share (`Shared`)."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from gateway import observe
from gateway.mqtt import encode
from gateway.mqtt.connection import Close, Connection
from gateway.mqtt.packets import (
    Connect,
    ConnectCode,
    Disconnect,
    Packet,
    PingReq,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Subscribe,
    Unsubscribe,
)
from gateway.mqtt.packets import Will as WillFields
from gateway.ports import BackendError, Refusal, StoreError, Will
from gateway.rules.presence import Reason
from gateway.runtime import system_topics
from gateway.runtime.access import ANYBODY, Access, Account, Refused
from gateway.runtime.mailbox import Bounds, Mailbox
from gateway.runtime.offline import Offline
from gateway.runtime.quota import Rate
from gateway.runtime.registry import Registry
from gateway.runtime.router import Router, Subscriber
from gateway.runtime.subscribing import Subscribing
from gateway.runtime.uplink import KEEP_ROUTES, Acknowledging, Fifo, Pending, TopicPath, Uplink
from gateway.settings import Settings

UNSTORED_WHEN_FULL = 32  # PUBLISHes of one link while the backend's backlog is full: a device with few in flight still gets its PINGRESP


class Transport(Protocol):
    """What a link needs of its socket (transports/)."""

    peer: str
    buffered: int

    def write(self, data: bytes) -> None: ...
    async def receive(self) -> bytes: ...
    def close(self) -> None: ...
    def shut(self) -> None: ...


@dataclass(slots=True)
class Shared:
    """What all links of this node use. now: ms since 1970. opened: links with or without a CONNECT."""

    settings: Settings
    access: Access
    registry: Registry
    router: Router
    uplink: Uplink
    offline: Offline
    subscribing: Subscribing
    rate: Rate
    bounds: Bounds
    now: Callable[[], int]
    opened: set[Link]


@dataclass(slots=True)
class Inbound:
    """A QoS 2 PUBLISH of the device whose PUBREL is missing. id: its UNIQ_KEY; stored: the backend has it."""

    id: str
    stored: bool


class Link(Acknowledging):
    """A connection from its first byte to its last."""

    __slots__ = (
        "_connection",
        "_fifo",
        "_paths",
        "_room",
        "_shared",
        "account",
        "channel_id",
        "claiming",
        "client_id",
        "client_ip",
        "epoch",
        "group",
        "inbound",
        "last",
        "left",
        "mailbox",
        "ordered",
        "paused",
        "persistent",
        "polite",
        "reason",
        "subscriber",
        "transport",
    )

    def __init__(self, shared: Shared, transport: Transport) -> None:
        self._shared = shared
        self.transport = transport
        limits = shared.settings.limits
        self._connection = Connection(max_packet=limits.packet_bytes, max_payload=limits.payload_bytes)
        self._fifo: Fifo | None = None  # made with the first PUBLISH
        self._paths: dict[str, TopicPath] | None = None
        self._room: trio.Event | None = None
        self.client_ip = transport.peer
        self.client_id = ""
        self.group = ""
        self.channel_id = ""
        self.account: Account = ANYBODY
        self.persistent = False
        self.ordered = False
        self.polite = False
        self.reason = Reason.CONNECTION_LOST
        self.claiming = False
        self.epoch = 0
        self.subscriber: Subscriber | None = None
        self.mailbox: Mailbox | None = None
        self.inbound: dict[int, Inbound] | None = None
        self.left: trio.Event | None = None
        self.last = 0.0  # when the last bytes came (monotonic seconds)
        self.paused = False  # not read because of back-pressure: its keep-alive stands still

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        """Until the connection is over, whoever ends it. No device can end the gateway."""
        self._shared.opened.add(self)
        try:
            packets = await self._admission()
            if packets is not None:
                await self._serve(packets)
        except Exception:  # noqa: BLE001 - logged with its traceback; one device can not end the gateway
            self.reason = Reason.INTERNAL_ERROR
            observe.note(observe.Fact.INTERNAL_ERROR, client_id=self.client_id, channel_id=self.channel_id, exc_info=True)
        except trio.Cancelled:
            if self.reason is Reason.CONNECTION_LOST:
                self.reason = Reason.SHUTDOWN
            raise
        finally:
            self._shared.opened.discard(self)
            if self.claiming:
                observe.note(
                    observe.Fact.DISCONNECTED, client_id=self.client_id, channel_id=self.channel_id, reason=self.reason, polite=self.polite
                )
                self._shared.registry.leave(self)
            self.transport.close()

    def kick(self, reason: Reason) -> None:
        """End the connection from outside; the first reason counts."""
        if self.reason is Reason.CONNECTION_LOST:
            self.reason = reason
        self.transport.close()
        self.transport.shut()
        if self._room is not None:
            self._room.set()

    @property
    def ending(self) -> bool:
        """Somebody has decided that it ends."""
        return self.reason is not Reason.CONNECTION_LOST

    def overdue(self, now: float) -> bool:
        """The keep-alive is over [MQTT-3.1.2-24]; never while we are the ones who don't read."""
        return not self.paused and self._connection.expired(now, self.last)

    # ------------------------------------------------------------ CONNECT

    async def _admission(self) -> Sequence[Packet | Close] | None:
        """Up to the CONNACK. The packets that came behind the CONNECT, or None when there is no session."""
        with trio.move_on_after(self._shared.settings.limits.connect_timeout_seconds):
            packets: Sequence[Packet | Close] = ()
            while not packets:
                data = await self.transport.receive()
                if not data:
                    return None
                packets = self._connection.feed(data)
            first = packets[0]
            if isinstance(first, Close):
                self._broken(first)
                return None
            assert isinstance(first, Connect)
            self.last = trio.current_time()
            return packets[1:] if await self._connect(first) else None
        self.reason = Reason.CONNECT_TIMEOUT
        observe.note(observe.Fact.CONNECTION_REFUSED, reason=self.reason, client_ip=self.client_ip)
        return None

    async def _connect(self, connect: Connect) -> bool:
        shared = self._shared
        admitted = shared.access.admit(connect, len(shared.registry.links))
        if isinstance(admitted, Refused):
            return self._refuse(admitted, connect.client_id)
        self.client_id = admitted.client_id.text
        self.group = admitted.client_id.group
        self.account = admitted.account
        self.persistent = not connect.clean
        self.channel_id = uuid.uuid4().hex
        will: Will | None = None
        if connect.will is not None:
            will = self._will(connect.will)
            if will is None:
                return self._refuse(
                    Refused(ConnectCode.NOT_AUTHORIZED, Reason.NOT_PERMITTED, "the will may not be published"), self.client_id
                )
        try:
            claimed = await shared.registry.claim(self, will)
        except StoreError as error:
            observe.note(observe.Fact.STORE_FAILED, operation="claim", client_id=self.client_id, error=str(error))
            return self._refuse(Refused(ConnectCode.UNAVAILABLE, Reason.UNAVAILABLE, "the store does not answer"), self.client_id)
        if self.ending:
            return False
        if claimed.inbound:
            self.inbound = {packet_id: Inbound(id, stored) for packet_id, (id, stored) in claimed.inbound.items()}
        mailbox = Mailbox(self.client_id, self.persistent, self.transport, shared.bounds, shared.offline, self._overflow)
        self.mailbox = mailbox
        self.transport.write(encode.connack(ConnectCode.ACCEPTED, claimed.present, self._connection.level))
        mailbox.resend(claimed.inflight)
        assert self.subscriber is not None
        self.subscriber.mailbox = mailbox
        observe.note(
            observe.Fact.CONNECTED,
            client_id=self.client_id,
            channel_id=self.channel_id,
            client_ip=self.client_ip,
            persistent=self.persistent,
        )
        if self.persistent:
            await shared.offline.start(mailbox, claimed.backlog)
        return True

    def _refuse(self, refused: Refused, client_id: str) -> bool:
        self.reason = refused.reason
        observe.note(
            observe.Fact.CONNECTION_REFUSED, reason=refused.reason, client_id=client_id, client_ip=self.client_ip, problem=refused.text
        )
        self.transport.write(encode.connack(refused.code, False, self._connection.level))
        return False

    def _will(self, will: WillFields) -> Will | None:
        """The same checks as for a PUBLISH (contract section 11)."""
        shared = self._shared
        path = shared.uplink.path(will.topic, self.client_id, not self.persistent)
        allowed = path is not None and shared.access.topic_fits(will.topic) and shared.access.may_publish(self.account, will.topic)
        if path is None or not allowed or len(will.payload) > shared.settings.limits.payload_bytes:
            return None
        return shared.uplink.will(path, will.payload, will.qos, will.retain, self.client_id)

    # ------------------------------------------------------------ packets

    async def _serve(self, packets: Sequence[Packet | Close]) -> None:
        transport, feed = self.transport, self._connection.feed
        heavy = self._shared.settings.limits.unstored_bytes
        while True:
            for packet in packets:
                kind = type(packet)
                if kind is Publish:
                    if self._shared.rate.limited and not await self._within_rate(packet):  # type: ignore[arg-type]
                        continue
                    self._publish(packet)  # type: ignore[arg-type]
                    fifo = self._fifo
                    if fifo is not None and (fifo.unstored >= UNSTORED_WHEN_FULL or fifo.unstored_bytes >= heavy) and self._over(fifo):
                        await self._pause(fifo)
                elif kind is PubAck:
                    self.mailbox.puback(packet.packet_id)  # type: ignore[union-attr]
                else:
                    await self._other(packet)
                if self.reason is not Reason.CONNECTION_LOST:
                    return
            packets = ()  # an idle link keeps nothing
            packet = None  # type: ignore[assignment]
            data = await transport.receive()
            if not data:
                return
            self.last = trio.current_time()
            packets = feed(data)

    async def _other(self, packet: Packet | Close) -> None:
        mailbox, transport = self.mailbox, self.transport
        assert mailbox is not None
        match packet:
            case PubRec():
                mailbox.pubrec(packet.packet_id)
            case PubRel():
                self._pubrel(packet.packet_id)
            case PubComp():
                mailbox.pubcomp(packet.packet_id)
            case PingReq():
                transport.write(encode.PINGRESP)
            case Subscribe():
                await self._shared.subscribing.subscribe(self, packet)
            case Unsubscribe():
                await self._shared.subscribing.unsubscribe(self, packet)
            case Disconnect():
                self.polite = True  # its will is discarded [MQTT-3.14.4-3]
                self.reason = Reason.CLIENT_DISCONNECT
            case Close():
                self._broken(packet)
            case _:
                raise AssertionError(f"the connection let {type(packet).__name__} pass")

    def _broken(self, close: Close) -> None:
        """The device broke the standard: this connection ends, nothing else [MQTT-4.8.0-1]."""
        self.reason = Reason.PROTOCOL_ERROR
        observe.note(
            observe.Fact.PROTOCOL_ERROR, reason=close.fault.value, client_id=self.client_id, client_ip=self.client_ip, problem=close.text
        )
        if close.answer:
            self.transport.write(close.answer)

    def deny(self, fact: observe.Fact, **fields: object) -> None:
        """A permission fails: the connection closes (contract section 3)."""
        self.reason = Reason.NOT_PERMITTED
        observe.note(fact, client_id=self.client_id, reason=self.reason, **fields)

    def enable_order(self) -> None:
        """Ordered sending, until the connection ends (contract section 5)."""
        self.ordered = True

    def _overflow(self) -> None:
        """A clean session that does not keep up is closed; never from inside the fan-out that noticed it."""
        if not self.ending:
            observe.note(observe.Fact.SLOW_CONSUMER_CLOSED, client_id=self.client_id, channel_id=self.channel_id)
            self.reason = Reason.SLOW_CONSUMER
            self.transport.shut()

    # ------------------------------------------------------------ PUBLISH

    def _publish(self, packet: Publish) -> None:
        shared, qos = self._shared, packet.qos
        paths = self._paths
        path = paths.get(packet.topic) if paths is not None else None
        if path is None:
            path = self._path(packet)
            if path is None:
                return
        if packet.oversize:
            self._too_large(packet)
            return
        uplink = shared.uplink
        backend = uplink.backend
        if not qos:
            if backend.full:
                observe.count(observe.Fact.QOS0_DROPPED)
                return
            self._store(path, packet, uplink.message(path, packet, self.client_id, self.ordered), _unacknowledged)
            return
        fifo = self._fifo
        if fifo is None:
            fifo = self._fifo = Fifo(self)
        if qos == 2:
            self._publish_twice(fifo, path, packet)
            return
        packet_id = packet.packet_id
        pending = fifo.add(encode.puback(packet_id), len(packet.payload), 2 if packet.retain else 1, packet_id)
        self._store(path, packet, uplink.message(path, packet, self.client_id, self.ordered), pending)

    def _store(self, path: TopicPath, packet: Publish, message: object, done: object) -> None:
        """To the backend, and to the retained messages when RETAIN is set; both before the acknowledgement."""
        uplink, fifo = self._shared.uplink, self._fifo
        if packet.retain and not path.route.p2p:
            kept = uplink.retained(packet.topic, packet.payload, packet.qos, message.id)  # type: ignore[attr-defined]
            uplink.store.retain(packet.topic, kept, done)  # type: ignore[arg-type]
        elif packet.retain and isinstance(done, Pending):
            done(True)
        if fifo is not None:
            fifo.submit(uplink.backend, message, done)  # type: ignore[arg-type]
        else:
            uplink.backend.submit(message, done)  # type: ignore[arg-type]

    def _publish_twice(self, fifo: Fifo, path: TopicPath, packet: Publish) -> None:
        """QoS 2, method A of clause 4.3.3: the packet id is known until PUBREL, so that a repeat is not stored again [MQTT-4.3.3-2]."""
        shared, packet_id = self._shared, packet.packet_id
        inbound = self.inbound
        if inbound is None:
            inbound = self.inbound = {}
        known = inbound.get(packet_id)
        if known is not None and known.stored:
            fifo.answer(encode.pubrec(packet_id))
            return
        if known is not None and fifo.holds(packet_id):
            return  # its PUBREC is under way
        message = shared.uplink.message(path, packet, self.client_id, self.ordered, known.id if known is not None else "")
        inbound[packet_id] = known or Inbound(message.id, False)
        pending = fifo.add(encode.pubrec(packet_id), len(packet.payload), 2 if packet.retain else 1, packet_id, 2)
        if self.persistent and known is None:
            opened = fifo.submit_after(shared.uplink.backend, message, pending)
            shared.uplink.store.inbound_put(self.client_id, self.epoch, packet_id, message.id, opened)
            if packet.retain:
                kept = shared.uplink.retained(packet.topic, packet.payload, 2, message.id)
                shared.uplink.store.retain(packet.topic, kept, pending)
        else:
            self._store(path, packet, message, pending)

    def _pubrel(self, packet_id: int) -> None:
        """The device will not send this PUBLISH again: forget its id, in the store first, then PUBCOMP [MQTT-4.3.3-2]."""
        known = self.inbound.pop(packet_id, None) if self.inbound else None
        answer = encode.pubcomp(packet_id)
        if known is None or not self.persistent:
            self.transport.write(answer)
            return

        def removed(result: object) -> None:
            if isinstance(result, StoreError):
                observe.note(observe.Fact.STORE_FAILED, operation="inbound_remove", client_id=self.client_id, error=str(result))
                self.kick(Reason.UNAVAILABLE)  # without PUBCOMP the device sends its PUBREL again
            else:
                self.transport.write(answer)

        self._shared.uplink.store.inbound_remove(self.client_id, self.epoch, packet_id, removed)

    def _path(self, packet: Publish) -> TopicPath | None:
        """Where the topic leads, after its checks; None: answered or refused."""
        shared, topic = self._shared, packet.topic
        if topic.startswith("$"):
            system_topics.publish(self, packet)
            if packet.qos:
                self.answer_in_turn(encode.puback(packet.packet_id) if packet.qos == 1 else encode.pubrec(packet.packet_id))
            return None
        path = shared.uplink.path(topic, self.client_id, not self.persistent)
        if path is None:
            self.deny(observe.Fact.PUBLISH_REFUSED, topic=topic, problem="its first level is no bridged topic")
            return None
        if not shared.access.topic_fits(topic):
            self.deny(observe.Fact.PUBLISH_REFUSED, topic=topic, problem="longer than limits.topic_length")
            return None
        if not shared.access.may_publish(self.account, topic):
            self.deny(observe.Fact.PUBLISH_REFUSED, topic=topic, problem="the account may not publish to it")
            return None
        paths = self._paths
        if paths is None:
            paths = self._paths = {}
        elif len(paths) >= KEEP_ROUTES:
            paths.clear()
        paths[topic] = path
        return path

    def answer_in_turn(self, answer: bytes) -> None:
        """Acknowledge a PUBLISH that goes nowhere, behind those before it [MQTT-4.6.0-2]."""
        if self._fifo is None:
            self.transport.write(answer)
        else:
            self._fifo.answer(answer)

    def _too_large(self, packet: Publish) -> None:
        """Over limits.payload_bytes: dropped but acknowledged, else it comes again for ever (contract section 11)."""
        observe.note(observe.Fact.PAYLOAD_TOO_LARGE, client_id=self.client_id, topic=packet.topic, size=packet.oversize)
        if packet.qos:
            self.answer_in_turn(encode.puback(packet.packet_id) if packet.qos == 1 else encode.pubrec(packet.packet_id))

    # ------------------------------------------------------------ acknowledgements and back-pressure

    def acknowledge(self, answer: bytes, pending: Pending | None) -> None:
        """PUBACK or PUBREC: the message is stored."""
        if pending is not None and pending.qos == 2 and self.inbound is not None:
            known = self.inbound.get(pending.packet_id)
            if known is not None:
                known.stored = True
        self.transport.write(answer)

    def unstorable(self, pending: Pending) -> None:
        """Too large or forbidden characters: taken, else it comes again for ever; anything else closes, and nothing is acknowledged."""
        failure = pending.failure
        reason = failure.refusal if isinstance(failure, BackendError) else "store_failed"
        if reason is not Refusal.CLOSED:
            observe.note(observe.Fact.UPLINK_REFUSED, client_id=self.client_id, reason=reason, error=str(failure))
        if reason in (Refusal.TOO_LARGE, Refusal.INVALID):
            self.acknowledge(pending.answer, pending)
        else:
            self.kick(Reason.UNAVAILABLE)

    def settled(self) -> None:
        """Room again?"""
        room = self._room
        if room is not None and self._fifo is not None and not self._over(self._fifo):
            room.set()

    def _over(self, fifo: Fifo) -> bool:
        limits = self._shared.settings.limits
        return (
            fifo.unstored >= limits.unstored_count
            or fifo.unstored_bytes >= limits.unstored_bytes
            or (self._shared.uplink.backend.full and fifo.unstored >= UNSTORED_WHEN_FULL)
        )

    async def _pause(self, fifo: Fifo) -> None:
        """Back-pressure (design section 3.6): this link is not read, and its keep-alive stands still, until enough is stored."""
        self.paused = True
        try:
            while self._over(fifo) and not self.ending:
                self._room = trio.Event()
                await self._room.wait()
        finally:
            self._room = None
            self.paused = False
            self.last = trio.current_time()

    async def _within_rate(self, packet: Publish) -> bool:
        """The TPS quota: QoS 0 is dropped, the others wait (contract section 11)."""
        if packet.qos:
            self.paused = True
            try:
                await self._shared.rate.wait()
            finally:
                self.paused = False
                self.last = trio.current_time()
            return True
        if self._shared.rate.take():
            return True
        observe.note(observe.Fact.QUOTA_REACHED, reason="tps")
        return False


def _unacknowledged(_result: object) -> None:
    """QoS 0: nobody waits for the answer."""


Accept = Callable[[Transport], Awaitable[None]]
