"""Messages between devices and server apps of different nodes (contract section 5, design section 5)."""

from __future__ import annotations

import pytest
import trio

from tests.kit.device import Device
from tests.kit.nodes import Nodes

pytestmark = pytest.mark.services

QUEUES = 8


async def spread(nodes: Nodes, node: int, topic: str, qos: int, many: int = 3) -> list[bytes]:
    """Publish from so many devices that every queue of the topic, whichever node reads it, gets some; the payloads."""
    sent: list[bytes] = []
    for number in range(2 * QUEUES):
        device = await nodes.device(node)
        for each in range(many):
            payload = b"%d-%d" % (number, each)
            await device.deliver(topic, payload, qos)
            sent.append(payload)
        await device.disconnect()
    return sent


async def payloads(device: Device, many: int) -> list[bytes]:
    return [(await device.receive()).payload for _ in range(many)]


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_subscription_on_one_node_gets_what_is_published_on_another(nodes: Nodes, clean: bool, qos: int) -> None:
    topic = nodes.topic()
    receivers = [await nodes.device(node, clean=clean) for node in (0, 1)]
    for receiver in receivers:
        assert await receiver.subscribe((topic, qos)) == [qos]
    sent = await spread(nodes, 1, topic, 1)
    for receiver in receivers:
        found = await payloads(receiver, len(sent))
        assert sorted(found) == sorted(sent)
        for number in range(2 * QUEUES):
            mine = [payload for payload in found if payload.startswith(b"%d-" % number)]
            assert mine == sorted(mine), "what a device publishes keeps its order"


@pytest.mark.parametrize("filter", ["{topic}/#", "{topic}/+/x", "{parent}/#", "{parent}/+/a/x"])
async def test_a_wildcard_made_on_one_node_holds_on_the_other_when_the_suback_leaves(nodes: Nodes, filter: str) -> None:
    publishers = [await nodes.device(1) for _ in range(QUEUES)]
    for number in range(10):
        topic = nodes.topic()
        receiver = await nodes.device(0)
        await receiver.subscribe((filter.format(topic=topic, parent=nodes.parent), 1))
        publisher = publishers[number % QUEUES]
        await publisher.deliver(f"{topic}/a/x", b"at once", 1)
        found = await receiver.receive()
        assert (found.topic, found.payload) == (f"{topic}/a/x", b"at once")
        await receiver.disconnect()


async def test_nothing_comes_after_the_unsuback(nodes: Nodes) -> None:
    topic = nodes.topic()
    receivers = [await nodes.device(0), await nodes.device(0, clean=False)]
    publisher = await nodes.device(1)
    for receiver in receivers:
        await receiver.subscribe((topic, 1), (f"{topic}/end", 1))
    await publisher.deliver(topic, b"1", 1)
    for receiver in receivers:
        assert (await receiver.receive()).payload == b"1"
        await receiver.unsubscribe(topic)
    await publisher.deliver(topic, b"2", 1)
    await publisher.deliver(f"{topic}/end", b"end", 1)
    for receiver in receivers:
        assert await receiver.receive_until(b"end") == []


async def test_a_server_apps_message_reaches_the_subscribers_of_every_node(nodes: Nodes) -> None:
    topic = nodes.topic()
    receivers = [await nodes.device(node, clean=clean) for node in (0, 1) for clean in (True, False)]
    for receiver in receivers:
        await receiver.subscribe((f"{topic}/+", 1))
    app = nodes.app()
    sent = [b"%d" % number for number in range(4 * QUEUES)]
    for body in sent:
        await app.send(nodes.parent, body, properties={"mqttSecondTopic": topic.removeprefix(nodes.parent) + "/x"})
    for receiver in receivers:
        assert sorted(await payloads(receiver, len(sent))) == sorted(sent)


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_p2p_finds_its_receiver_on_another_node(nodes: Nodes, qos: int) -> None:
    for clean in (True, False):
        client_id = nodes.id()
        receiver = await nodes.device(0, client_id, clean=clean)
        sent = await spread(nodes, 1, f"{nodes.parent}/p2p/{client_id}", qos, 1)
        assert sorted(await payloads(receiver, len(sent))) == sorted(sent)


async def test_p2p_waits_if_the_sender_is_persistent_and_is_fetched_on_another_node(nodes: Nodes) -> None:
    client_id = nodes.id()
    receiver = await nodes.device(0, client_id, clean=False)
    await receiver.disconnect()
    for clean, payload in ((True, b"dropped"), (False, b"kept")):
        sender = await nodes.device(1, clean=clean)
        await sender.deliver(f"{nodes.parent}/p2p/{client_id}", payload, 1)
    await trio.sleep(1)
    again, ack = await nodes.attempt(1, client_id, clean=False)
    assert ack.session_present
    assert (await again.receive()).payload == b"kept"
    await again.expect_nothing(0.5)


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_session_made_on_one_node_gets_on_another_what_came_while_it_was_away(nodes: Nodes, qos: int) -> None:
    topic, client_id = nodes.topic(), nodes.id()
    receiver = await nodes.device(0, client_id, clean=False)
    await receiver.subscribe((topic, qos))
    await receiver.disconnect()
    sent = await spread(nodes, 1, topic, qos)
    again, ack = await nodes.attempt(1, client_id, clean=False)
    assert ack.session_present
    assert sorted(await payloads(again, len(sent))) == sorted(sent)
    await again.disconnect()
    third, ack = await nodes.attempt(0, client_id, clean=False)
    assert ack.session_present
    await third.expect_nothing(0.5)
    publisher = await nodes.device(1)
    await publisher.deliver(topic, b"live", 1)
    assert (await third.receive()).payload == b"live"


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_device_that_hops_between_nodes_under_load_misses_nothing(nodes: Nodes, qos: int) -> None:
    topic, client_id = nodes.topic(), nodes.id()
    receiver = await nodes.device(0, client_id, clean=False)
    await receiver.subscribe((topic, qos))
    sent = [b"%d" % number for number in range(400)]
    found: list[bytes] = []
    done = trio.Event()

    async def publish() -> None:
        publishers = [await nodes.device(number % 2) for number in range(4)]
        for number, payload in enumerate(sent):
            await publishers[number % 4].deliver(topic, payload, 1)
            await trio.sleep(0.005)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        node = 0
        while not done.is_set() or len(set(found)) < len(sent):
            until = trio.current_time() + 0.4
            with trio.move_on_at(until):
                while True:
                    found.append((await receiver.receive(30)).payload)
            node = 1 - node
            receiver, ack = await nodes.attempt(node, client_id, clean=False)
            assert ack.code == 0
            assert ack.session_present
            assert trio.current_time() < until + 20
    assert set(found) == set(sent)
    if qos == 2:
        assert len(found) == len(sent), "exactly once"


async def test_a_retained_message_is_the_same_on_every_node(nodes: Nodes) -> None:
    publisher = await nodes.device(0)
    for number in range(5):
        topic = nodes.topic()
        await publisher.deliver(topic, b"kept %d" % number, 1, retain=True)
        receiver = await nodes.device(1)
        await receiver.subscribe((topic, 1))
        found = await receiver.receive()
        assert found.payload == b"kept %d" % number
        assert found.retain
        await publisher.deliver(topic, b"", 1, retain=True)
        await receiver.receive_until(b"")  # it has come to that node: a later subscription there does not meet it on its way
        late = await nodes.device(1)
        await late.subscribe((topic, 1))
        await late.expect_nothing(0.2)
