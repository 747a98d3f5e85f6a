"""Devices that publish: at a rate, at most so many in flight, each message again with DUP until its handshake is done [MQTT-4.4.0-1]."""

from __future__ import annotations

import time
from itertools import count
from typing import NamedTuple

import trio

from tests.faults.harness.events import Acknowledged, Published, payload
from tests.faults.harness.line import Gone, Identity, Line, Note, dial
from tests.kit.wire import Kind, Packet, ack_bytes, publish_bytes

PACKET_IDS = 65535
LATE_SECONDS = 1.0  # what a sender is behind by more than this is not made up for


class Orders:
    """What the run tells every load. quiet: no new messages, no hops. over: end."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.quiet = trio.Event()
        self.over = trio.Event()


class Manner(NamedTuple):
    """How a sender publishes. topics: taken in turn. rate: messages a second. window: most in flight."""

    topics: list[str]
    qos: int
    rate: float
    window: int
    size: int


class _Flight:
    """One message on its way. received: its PUBREC has come."""

    __slots__ = ("id", "received", "topic")

    def __init__(self, id: str, topic: str) -> None:
        self.id = id
        self.topic = topic
        self.received = False


class Sender:
    """One persistent session that publishes between `go` and `quiet`; it ends when everything is acknowledged."""

    def __init__(self, identity: Identity, manner: Manner, node: int, orders: Orders, note: Note) -> None:
        self._identity = identity
        self._manner = manner
        self._node = node
        self._orders = orders
        self._note = note
        self._flight: dict[int, _Flight] = {}  # by packet id, in the order of sending
        self._numbers = count()
        self._ids = 0
        self._due = 0.0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Started when connected for the first time."""
        first = True
        while not self._done():
            line, _, left = await dial(self._identity, self._node, 0, self._note)
            self._node = line.node
            if first:
                first = False
                task_status.started()
            try:
                await self._talk(line, left)
                await line.close("end", polite=True)
            except Gone as gone:
                await line.close(gone.reason)
                self._node += 1

    def _done(self) -> bool:
        return self._orders.quiet.is_set() and not self._flight

    async def _talk(self, line: Line, left: list[Packet]) -> None:
        for packet_id, flight in self._flight.items():
            if flight.received:
                line.write(ack_bytes(Kind.PUBREL, packet_id))
            else:
                self._write(line, packet_id, flight, True)
        self._take(line, left)
        while not self._done():
            if not self._orders.go.is_set():
                self._take(line, await line.packets(trio.current_time() + 0.05))
                self._due = trio.current_time()
                continue
            self._publish(line)
            full = len(self._flight) >= self._manner.window or self._orders.quiet.is_set()
            self._take(line, await line.packets(trio.current_time() + 0.25 if full else self._due))
        await line.flush()

    def _publish(self, line: Line) -> None:
        """What is due and has room."""
        now = trio.current_time()
        self._due = max(self._due, now - LATE_SECONDS)
        while self._due <= now and len(self._flight) < self._manner.window and not self._orders.quiet.is_set():
            self._due += 1 / self._manner.rate
            number = next(self._numbers)
            topics = self._manner.topics
            flight = _Flight(f"{self._identity.client_id}-{number}", topics[number % len(topics)])
            self._ids = self._ids % PACKET_IDS + 1
            self._flight[self._ids] = flight
            self._write(line, self._ids, flight, False)

    def _write(self, line: Line, packet_id: int, flight: _Flight, dup: bool) -> None:
        manner = self._manner
        line.write(publish_bytes(flight.topic, payload(flight.id, manner.size), manner.qos, dup=dup, packet_id=packet_id))
        me = self._identity.client_id
        self._note(Published(time.time(), flight.id, me, flight.topic, manner.qos, line.node, packet_id, dup))

    def _take(self, line: Line, packets: list[Packet]) -> None:
        for packet in packets:
            flight = self._flight.get(packet.packet_id)
            if packet.kind is Kind.PUBREC:
                line.write(ack_bytes(Kind.PUBREL, packet.packet_id))
                if flight is not None and not flight.received:
                    flight.received = True
                    self._note(Acknowledged(time.time(), flight.id, self._identity.client_id))
                continue
            assert packet.kind is (Kind.PUBACK if self._manner.qos == 1 else Kind.PUBCOMP), packet
            if flight is not None:
                del self._flight[packet.packet_id]
                if self._manner.qos == 1:
                    self._note(Acknowledged(time.time(), flight.id, self._identity.client_id))
