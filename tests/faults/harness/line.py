"""A device's connection for load: packets in batches, a PINGREQ every 2 s whatever else happens, and giving up when it stays unanswered."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import NamedTuple

import trio

from tests.faults.harness.events import Connected, Disconnected, Event, Pinged
from tests.kit.server import HOST
from tests.kit.wire import DISCONNECT, PINGREQ, Kind, Packet, connect_bytes, decode, take

PING_SECONDS = 2.0
SILENT_SECONDS = 5.0  # a device that gets no answer for so long looks for another node; the short freeze is shorter
RETRY_SECONDS = 0.2

Note = Callable[[Event], None]


class Gone(Exception):
    """The connection is over. reason: see `events.Disconnected`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Identity(NamedTuple):
    """Who connects, and where to. ports: of the nodes."""

    client_id: str
    clean: bool
    ports: list[int]


class Line:
    """An accepted connection. number: of its node."""

    def __init__(self, stream: trio.SocketStream, number: int, device: str, note: Note) -> None:
        self.node = number
        self._stream = stream
        self._device = device
        self._note = note
        self._bytes = bytearray()
        self._pinged = 0.0  # when the PINGREQ without an answer was sent (monotonic); 0: none
        self._next_ping = trio.current_time() + PING_SECONDS
        self._out = bytearray()

    def write(self, data: bytes) -> None:
        """To be sent by the next `packets` or `flush`."""
        self._out += data

    async def flush(self) -> None:
        """Send what was written. Raises Gone."""
        if not self._out:
            return
        data, self._out = bytes(self._out), bytearray()
        try:
            with trio.fail_after(SILENT_SECONDS):
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Gone("lost") from None
        except trio.TooSlowError:
            raise Gone("silent") from None

    async def packets(self, until: float) -> list[Packet]:
        """What has come, at the latest at monotonic `until`; answers to pings are taken out. Raises Gone."""
        await self.flush()
        self._watch()
        await self.flush()
        found: list[Packet] = []
        with trio.move_on_at(min(until, self._next_ping, self._pinged + SILENT_SECONDS if self._pinged else until)):
            try:
                data = await self._stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                raise Gone("lost")
            self._bytes += data
            while (raw := take(self._bytes)) is not None:
                packet = decode(*raw)
                if packet.kind is Kind.PINGRESP:
                    self._note(Pinged(time.time(), self._device, trio.current_time() - self._pinged))
                    self._pinged = 0.0
                else:
                    found.append(packet)
        return found

    def _watch(self) -> None:
        now = trio.current_time()
        if self._pinged and now - self._pinged >= SILENT_SECONDS:
            raise Gone("silent")
        if now >= self._next_ping:
            self._next_ping = now + PING_SECONDS
            if not self._pinged:
                self._pinged = now
                self.write(PINGREQ)

    async def expect(self, kind: Kind) -> tuple[Packet, list[Packet]]:
        """The next packet of `kind`, and what came besides. Raises Gone, silent after a while."""
        others: list[Packet] = []
        until = trio.current_time() + 3 * SILENT_SECONDS
        while trio.current_time() < until:
            others += await self.packets(until)
            for index, packet in enumerate(others):
                if packet.kind is kind:
                    return others.pop(index), others
        raise Gone("silent")

    async def close(self, reason: str, polite: bool = False) -> None:
        """Note the end. polite: with a DISCONNECT."""
        self._note(Disconnected(time.time(), self._device, self.node, reason))
        if polite:
            self.write(DISCONNECT)
            try:
                await self.flush()
            except Gone:
                pass
        await trio.aclose_forcefully(self._stream)


async def dial(identity: Identity, node: int, session: int, note: Note) -> tuple[Line, bool, list[Packet]]:
    """An accepted connection, tried node after node until there is one: (line, session present, what came behind the CONNACK)."""
    while True:
        number = node % len(identity.ports)
        answered = await _attempt(identity, number, session, note)
        if answered is not None:
            return answered
        node += 1
        await trio.sleep(RETRY_SECONDS)


async def _attempt(identity: Identity, number: int, session: int, note: Note) -> tuple[Line, bool, list[Packet]] | None:
    with trio.move_on_after(SILENT_SECONDS):
        try:
            stream = await trio.open_tcp_stream(HOST, identity.ports[number])
        except OSError:
            return None
        line = Line(stream, number, identity.client_id, note)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted = False
        try:
            line.write(connect_bytes(identity.client_id, identity.clean, 30))
            found: list[Packet] = []
            while not found:
                found = await line.packets(trio.current_time() + SILENT_SECONDS)
            ack = found.pop(0)
            assert ack.kind is Kind.CONNACK, f"{ack} came before the CONNACK [MQTT-3.2.0-1]"
            assert ack.code in (0, 3), f"{identity.client_id} was refused with {ack.code}"
            if ack.code == 0:
                accepted = True
                note(Connected(time.time(), identity.client_id, number, identity.clean, ack.session_present, session))
                return line, ack.session_present, found
        except Gone:
            pass
        finally:
            if not accepted:
                await trio.aclose_forcefully(stream)
    return None
