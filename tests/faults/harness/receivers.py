"""Devices that are subscribed: they acknowledge at once, come back when their connection ends, and some hop from node to node."""

from __future__ import annotations

import random
import time
from typing import NamedTuple

import trio

from tests.faults.harness.events import Delivered, Subscribed, id_of
from tests.faults.harness.line import Gone, Identity, Line, Note, dial
from tests.faults.harness.senders import Orders
from tests.kit.wire import Kind, Packet, ack_bytes, subscribe_bytes

POLITE = 0.5  # every second hop says DISCONNECT, the others just close


class Manner(NamedTuple):
    """filters: (filter, QoS). hop: seconds between its own reconnects, each to the next node, and 0.2 to 1 s away; 0: it stays."""

    filters: list[tuple[str, int]]
    hop: float


class Receiver:
    """One session, persistent or clean."""

    def __init__(self, identity: Identity, manner: Manner, node: int, orders: Orders, note: Note) -> None:
        self._identity = identity
        self._manner = manner
        self._node = node
        self._orders = orders
        self._note = note
        self._session = 0
        self._unreleased: set[int] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Started when subscribed for the first time; until `over`. Then its session is removed."""
        subscribed = False
        while not self._orders.over.is_set():
            line, present, left = await dial(self._identity, self._node, self._session, self._note)
            self._node = line.node
            try:
                if self._identity.clean or not present:
                    self._unreleased.clear()
                    left += await self._subscribe(line)
                if not subscribed:
                    subscribed = True
                    task_status.started()
                hopped = await self._listen(line, left)
                await line.close("hop" if hopped else "end", polite=not hopped or random.random() < POLITE)
            except Gone as gone:
                await line.close(gone.reason)
            if self._identity.clean:
                self._session += 1
            self._node += 1
            if not self._orders.over.is_set() and self._manner.hop:
                await trio.sleep(random.uniform(0.2, 1.0))
        if not self._identity.clean:
            await self._forget()

    async def _subscribe(self, line: Line) -> list[Packet]:
        """What came besides the SUBACK."""
        line.write(subscribe_bytes(1, self._manner.filters))
        ack, others = await line.expect(Kind.SUBACK)
        assert ack.codes == [qos for _, qos in self._manner.filters], f"{self._identity.client_id}: SUBACK {ack.codes}"
        at = time.time()
        for name, qos in self._manner.filters:
            self._note(Subscribed(at, self._identity.client_id, str(name), qos, self._identity.clean, self._session))
        return others

    async def _listen(self, line: Line, left: list[Packet]) -> bool:
        """True: it is time for a hop; False: the run is over."""
        hop = trio.current_time() + self._manner.hop * random.uniform(0.7, 1.3) if self._manner.hop else float("inf")
        self._take(line, left)
        while True:
            if self._orders.over.is_set():
                return False
            if trio.current_time() >= hop and not self._orders.quiet.is_set() and self._orders.go.is_set():
                await line.flush()
                return True
            self._take(line, await line.packets(trio.current_time() + 0.25))

    def _take(self, line: Line, packets: list[Packet]) -> None:
        for packet in packets:
            if packet.kind is Kind.PUBREL:
                self._unreleased.discard(packet.packet_id)
                line.write(ack_bytes(Kind.PUBCOMP, packet.packet_id))
                continue
            assert packet.kind is Kind.PUBLISH, packet
            again = packet.qos == 2 and packet.packet_id in self._unreleased
            me = self._identity.client_id
            self._note(
                Delivered(time.time(), id_of(packet.payload), me, line.node, packet.packet_id, packet.dup, packet.qos, again, self._session)
            )
            if packet.qos == 2:
                self._unreleased.add(packet.packet_id)
            if packet.qos:
                line.write(ack_bytes(Kind.PUBACK if packet.qos == 1 else Kind.PUBREC, packet.packet_id))

    async def _forget(self) -> None:
        """A clean CONNECT ends the session, so that the next fault begins without it."""
        line, _, _ = await dial(self._identity._replace(clean=True), self._node, self._session, lambda event: None)
        await line.close("end", polite=True)
