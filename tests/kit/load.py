"""Senders and receivers that outlive any number of lost connections and keep account of every message, as good MQTT clients do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from tests.kit.device import Closed, Device
from tests.kit.wire import Kind, Packet

Connect = Callable[[], Awaitable[tuple[Device, Packet]]]
RETRY = 0.1  # seconds
ORDER_ID = 65535  # a packet id that no message uses
SILENCE = 30.0  # seconds without a packet after which a connection is given up


async def come_back(connect: Connect, patience: float) -> tuple[Device, Packet]:
    """A connection, tried again until the gateway is there; 0x03 (unavailable) is tried again too."""
    with trio.fail_after(patience):
        while True:
            try:
                device, ack = await connect()
            except (OSError, Closed):
                await trio.sleep(RETRY)
                continue
            if ack.code == 0:
                return device, ack
            assert ack.code == 3, f"refused with {ack.code}"
            await device.drop()
            await trio.sleep(RETRY)


class Sender:
    """Publishes `total` messages named `<name>:<number>` to `topic`, at most `window` in flight, each until its handshake is done.

    acknowledged: numbers whose handshake was completed. ordered: asks for ordered sending on each connection (contract section 5).
    """

    def __init__(
        self, connect: Connect, name: str, topic: str, qos: int, total: int, window: int, patience: float = 60.0, ordered: bool = False
    ) -> None:
        self.name = name
        self.acknowledged: set[int] = set()
        self.connections = 0
        self._connect = connect
        self._topic = topic
        self._qos = qos
        self._total = total
        self._window = window
        self._patience = patience
        self._ordered = ordered
        self._flight: dict[int, bool] = {}  # number -> PUBREC has come, in the order of sending
        self._next = 0

    def body(self, number: int) -> bytes:
        return f"{self.name}:{number}".encode()

    async def run(self) -> None:
        """Until all are acknowledged."""
        while len(self.acknowledged) < self._total:
            device, ack = await come_back(self._connect, self._patience)
            assert ack.session_present or not self.connections, "the session is lost"
            self.connections += 1
            try:
                await self._talk(device)
            except Closed:
                continue
            finally:
                await device.drop()

    async def _talk(self, device: Device) -> None:
        if self._ordered:
            await device.publish("$SYS/enableOrderMsg", b'{"order": "true"}', 1, packet_id=ORDER_ID)
            await device.expect_ack(Kind.PUBACK, ORDER_ID)
        for number, received in self._flight.items():  # [MQTT-4.4.0-1], in order
            await (device.ack(Kind.PUBREL, number + 1) if received else self._publish(device, number, True))
        while len(self.acknowledged) < self._total:
            while len(self._flight) < self._window and self._next < self._total:
                self._flight[self._next] = False
                self._next += 1
                await self._publish(device, self._next - 1, False)
            await self._take(device, await device.next(SILENCE))

    async def _publish(self, device: Device, number: int, dup: bool) -> None:
        await device.publish(self._topic, self.body(number), self._qos, dup=dup, packet_id=number + 1)

    async def _take(self, device: Device, packet: Packet) -> None:
        number = packet.packet_id - 1
        if packet.kind is Kind.PUBREC:
            assert self._qos == 2
            if number in self._flight:
                self._flight[number] = True
            await device.ack(Kind.PUBREL, packet.packet_id)
            return
        assert packet.kind is (Kind.PUBACK if self._qos == 1 else Kind.PUBCOMP), packet
        if self._flight.pop(number, None) is not None:
            self.acknowledged.add(number)


class Receiver:
    """A persistent session that takes what comes. times: how often each body was received; at QoS 2 by method A of clause 4.3.3, so a
    repeat of an unfinished delivery is none."""

    def __init__(self, connect: Connect, filters: list[tuple[str | bytes, int]], patience: float = 60.0) -> None:
        self.times: dict[bytes, int] = {}
        self.subscribed = trio.Event()
        self._connect = connect
        self._filters = filters
        self._patience = patience
        self._unreleased: set[int] = set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            device, ack = await come_back(self._connect, self._patience)
            try:
                if not self.subscribed.is_set():
                    codes = await device.subscribe(*self._filters)
                    assert 0x80 not in codes
                    self.subscribed.set()
                else:
                    assert ack.session_present, "the session is lost"
                while True:
                    await self._take(device, await device.next(float("inf")))
            except Closed:
                continue
            finally:
                await device.drop()

    async def _take(self, device: Device, packet: Packet) -> None:
        if packet.kind is Kind.PUBREL:
            self._unreleased.discard(packet.packet_id)
            await device.ack(Kind.PUBCOMP, packet.packet_id)
            return
        assert packet.kind is Kind.PUBLISH, packet
        if packet.qos == 2:
            await device.ack(Kind.PUBREC, packet.packet_id)
            if packet.packet_id in self._unreleased:
                return
            self._unreleased.add(packet.packet_id)
        elif packet.qos == 1:
            await device.ack(Kind.PUBACK, packet.packet_id)
        self.times[packet.payload] = self.times.get(packet.payload, 0) + 1

    async def until(self, wanted: set[bytes], patience: float) -> None:
        """Wait until everything wanted has come."""
        with trio.move_on_after(patience):
            while not wanted <= self.times.keys():
                await trio.sleep(0.05)
        missing = wanted - self.times.keys()
        assert not missing, f"{len(missing)} of {len(wanted)} missing, e.g. {sorted(missing)[:5]}"
