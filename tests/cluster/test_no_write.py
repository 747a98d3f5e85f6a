"""A device that is online and answers costs no write to the store (design section 4)."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from deploy.services import Redis, RocketMQ
from tests.kit.nodes import Nodes

pytestmark = pytest.mark.services


@pytest.fixture
async def nodes(session_redis: Redis, rocketmq: RocketMQ, tmp_path: Path) -> AsyncIterator[Nodes]:
    """One node of this test."""
    nodes = Nodes(tmp_path, rocketmq.namesrv, session_redis.url, 1)
    await nodes.start()
    yield nodes
    await nodes.close()
    nodes.kill()


async def operations(nodes: Nodes) -> int:
    """Changes that the node has asked its store for."""

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{nodes.gateways[0].http_port}/metrics") as answer:
            return str(answer.read().decode())

    found = re.search(r"^mqtt_gateway_store_operations(?:_total)? (\S+)$", await trio.to_thread.run_sync(read), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


async def test_deliveries_at_qos_1_to_devices_of_the_same_node_write_nothing(nodes: Nodes) -> None:
    topic = nodes.topic()
    receivers = [await nodes.device(0, clean=clean) for clean in (False, True)]
    for receiver in receivers:
        await receiver.subscribe((f"{topic}/#", 1))
    publisher = await nodes.device(0)
    await publisher.deliver(f"{topic}/0", b"first", 1)
    for receiver in receivers:
        await receiver.receive()
    before = await operations(nodes)
    async with trio.open_nursery() as nursery:

        async def take(number: int) -> None:
            for _ in range(500):
                await receivers[number].receive()
            await receivers[number].ping()

        for number in range(len(receivers)):
            nursery.start_soon(take, number)
        for number in range(500):
            await publisher.deliver(f"{topic}/{number}", b"%d" % number, 1)
    assert await operations(nodes) - before <= 1, "1,000 deliveries; one note of what is committed may fall in between"


async def test_the_count_sees_what_is_written(nodes: Nodes) -> None:
    topic, client_id = nodes.topic(), nodes.id()
    receiver = await nodes.device(0, client_id, clean=False)
    await receiver.subscribe((f"{topic}/#", 1))
    await receiver.disconnect()
    publisher = await nodes.device(0)
    before = await operations(nodes)
    for number in range(20):
        await publisher.deliver(f"{topic}/{number}", b"%d" % number, 1)
    again = await nodes.device(0, client_id, clean=False)
    for _ in range(20):
        await again.receive()
    assert await operations(nodes) - before >= 20
