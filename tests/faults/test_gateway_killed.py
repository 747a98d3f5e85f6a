"""kill -9 of the gateway under load: every acknowledged message is accounted for afterwards (contract section 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import trio

from tests.faults.account import check_identities, check_once, check_order, connector, stored
from tests.kit.load import Receiver, Sender
from tests.kit.world import Scene

SENDERS, EACH, WINDOW, KILLS = 4, 300, 16, 3


async def kill_when(scene: Scene, senders: Sequence[Sender], acknowledged: int) -> None:
    """kill -9 as soon as so many messages are acknowledged, and a new start on the same data."""
    while sum(len(sender.acknowledged) for sender in senders) < acknowledged:
        await trio.sleep(0.005)
    scene.world.gateway.kill()
    await trio.to_thread.run_sync(scene.world.gateway.start)


async def load(scene: Scene, qos: int) -> tuple[list[Sender], Receiver, str]:
    """All senders done, through KILLS kills, and the receiver complete."""
    second = scene.sub()
    topic = scene.parent + second
    receiver = Receiver(connector(scene, scene.id()), [(topic, qos)])
    senders = [Sender(connector(scene, scene.id()), f"s{number}", topic, qos, EACH, WINDOW) for number in range(SENDERS)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.run)
        await receiver.subscribed.wait()
        async with trio.open_nursery() as sending:
            for sender in senders:
                sending.start_soon(sender.run)
            for kill in range(1, KILLS + 1):
                await kill_when(scene, senders, SENDERS * EACH * kill // (KILLS + 1))
        await receiver.until({sender.body(number) for sender in senders for number in range(EACH)}, 60)
        nursery.cancel_scope.cancel()
    assert all(sender.connections > 1 for sender in senders), "nobody noticed a kill"
    return senders, receiver, second


@pytest.mark.slow
async def test_qos_1_no_acknowledged_message_is_lost(scene: Scene) -> None:
    senders, receiver, second = await load(scene, 1)
    wanted = {sender.body(number) for sender in senders for number in sender.acknowledged}
    assert len(wanted) == SENDERS * EACH
    check_order(EACH, await stored(scene, second, wanted))
    assert receiver.times.keys() == wanted


@pytest.mark.slow
async def test_qos_2_every_message_exactly_once(scene: Scene) -> None:
    """To the backend once but for a repeat with the same UNIQ_KEY; to the device once."""
    senders, receiver, second = await load(scene, 2)
    wanted = {sender.body(number) for sender in senders for number in sender.acknowledged}
    assert len(wanted) == SENDERS * EACH
    check_identities(await stored(scene, second, wanted))
    check_once(receiver)


@pytest.mark.slow
async def test_messages_that_wait_for_a_device_survive(scene: Scene) -> None:
    """Offline messages, retained ones and what is in flight, over a kill."""
    second, client_id = scene.sub(), scene.id()
    topic = scene.parent + second
    device = await scene.subscriber((topic, 1), client_id=client_id, clean=False, auto_ack=False)
    sender = await scene.device()
    await sender.deliver(topic, b"in flight", 1)
    in_flight = await device.receive()
    await device.drop(reset=True)
    for number in range(50):
        await sender.deliver(topic, b"%d" % number, 1, retain=number == 49)
    scene.world.gateway.kill()
    await trio.to_thread.run_sync(scene.world.gateway.start)
    device = await scene.device(client_id, clean=False)
    received: Counter[bytes] = Counter()
    while len(received) < 51:
        packet = await device.receive()
        received[packet.payload] += 1
        if packet.payload == b"in flight" and packet.dup:
            assert packet.packet_id == in_flight.packet_id
    assert received.keys() == {b"in flight", *(b"%d" % number for number in range(50))}
    late = await scene.subscriber((topic, 1))
    kept = await late.receive()
    while not kept.retain:
        kept = await late.receive()
    assert kept.payload == b"49"


@pytest.mark.slow
async def test_acknowledged_subscription_survives(scene: Scene) -> None:
    """kill -9 right behind the SUBACK and the UNSUBACK."""
    first, second, client_id = scene.parent + scene.sub(), scene.parent + scene.sub(), scene.id()
    device = await scene.subscriber((first, 1), client_id=client_id, clean=False)
    assert await device.subscribe((second, 1)) == [1]
    await device.unsubscribe(first)
    scene.world.gateway.kill()
    await trio.to_thread.run_sync(scene.world.gateway.start)
    device, ack = await scene.attempt(client_id, clean=False)
    assert ack.session_present
    await device.deliver(first, b"never")
    await device.deliver(second, b"marker")
    assert await device.receive_until(b"marker") == []
