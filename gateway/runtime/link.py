"""One live connection: reads packets, interprets them, and ends in one place (design section 3.1). Its parts: the sans-io connection, the
FIFO of unacknowledged PUBLISHes, the mailbox, and what all links share (`Shared`)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
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
from gateway.ports import Claimed, StoreError, Will
from gateway.rules.presence import Reason
from gateway.runtime.access import ANYBODY, Access, Account, Refused
from gateway.runtime.inlet import Inlet
from gateway.runtime.mailbox import Bounds, Mailbox
from gateway.runtime.offline import Offline, Watch
from gateway.runtime.quota import Rate
from gateway.runtime.registry import Registry
from gateway.runtime.router import Router, Subscriber
from gateway.runtime.subscribing import Subscribing
from gateway.runtime.uplink import Uplink
from gateway.settings import Settings

CLAIM_SECONDS = 30.0  # how long a CONNECT waits for the store while a whole fleet comes back
GOODBYE_SECONDS = 2.0  # how long a device that said DISCONNECT waits for a store that does not answer


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
    """What all links of this node use. opened: links with or without a CONNECT."""

    settings: Settings
    access: Access
    registry: Registry
    router: Router
    uplink: Uplink
    offline: Offline
    subscribing: Subscribing
    rate: Rate
    bounds: Bounds
    opened: set[Link]


class Link:
    """A connection from its first byte to its last."""

    __slots__ = (
        "_connection",
        "_shared",
        "account",
        "channel_id",
        "claiming",
        "client_id",
        "client_ip",
        "epoch",
        "inlet",
        "last",
        "left",
        "mailbox",
        "node",
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
        self.client_ip = transport.peer
        self.client_id = ""
        self.channel_id = ""
        self.account: Account = ANYBODY
        self.persistent = False
        self.polite = False
        self.reason = Reason.CONNECTION_LOST
        self.claiming = False
        self.node = ""  # under which name this node made the claim
        self.epoch = 0
        self.subscriber: Subscriber | None = None
        self.mailbox: Mailbox | None = None
        self.inlet: Inlet | None = None  # made with the first PUBLISH
        self.left: trio.Event | None = None
        self.last = 0.0  # when the last packet came (monotonic seconds)
        self.paused = False  # not read because of back-pressure: its keep-alive stands still

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        """Until the connection is over, whoever ends it. No device can end the gateway."""
        self._shared.opened.add(self)
        try:
            packets = await self._admission()
            if packets is not None:
                await self._serve(packets)
            if self.polite:
                await self._say_goodbye()
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

    async def _say_goodbye(self) -> None:
        """The device sees the end of the connection when its DISCONNECT is durable: a crash after that publishes no will
        [MQTT-3.14.4-3]."""
        self._shared.registry.leave(self)
        assert self.left is not None
        with trio.move_on_after(GOODBYE_SECONDS):
            await self.left.wait()

    def kick(self, reason: Reason) -> None:
        """End the connection from outside; the first reason counts."""
        if self.reason is Reason.CONNECTION_LOST:
            self.reason = reason
        self.transport.close()
        self.transport.shut()
        if self.inlet is not None:
            self.inlet.wake()

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
        packets: Sequence[Packet | Close] = ()
        with trio.move_on_after(self._shared.settings.limits.connect_timeout_seconds) as patience:
            while not packets:
                data = await self.transport.receive()
                if not data:
                    return None
                packets = self._connection.feed(data)
        if patience.cancelled_caught:
            self.reason = Reason.CONNECT_TIMEOUT
            observe.note(observe.Fact.CONNECTION_REFUSED, reason=self.reason, client_ip=self.client_ip)
            return None
        first = packets[0]
        if isinstance(first, Close):
            self._broken(first)
            return None
        assert isinstance(first, Connect)
        self.paused = True  # not read until the session is here
        try:
            return packets[1:] if await self._connect(first) else None
        finally:
            self.paused = False
            self.last = trio.current_time()

    async def _connect(self, connect: Connect) -> bool:
        shared = self._shared
        admitted = shared.access.admit(connect, len(shared.registry.links))
        if isinstance(admitted, Refused):
            return self._refuse(admitted, connect.client_id)
        self.client_id = admitted.client_id.text
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
            with trio.fail_after(CLAIM_SECONDS):
                claimed, watch = await shared.registry.claim(self, will)
        except (StoreError, trio.TooSlowError) as error:
            observe.note(observe.Fact.STORE_FAILED, operation="claim", client_id=self.client_id, error=str(error) or "too slow")
            return self._refuse(Refused(ConnectCode.UNAVAILABLE, Reason.UNAVAILABLE, "the store does not answer"), self.client_id)
        try:
            if not self.ending:
                await self._begin(claimed, watch)
        except StoreError as error:
            observe.note(observe.Fact.STORE_FAILED, operation="offline_get", client_id=self.client_id, error=str(error))
            self.reason = Reason.UNAVAILABLE
        finally:
            shared.offline.unwatch(self.client_id, watch)
        return not self.ending

    async def _begin(self, claimed: Claimed, watch: Watch) -> None:
        """The session is ours: CONNACK, what the last connection left, then the backlog. Raises StoreError."""
        shared = self._shared
        if claimed.inbound:
            self.inlet = Inlet(self, shared, shared.registry.inbound(self.client_id, claimed))
        mailbox = Mailbox(self.client_id, self.persistent, self.transport, shared.bounds, shared.offline, self._overflow)
        mailbox.epoch = self.epoch
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
            await shared.offline.start(mailbox, claimed.backlog, watch, self._connection.keep_alive)

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
        while True:
            for packet in packets:
                kind = type(packet)
                if kind is Publish:
                    inlet = self.inlet or self._open_inlet()
                    if self._shared.rate.limited and not await inlet.within_rate(packet):  # type: ignore[arg-type]
                        continue
                    inlet.publish(packet)  # type: ignore[arg-type]
                    if inlet.over:
                        await inlet.pause()
                elif kind is PubAck:
                    self.mailbox.puback(packet.packet_id)  # type: ignore[union-attr]
                else:
                    await self._other(packet)
                if self.reason is not Reason.CONNECTION_LOST:
                    return
            packets = ()  # an idle link keeps nothing
            packet = None  # type: ignore[assignment]
            if transport.buffered > self._shared.bounds.buffer:
                await self._unread()
            data = await transport.receive()
            if not data:
                return
            packets = feed(data)
            if packets:
                self.last = trio.current_time()  # a whole packet, not some bytes [MQTT-3.1.2-24]

    async def _unread(self) -> None:
        """A device that does not take our answers is asked for no more questions; its keep-alive stands still, `send_timeout` runs."""
        self.paused = True
        try:
            while self.transport.buffered > self._shared.bounds.buffer and not self.ending:
                await trio.sleep(0.05)
        finally:
            self.paused = False
            self.last = trio.current_time()

    async def _other(self, packet: Packet | Close) -> None:
        mailbox, transport = self.mailbox, self.transport
        assert mailbox is not None
        match packet:
            case PubRec():
                mailbox.pubrec(packet.packet_id)
            case PubRel():
                (self.inlet or self._open_inlet()).pubrel(packet.packet_id)
            case PubComp():
                mailbox.pubcomp(packet.packet_id)
            case PingReq():
                transport.write(encode.PINGRESP)
            case Subscribe() | Unsubscribe():
                await self._subscribing(packet)
            case Disconnect():
                self.polite = True  # its will is discarded [MQTT-3.14.4-3]
                self.reason = Reason.CLIENT_DISCONNECT
            case Close():
                self._broken(packet)
            case _:
                raise AssertionError(f"the connection let {type(packet).__name__} pass")

    async def _subscribing(self, packet: Subscribe | Unsubscribe) -> None:
        """While the backend or the store is asked this link is not read, and its keep-alive stands still."""
        self.paused = True
        try:
            if isinstance(packet, Subscribe):
                await self._shared.subscribing.subscribe(self, packet)
            else:
                await self._shared.subscribing.unsubscribe(self, packet)
        finally:
            self.paused = False
            self.last = trio.current_time()

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

    def _open_inlet(self) -> Inlet:
        self.inlet = Inlet(self, self._shared, {})
        return self.inlet

    def _overflow(self) -> None:
        """A clean session that does not keep up is closed; never from inside the fan-out that noticed it."""
        if not self.ending:
            observe.note(observe.Fact.SLOW_CONSUMER_CLOSED, client_id=self.client_id, channel_id=self.channel_id)
            self.reason = Reason.SLOW_CONSUMER
            self.transport.shut()
