"""What the runtime's tests share: settings, a device in memory, messages of the backend, and a node between scripted ports
(tests/runtime/scripted.py). Where behaviour matters, tests use the embedded store and backend."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import trio

from gateway.mqtt.codec import Decoder, encode
from gateway.mqtt.packets import ConnAck, Connect, Level, Packet, Publish, Will
from gateway.ports import (
    Queue,
    Received,
    Subscription,
)
from gateway.runtime.node import Node
from gateway.settings import Settings
from tests.runtime.scripted import QUEUE, ScriptedBackend, ScriptedStore


def settings(folder: Path = Path("nowhere"), **sections: dict[str, Any]) -> Settings:
    """Anonymous devices of group GID_test, bridged topics `known` and `other`; `sections` are merged in."""
    given: dict[str, Any] = {
        "gateway": {"data_dir": folder, "node_id": "test"},
        "bridge": {"topics": ["known", "other"]},
        "naming": {"groups": ["GID_test"]},
        "auth": {"anonymous": True},
    }
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section}
    return Settings.model_validate(given)


# ---------------------------------------------------------------- a device


class Device:
    """A device and its transport in memory: what it sends is one read of the gateway, what it gets is decoded in `got`."""

    def __init__(self, name: str = "dev1", peer: str = "192.0.2.1:1234") -> None:
        self.client_id = f"GID_test@@@{name}"
        self.peer = peer
        self.buffered = 0
        self.closed = False
        self.reads = 0
        self.got: list[Packet] = []
        self._decoder = Decoder()
        self._inbox: deque[bytes] = deque()
        self._lot = trio.lowlevel.ParkingLot()
        self._over = False

    # the gateway's side
    def write(self, data: bytes) -> None:
        if not self.closed:
            self.got += self._decoder.feed(data)
            self._lot.unpark_all()

    async def receive(self) -> bytes:
        while not self._inbox and not self._over:
            await self._lot.park()
        self.reads += 1
        return self._inbox.popleft() if self._inbox and not self._over else b""

    def close(self) -> None:
        self.closed = True

    def shut(self) -> None:
        self.closed = self._over = True
        self._lot.unpark_all()

    # the device's side
    def send(self, *packets: Packet) -> None:
        """All in one read."""
        self._inbox.append(b"".join(map(encode, packets)))
        self._lot.unpark_all()

    def connect(self, *more: Packet, clean: bool = False, keep_alive: int = 0, will: Will | None = None) -> None:
        self.send(Connect(Level.V311, self.client_id, clean, keep_alive, will, None, None), *more)

    def hang_up(self) -> None:
        """The connection breaks."""
        self._over = True
        self._lot.unpark_all()

    async def wait(self, number: int) -> list[Packet]:
        """Until so many packets came, the CONNACK included; those behind it."""
        while len(self.got) < number:
            await self._lot.park()
        return self.got[1:]

    @property
    def published(self) -> list[Publish]:
        return [packet for packet in self.got if isinstance(packet, Publish)]

    @property
    def connack(self) -> ConnAck | None:
        return self.got[0] if self.got and isinstance(self.got[0], ConnAck) else None


# ---------------------------------------------------------------- messages of the backend


class Log:
    """Makes messages as a backend gives them, and knows which are resolved and whether one was resolved twice."""

    def __init__(self) -> None:
        self._offsets = count()
        self.made: list[Received] = []
        self.resolved: list[int] = []

    def message(
        self,
        body: bytes = b"x",
        *,
        tag: str = "MQ2MQTT",
        replayed: bool = False,
        stored_at: int = 1,
        queue: Queue = QUEUE,
        **properties: str,
    ) -> Received:
        offset = next(self._offsets)
        found = Received(
            queue, offset, tag, body, properties, f"{offset:032X}", stored_at, stored_at, replayed, lambda: self.resolved.append(offset)
        )
        self.made.append(found)
        return found

    @property
    def held(self) -> int:
        """Messages with a hold. None may have less than none, and none may be resolved more than once."""
        assert all(message.holds >= 0 for message in self.made), "a hold was released twice"
        assert len(set(self.resolved)) == len(self.resolved), "a message was resolved twice"
        return sum(1 for message in self.made if message.holds)


# ---------------------------------------------------------------- a running node


class Running:
    """A node on its ports, and devices on it."""

    def __init__(self, node: Node, store: ScriptedStore, backend: ScriptedBackend, nursery: trio.Nursery) -> None:
        self.node = node
        self.store = store
        self.backend = backend
        self.log = Log()
        self._nursery = nursery

    def plug_in(self, name: str = "dev1") -> Device:
        """A device with a connection, that has said nothing yet."""
        device = Device(name)

        async def serve() -> None:
            await self.node.serve(device)
            device.shut()

        self._nursery.start_soon(serve)
        return device

    async def device(self, name: str = "dev1", *more: Packet, answers: int = 0, clean: bool = False, keep_alive: int = 0) -> Device:
        """A connected device that has sent `more` and got so many answers."""
        device = self.plug_in(name)
        device.connect(*more, clean=clean, keep_alive=keep_alive)
        await device.wait(1 + answers)
        return device


@asynccontextmanager
async def running(
    store: ScriptedStore | None = None,
    backend: ScriptedBackend | None = None,
    stored: Sequence[tuple[str, Subscription]] = (),
    **sections: dict[str, Any],
) -> AsyncIterator[Running]:
    """A node between scripted ports. stored: subscriptions that the store has from before."""
    store, backend = store or ScriptedStore(), backend or ScriptedBackend()
    store.before += stored
    async with trio.open_nursery() as services:
        node = Node(settings(Path("nowhere"), **sections), backend, store)
        await services.start(node.run)
        async with trio.open_nursery() as links:
            yield Running(node, store, backend, links)
            links.cancel_scope.cancel()
        services.cancel_scope.cancel()


def wall_clock() -> int:
    """ms since 1970."""
    return time.time_ns() // 1_000_000
