"""Nodes that end, in order or not: nothing acknowledged is missing, and the others go on (design section 5)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from deploy.services import Redis, RocketMQ
from tests.cluster.conftest import QUICK
from tests.kit.device import Closed, Device
from tests.kit.nodes import Nodes
from tests.kit.server_app import next_where
from tests.kit.wire import Will

pytestmark = pytest.mark.services

GOES_ON_SECONDS = 15.0


@pytest.fixture
async def nodes(session_redis: Redis, rocketmq: RocketMQ, tmp_path: Path) -> AsyncIterator[Nodes]:
    """Two nodes of this test."""
    nodes = Nodes(tmp_path, rocketmq.namesrv, session_redis.url, 2, QUICK)
    await nodes.start()
    yield nodes
    await nodes.close()
    nodes.kill()


class Receiver:
    """A device with a stored session that comes back to any node that takes it."""

    def __init__(self, nodes: Nodes, client_id: str) -> None:
        self.client_id = client_id
        self.found: list[bytes] = []
        self._nodes = nodes

    async def connect(self, node: int) -> Device:
        while True:
            try:
                device, ack = await self._nodes.attempt(node, self.client_id, clean=False)
                if ack.code == 0:
                    return device
            except (OSError, Closed):
                pass
            node = 1 - node
            await trio.sleep(0.1)

    async def run(self, node: int) -> None:
        """Until cancelled."""
        device = await self.connect(node)
        while True:
            try:
                self.found.append((await device.receive(3600)).payload)
            except Closed:
                device = await self.connect(node)


async def publish(nodes: Nodes, topics: list[str], sent: list[bytes], until: trio.Event) -> None:
    """Numbers at QoS 1, each until it is acknowledged, from devices that go where a node is."""
    node, device, number = 0, None, 0
    while not until.is_set():
        payload = b"%d" % number
        try:
            if device is None:
                device, ack = await nodes.attempt(node, nodes.id())
                assert ack.code == 0
            await device.deliver(topics[number % len(topics)], payload, 1)
        except (OSError, Closed, AssertionError):
            device, node = None, 1 - node
            await trio.sleep(0.1)
            continue
        sent.append(payload)
        number += 1
        await trio.sleep(0.005)


async def until_all(receivers: list[Receiver], topics: list[str], sent: list[bytes]) -> None:
    with trio.fail_after(60):
        for number, receiver in enumerate(receivers):
            due = {payload for payload in sent if int(payload) % len(topics) == number}
            while not due <= set(receiver.found):
                await trio.sleep(0.1)


async def test_a_rolling_restart_loses_nothing(nodes: Nodes) -> None:
    topics = [nodes.topic() for _ in range(4)]
    receivers = [Receiver(nodes, nodes.id()) for _ in topics]
    for topic, receiver in zip(topics, receivers, strict=True):
        device = await receiver.connect(0)
        await device.subscribe((topic, 1))
        await device.disconnect()
    sent: list[bytes] = []
    over = trio.Event()
    async with trio.open_nursery() as nursery:
        for number, receiver in enumerate(receivers):
            nursery.start_soon(receiver.run, number % 2)
        nursery.start_soon(publish, nodes, topics, sent, over)
        await trio.sleep(1)
        for gateway in nodes.gateways:
            await trio.to_thread.run_sync(gateway.restart)
            before = len(sent)
            with trio.fail_after(30):
                while len(sent) < before + 100:
                    await trio.sleep(0.05)
        over.set()
        await until_all(receivers, topics, sent)
        nursery.cancel_scope.cancel()
    for gateway in nodes.gateways:
        assert "node_lost" not in gateway.log(), "a node that ends in order is not waited for"


async def test_the_heir_of_a_killed_node_cares_for_its_devices(nodes: Nodes) -> None:
    topic = nodes.topic()
    reader = await nodes.app().reader(f"{nodes.watched}_MQTT")
    watcher = await nodes.device(1)
    await watcher.subscribe((f"{topic}/#", 1))
    away = Receiver(nodes, nodes.id())
    device = await away.connect(0)
    await device.subscribe((f"{topic}/kept", 1))
    client_id = nodes.id(nodes.watched)
    await nodes.device(0, client_id, will=Will(f"{topic}/will", b"died", 1))
    nodes.gateways[0].kill()
    began = trio.current_time()
    publisher = await nodes.device(1)
    for number in range(32):
        await publisher.deliver(f"{topic}/kept", b"%d" % number, 1)
    with trio.fail_after(2 * GOES_ON_SECONDS):
        found = [(await watcher.receive(30)).payload for _ in range(33)]
        message = await next_where(
            reader, lambda each: json.loads(each.body)["clientId"] == client_id and json.loads(each.body)["eventType"] == "tcpclean"
        )
    assert sorted(found) == sorted([b"died", *(b"%d" % number for number in range(32))])
    assert message.properties["reason"] == "node_lost"
    assert trio.current_time() - began < 2 * GOES_ON_SECONDS
    back = await away.connect(1)
    assert [(await back.receive()).payload for _ in range(32)] == [b"%d" % number for number in range(32)]
    nodes.gateways[0].start()
    again = await nodes.device(0)
    await again.subscribe((f"{topic}/after", 1))
    await publisher.deliver(f"{topic}/after", b"both serve", 1)
    assert (await again.receive()).payload == b"both serve"
