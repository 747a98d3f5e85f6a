"""What can't be done for a device: its connection closes, and nothing that failed is acknowledged (clauses 3.3.5 and 4.8)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from backend_adapters.local import LocalBackend
from gateway.mqtt.codec import Decoder, encode
from gateway.mqtt.packets import ConnAck, Connect, Level, Packet, PingReq, PingResp, PubAck, Publish, PubRec, SubAck, Subscribe
from gateway.ports import BackendError, Done, Message, Refusal, Stored, StoreError, Subscription
from gateway.rules.signing import password_for
from gateway.runtime.node import Node
from gateway.settings import Settings
from gateway.store.sqlite import SqliteStore

SECRET = "not-a-real-secret"


class Wire:
    """A transport in memory; it closes when so many packets were written to it."""

    peer = "192.0.2.1:1234"
    buffered = 0

    def __init__(self, until: int) -> None:
        self.send, self._receive = trio.open_memory_channel[bytes](10)
        self._decoder = Decoder()
        self._until = until
        self.answers: list[Packet] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.answers += self._decoder.feed(data)
        if len(self.answers) == self._until:
            self.shut()

    async def receive(self) -> bytes:
        try:
            return await self._receive.receive()
        except trio.ClosedResourceError:
            return b""

    def close(self) -> None:
        self.closed = True

    def shut(self) -> None:
        self._receive.close()


def settings(folder: Path) -> Settings:
    account = {"access_key": "key", "secret_key": SECRET, "groups": ["GID_test"], "publish": ["known/#"], "subscribe": ["known/#"]}
    return Settings.model_validate(
        {"gateway": {"data_dir": folder, "node_id": "test"}, "bridge": {"topics": ["known", "secret"]}, "accounts": [account]}
    )


async def answers(
    folder: Path, *packets: Packet, until: int = 0, store: type[SqliteStore] = SqliteStore, backend: type[LocalBackend] = LocalBackend
) -> list[Packet]:
    """One device says CONNECT and `packets` in one read and waits for the gateway to close (or for `until` answers): what was answered
    behind the CONNACK."""
    wire = Wire(until + 1 if until else 0)
    connect = Connect(Level.V311, "GID_test@@@dev1", False, 0, None, "key", password_for(SECRET, "GID_test").encode())
    await wire.send.send(encode(connect) + b"".join(map(encode, packets)))
    async with trio.open_nursery() as ports:
        opened, log = store(folder / "store.db"), backend(folder / "backend.db")
        await ports.start(opened.run)
        await ports.start(log.run)
        await log.create_topic("known")
        async with trio.open_nursery() as services:
            node = Node(settings(folder), log, opened)
            await services.start(node.run)
            with trio.fail_after(5):
                await node.serve(wire)
            await node.drain(5)
            services.cancel_scope.cancel()
        ports.cancel_scope.cancel()
    assert wire.closed
    assert wire.answers[0] == ConnAck(False, 0)
    return wire.answers[1:]


async def test_what_is_allowed_is_acknowledged(tmp_path: Path) -> None:
    """So that the other tests here can fail."""
    packets: list[Packet] = [
        Publish("known/a", b"x", 1, packet_id=1),
        Publish("known/b", b"x", 2, packet_id=2),
        Subscribe(3, [("known/#", 1)]),
        PingReq(),
    ]
    found = await answers(tmp_path, *packets, until=4)
    assert sorted(map(repr, found)) == sorted(map(repr, [PubAck(1), PubRec(2), SubAck(3, [1]), PingResp()]))


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("topic", ["unknown/a", "unknown", "secret/a", "known/" + "a" * 80])
async def test_mqtt_3_3_5_2_publish_that_is_not_allowed_closes(tmp_path: Path, topic: str, qos: int) -> None:
    """An unbridged parent, one that the account may not publish to, an over-long topic."""
    assert await answers(tmp_path, Publish(topic, b"x", qos, packet_id=2 if qos else 0), PingReq()) == []


async def test_subscribe_that_is_not_allowed_closes(tmp_path: Path) -> None:
    assert await answers(tmp_path, Subscribe(1, [("secret/#", 1)]), PingReq()) == []


class Gone(LocalBackend):
    """Its topic is gone for the moment."""

    def submit(self, message: Message, done: Stored) -> None:
        done(BackendError(Refusal.NO_SUCH_TOPIC, "no such topic"))


class Full(SqliteStore):
    """Its disk is full."""

    def subscribe(self, client_id: str, epoch: int, subscriptions: Sequence[Subscription], done: Done) -> None:
        done(StoreError("the disk is full"))

    def inbound_put(self, client_id: str, epoch: int, packet_id: int, unique_key: str, done: Done) -> None:
        done(StoreError("the disk is full"))


@pytest.mark.parametrize("qos", [1, 2])
async def test_mqtt_4_8_0_2_message_that_the_backend_can_not_take_closes(tmp_path: Path, qos: int) -> None:
    assert await answers(tmp_path, Publish("known/a", b"x", qos, packet_id=1), backend=Gone) == []


@pytest.mark.parametrize("packet", [Subscribe(1, [("known/#", 1)]), Publish("known/a", b"x", 2, packet_id=1)])
async def test_mqtt_4_8_0_2_state_that_the_store_can_not_take_closes(tmp_path: Path, packet: Packet) -> None:
    assert await answers(tmp_path, packet, store=Full) == []
