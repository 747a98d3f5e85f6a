"""RocketMQ brokers that are killed, restarted and frozen under load; the gateway stays and every message is accounted for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from deploy.server import Server
from deploy.services import RocketMQ
from tests.faults.account import check_identities, check_once, check_order, connector, stored
from tests.kit.load import Receiver, Sender
from tests.kit.remoting import Remoting
from tests.kit.services import StartRocketMQ
from tests.kit.wire import PINGREQ, Kind
from tests.kit.world import Scene, World

pytestmark = [pytest.mark.services, pytest.mark.slow]

SENDERS, EACH, WINDOW = 4, 400, 16
PATIENCE = 120.0  # seconds: a broker takes 8 to start, more on a busy machine


@pytest.fixture(scope="module")
def cluster(rocketmq_cluster_of_module: StartRocketMQ) -> RocketMQ:
    """Two brokers."""
    return rocketmq_cluster_of_module(brokers=2)


@pytest.fixture
def world(cluster: RocketMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    quick = {"limits": {"offline_batch": 1000, "offline_interval_seconds": 0.05}}
    world = World(tmp_path_factory.mktemp("broker"), cluster.namesrv, quick)
    trio.run(world.prepare)
    world.gateway.start()
    yield world
    world.gateway.stop()


@pytest.fixture
async def scene(world: World) -> AsyncIterator[Scene]:
    scene = Scene(world)
    yield scene
    await scene.close()


async def freeze(broker: Server) -> None:
    """SIGSTOP, and wait until each of its threads has stopped."""
    broker.pause()
    while any(stat.read_text().rpartition(")")[2].split()[0] != "T" for stat in Path(f"/proc/{broker.pid}/task").glob("*/stat")):
        await trio.sleep(0.01)


async def until(senders: list[Sender], acknowledged: int) -> None:
    while sum(len(sender.acknowledged) for sender in senders) < acknowledged:
        await trio.sleep(0.005)


@pytest.mark.parametrize(("qos", "ordered"), [(1, False), (1, True), (2, False)])
async def test_broker_killed_and_started_again(scene: Scene, cluster: RocketMQ, qos: int, ordered: bool) -> None:
    """No acknowledged message is lost, no connection is closed; those that asked for order get it."""
    second = scene.sub()
    topic = scene.parent + second
    receiver = Receiver(connector(scene, scene.id()), [(topic, qos)])
    senders = [Sender(connector(scene, scene.id()), f"s{number}", topic, qos, EACH, WINDOW, PATIENCE, ordered) for number in range(SENDERS)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.run)
        await receiver.subscribed.wait()
        async with trio.open_nursery() as sending:
            for sender in senders:
                sending.start_soon(sender.run)
            for number, broker in enumerate(cluster.brokers, 1):
                await until(senders, SENDERS * EACH * number // 4)
                await trio.to_thread.run_sync(broker.kill)
                await trio.sleep(1)
                await trio.to_thread.run_sync(broker.start)
        wanted = {sender.body(number) for sender in senders for number in range(EACH)}
        await receiver.until(wanted, PATIENCE)
        nursery.cancel_scope.cancel()
    assert {sender.connections for sender in senders} == {1}, "a device was disconnected"
    found = await stored(scene, second, wanted)
    check_identities(found)
    if ordered:
        check_order(EACH, found)
    if qos == 2:
        check_once(receiver)


async def test_broker_frozen_for_a_while(scene: Scene, cluster: RocketMQ) -> None:
    """Its connections stay and nothing is answered: back-pressure, no loss, pings are answered."""
    second = scene.sub()
    topic = scene.parent + second
    receiver = Receiver(connector(scene, scene.id()), [(topic, 1)])
    senders = [Sender(connector(scene, scene.id()), f"s{number}", topic, 1, EACH, WINDOW, PATIENCE) for number in range(SENDERS)]
    idle = await scene.device(keep_alive=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.run)
        await receiver.subscribed.wait()
        async with trio.open_nursery() as sending:
            for sender in senders:
                sending.start_soon(sender.run)
            await until(senders, SENDERS * EACH // 4)
            await freeze(cluster.brokers[0])
            try:
                for _ in range(4):
                    await trio.sleep(1)
                    await idle.ping()
            finally:
                cluster.brokers[0].resume()
        wanted = {sender.body(number) for sender in senders for number in range(EACH)}
        await receiver.until(wanted, PATIENCE)
        nursery.cancel_scope.cancel()
    check_identities(await stored(scene, second, wanted))


async def test_pubacks_keep_their_order_over_two_parents(cluster: RocketMQ, tmp_path_factory: pytest.TempPathFactory, world: World) -> None:
    """One broker is frozen: what waits for it holds back the PUBACKs behind it on the same connection [MQTT-4.6.0-2], and nobody else."""
    remoting = Remoting(cluster.namesrv)
    frozen, live = f"f{world.parent}", f"l{world.parent}"
    await remoting.create_topic(frozen, 4, brokers=["broker-0"])
    await remoting.create_topic(live, 4, brokers=["broker-1"])
    await remoting.close()
    own = World(tmp_path_factory.mktemp("two"), cluster.namesrv, {"bridge": {"topics": [frozen, live]}})
    await trio.to_thread.run_sync(own.gateway.start)
    scene = Scene(own)
    try:
        device, other = await scene.device(), await scene.device()
        await device.deliver(f"{frozen}/a", b"x")
        await device.deliver(f"{live}/a", b"x")
        await other.deliver(f"{live}/a", b"x")
        await freeze(cluster.brokers[0])
        try:
            await device.publish(f"{frozen}/a", b"1", 1, packet_id=1)
            await device.publish(f"{live}/a", b"2", 1, packet_id=2)
            for packet_id in range(3, 8):
                await other.deliver(f"{live}/a", b"x", packet_id=packet_id)
            await device.send_raw(PINGREQ)
            assert (await device.next()).kind is Kind.PINGRESP, "a PUBACK overtook an older one"
        finally:
            cluster.brokers[0].resume()
        for packet_id in (1, 2):
            await device.expect_ack(Kind.PUBACK, packet_id)
    finally:
        await scene.close()
        await trio.to_thread.run_sync(own.gateway.stop)
