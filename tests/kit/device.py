"""A raw MQTT 3.1 and 3.1.1 device for tests, on trio, with the codec of `tests.kit.wire`: it trusts nothing of `gateway.mqtt`.

Nothing is read in the background: packets are read, and acknowledged when `auto_ack` is on, while a test waits for one.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import trio

from tests.kit.wire import (
    DISCONNECT,
    PINGREQ,
    Kind,
    Packet,
    Will,
    ack_bytes,
    connect_bytes,
    decode,
    publish_bytes,
    subscribe_bytes,
    take,
    unsubscribe_bytes,
)

PATIENCE = 10.0  # seconds; generous, since a loaded machine is not a fault


class Closed(AssertionError):
    """The server closed the connection while a packet was expected."""


class Device:
    """One connection to a server. `auto_ack`: answer PUBLISH, PUBREC and PUBREL at once (answered PUBREC and PUBREL are not kept)."""

    def __init__(self, stream: trio.abc.Stream, auto_ack: bool = True) -> None:
        self.stream = stream
        self.auto_ack = auto_ack
        self.inbox: list[Packet] = []
        self.client_id = ""
        self.eof = False
        self._bytes = bytearray()
        self._ids = count(1)

    @classmethod
    async def open(cls, host: str, port: int, auto_ack: bool = True) -> Device:
        """A TCP connection, nothing sent yet."""
        stream = await trio.open_tcp_stream(host, port)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(stream, auto_ack)

    # -- out

    async def send_raw(self, data: bytes) -> None:
        """Any bytes. A connection that the server has closed already is no error here: `expect_closed` tells."""
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.eof = True

    async def connect(
        self,
        client_id: str | bytes,
        clean: bool = True,
        keep_alive: int = 0,
        username: str | bytes | None = None,
        password: bytes | None = None,
        will: Will | None = None,
        level: int = 4,
    ) -> Packet:
        """CONNECT; the CONNACK, which must be the first packet that comes [MQTT-3.2.0-1]."""
        self.client_id = client_id if isinstance(client_id, str) else ""
        await self.send_raw(connect_bytes(client_id, clean, keep_alive, username, password, will, level))
        ack = await self.next()
        assert ack.kind is Kind.CONNACK, f"{ack} came before the CONNACK [MQTT-3.2.0-1]"
        return ack

    def new_id(self) -> int:
        """A packet id that this connection has not used yet."""
        return next(self._ids)

    async def publish(
        self, topic: str | bytes, payload: bytes = b"", qos: int = 0, retain: bool = False, dup: bool = False, packet_id: int | None = None
    ) -> int:
        """Send a PUBLISH and wait for nothing; its packet id (0 at QoS 0)."""
        if qos and packet_id is None:
            packet_id = self.new_id()
        await self.send_raw(publish_bytes(topic, payload, qos, retain, dup, packet_id))
        return packet_id or 0

    async def deliver(
        self, topic: str | bytes, payload: bytes = b"", qos: int = 1, retain: bool = False, packet_id: int | None = None
    ) -> None:
        """Send a PUBLISH and go through its whole handshake; at QoS 0 a ping shows that the server has read it."""
        sent = await self.publish(topic, payload, qos, retain, packet_id=packet_id)
        if qos == 0:
            await self.ping()
        elif qos == 1:
            await self.expect_ack(Kind.PUBACK, sent)
        else:
            if not self.auto_ack:
                await self.expect_ack(Kind.PUBREC, sent)
                await self.ack(Kind.PUBREL, sent)
            await self.expect_ack(Kind.PUBCOMP, sent)

    async def ack(self, kind: Kind, packet_id: int) -> None:
        """Send PUBACK, PUBREC, PUBREL or PUBCOMP."""
        await self.send_raw(ack_bytes(kind, packet_id))

    async def subscribe(self, *filters: tuple[str | bytes, int], packet_id: int | None = None) -> list[int]:
        """SUBSCRIBE to (filter, QoS) pairs; the SUBACK's codes."""
        sent = packet_id or self.new_id()
        await self.send_raw(subscribe_bytes(sent, filters))
        ack = await self.expect(Kind.SUBACK)
        assert ack.packet_id == sent, "[MQTT-3.8.4-2]"
        assert len(ack.codes) == len(filters), "[MQTT-3.8.4-5]"
        return ack.codes

    async def unsubscribe(self, *filters: str | bytes) -> None:
        """UNSUBSCRIBE, and wait for the UNSUBACK."""
        sent = self.new_id()
        await self.send_raw(unsubscribe_bytes(sent, filters))
        assert (await self.expect(Kind.UNSUBACK)).packet_id == sent, "[MQTT-3.10.4-4]"

    async def ping(self) -> None:
        """PINGREQ, and wait for the PINGRESP."""
        await self.send_raw(PINGREQ)
        await self.expect(Kind.PINGRESP)

    async def disconnect(self) -> list[Packet]:
        """DISCONNECT, and wait until the server has closed as well; what came and was not asked for."""
        await self.send_raw(DISCONNECT)
        return await self.expect_closed()

    async def drop(self, reset: bool = False) -> None:
        """Close without a DISCONNECT; `reset`: with a TCP RST."""
        if reset and isinstance(self.stream, trio.SocketStream) and self.stream.socket.fileno() >= 0:
            self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(self.stream)

    # -- in

    async def next(self, timeout: float = PATIENCE) -> Packet:
        """The very next packet, whatever it is."""
        with self._patience(timeout, "a packet"):
            while not self.inbox:
                await self._read()
        return self.inbox.pop(0)

    async def expect(self, kind: Kind, timeout: float = PATIENCE) -> Packet:
        """The next packet of `kind`; others stay for later calls, in their order."""
        with self._patience(timeout, kind.name):
            while True:
                for index, packet in enumerate(self.inbox):
                    if packet.kind is kind:
                        return self.inbox.pop(index)
                await self._read()

    async def expect_ack(self, kind: Kind, packet_id: int) -> None:
        """The next packet of `kind` must carry `packet_id` [MQTT-2.3.1-6]."""
        found = await self.expect(kind)
        assert found.packet_id == packet_id, f"{kind.name} for {found.packet_id}, not {packet_id}"

    async def receive(self, timeout: float = PATIENCE) -> Packet:
        """The next PUBLISH."""
        return await self.expect(Kind.PUBLISH, timeout)

    async def receive_until(self, marker: bytes, timeout: float = PATIENCE) -> list[Packet]:
        """The PUBLISHes before the one whose payload is `marker`."""
        found: list[Packet] = []
        while (packet := await self.receive(timeout)).payload != marker:
            found.append(packet)
        return found

    async def expect_nothing(self, seconds: float) -> None:
        """No packet comes for so long. Prefer a marker message."""
        with trio.move_on_after(seconds):
            while not self.inbox:
                await self._read()
        assert not self.inbox, f"unexpected: {self.inbox}"

    async def expect_closed(self, timeout: float = PATIENCE) -> list[Packet]:
        """The server closes the connection; what it sent before that and was not asked for."""
        with self._patience(timeout, "the connection to be closed"):
            while not self.eof:
                try:
                    await self._read()
                except Closed:
                    break
        left, self.inbox = self.inbox, []
        await self.drop()
        return left

    @contextmanager
    def _patience(self, seconds: float, what: str) -> Iterator[None]:
        try:
            with trio.fail_after(seconds):
                yield
        except trio.TooSlowError:
            raise AssertionError(f"waited {seconds} s for {what}; the inbox holds {self.inbox}") from None

    async def _read(self) -> None:
        try:
            data = await self.stream.receive_some(65536)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            self.eof = True
            raise Closed(f"the server closed the connection; the inbox holds {self.inbox}")
        self._bytes += data
        answers = bytearray()
        while (raw := take(self._bytes)) is not None:
            packet = decode(*raw)
            answer = self._answer(packet) if self.auto_ack else b""
            answers += answer
            if not answer or packet.kind is Kind.PUBLISH:
                self.inbox.append(packet)
        if answers:
            await self.send_raw(bytes(answers))

    def _answer(self, packet: Packet) -> bytes:
        if packet.kind is Kind.PUBLISH and packet.qos:
            return ack_bytes(Kind.PUBACK if packet.qos == 1 else Kind.PUBREC, packet.packet_id)
        if packet.kind is Kind.PUBREC:
            return ack_bytes(Kind.PUBREL, packet.packet_id)
        if packet.kind is Kind.PUBREL:
            return ack_bytes(Kind.PUBCOMP, packet.packet_id)
        return b""
