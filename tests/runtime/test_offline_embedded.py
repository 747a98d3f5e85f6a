"""With the embedded store and backend: a store that fails for a while loses nothing for a device that is away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from backend_adapters.local import LocalBackend
from gateway.mqtt.packets import Disconnect, PubAck, Publish, Subscribe
from gateway.ports import Done, StoreError, Waiting
from gateway.runtime.node import Node
from gateway.store.sqlite import SqliteStore
from tests.runtime.kit import Device, settings


class Failing(SqliteStore):
    """Its disk is full while `full`."""

    full = False
    refused = 0

    def offline_put(self, waiting: Sequence[Waiting], done: Done) -> None:
        if self.full:
            self.refused += 1
            done(StoreError("the disk is full"))
        else:
            super().offline_put(waiting, done)


async def test_store_fails_and_recovers(tmp_path: Path) -> None:
    async with trio.open_nursery() as ports:
        store, backend = Failing(tmp_path / "store.db"), LocalBackend(tmp_path / "backend.db")
        await ports.start(store.run)
        await ports.start(backend.run)
        async with trio.open_nursery() as services:
            node = Node(settings(tmp_path), backend, store)
            await services.start(node.run)
            with trio.fail_after(20):
                away, sender, back = Device("dev1"), Device("dev2"), Device("dev1")
                async with trio.open_nursery() as links:
                    links.start_soon(node.serve, away)
                    away.connect(Subscribe(1, [("known/#", 1)]), Disconnect())
                    await away.wait(2)
                    while not away.closed:
                        await trio.sleep(0.01)
                    store.full = True
                    links.start_soon(node.serve, sender)
                    sender.connect(*(Publish("known/a", b"%d" % n, 1, packet_id=n) for n in range(1, 6)))
                    assert sorted(packet.packet_id for packet in await sender.wait(6) if isinstance(packet, PubAck)) == [1, 2, 3, 4, 5]
                    while not store.refused:
                        await trio.sleep(0.01)
                    links.start_soon(node.serve, back)  # it is back before the store is
                    back.connect()
                    await back.wait(1)
                    store.full = False
                    await back.wait(6)
                    assert sorted(packet.payload for packet in back.published) == [b"1", b"2", b"3", b"4", b"5"]
                    links.cancel_scope.cancel()
            services.cancel_scope.cancel()
        ports.cancel_scope.cancel()
