"""Sessions that move between nodes, and what the lifecycle topic says of it (contract sections 1 and 7)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kit.nodes import Nodes
from tests.kit.server_app import next_where
from tests.kit.wire import Kind, Will

pytestmark = pytest.mark.services


async def test_a_connect_on_another_node_takes_the_session_over(nodes: Nodes) -> None:
    app = nodes.app()
    reader = await app.reader(f"{nodes.watched}_MQTT")
    client_id = nodes.id(nodes.watched)
    connections = []
    for number in range(6):
        connections.append(await nodes.device(number % 2, client_id, clean=False))
    for older in connections[:-1]:
        await older.expect_closed()
    await connections[-1].ping()
    await connections[-1].disconnect()
    events: list[dict[str, Any]] = []
    while len(events) < 13:  # a connect and a tcpclean for each, and the last one's disconnect
        message = await next_where(reader, lambda message: json.loads(message.body)["clientId"] == client_id)
        events.append(json.loads(message.body))
    times = [event["time"] for event in events]
    assert times == sorted(set(times)), "time grows strictly, whichever node the events come from"
    open_now: str | None = None
    for event in events:
        if event["eventType"] == "connect":
            assert open_now is None, "the older connection's tcpclean goes before the newer one's connect"
            open_now = event["channelId"]
        elif event["eventType"] == "tcpclean":
            assert event["channelId"] == open_now
            open_now = None
    assert open_now is None


async def test_what_the_older_node_held_comes_again_on_the_newer_one(nodes: Nodes) -> None:
    topic, client_id = nodes.topic(), nodes.id()
    older = await nodes.device(0, client_id, auto_ack=False, clean=False)
    await older.subscribe((topic, 1))
    publisher = await nodes.device(1)
    for number in range(5):
        await publisher.deliver(topic, b"%d" % number, 1)
    first = [await older.receive() for _ in range(5)]
    newer, ack = await nodes.attempt(1, client_id, auto_ack=False, clean=False)
    assert ack.session_present
    await older.expect_closed()
    again = [await newer.receive() for _ in range(5)]
    assert [(each.payload, each.packet_id) for each in again] == [(each.payload, each.packet_id) for each in first]
    assert all(each.dup for each in again), "[MQTT-4.4.0-1]"
    for each in again:
        assert each.packet_id is not None
        await newer.ack(Kind.PUBACK, each.packet_id)
    await newer.ping()


async def test_inbound_qos_2_is_finished_on_another_node(nodes: Nodes) -> None:
    topic, client_id = nodes.topic(), nodes.id()
    receiver = await nodes.device(0)
    await receiver.subscribe((topic, 2), (f"{topic}/end", 2))
    sender = await nodes.device(0, client_id, auto_ack=False, clean=False)
    packet_id = await sender.publish(topic, b"once", 2)
    await sender.expect_ack(Kind.PUBREC, packet_id)
    sender = await nodes.device(1, client_id, auto_ack=False, clean=False)
    await sender.publish(topic, b"once", 2, dup=True, packet_id=packet_id)
    await sender.expect_ack(Kind.PUBREC, packet_id)
    await sender.ack(Kind.PUBREL, packet_id)
    await sender.expect_ack(Kind.PUBCOMP, packet_id)
    other = await nodes.device(1)
    await other.deliver(f"{topic}/end", b"end", 2)
    assert [each.payload for each in await receiver.receive_until(b"end")] == [b"once"]


async def test_a_clean_connect_on_another_node_ends_the_stored_session(nodes: Nodes) -> None:
    topic, client_id = nodes.topic(), nodes.id()
    device = await nodes.device(0, client_id, clean=False)
    await device.subscribe((topic, 1))
    device, ack = await nodes.attempt(1, client_id, clean=True)
    assert not ack.session_present
    publisher = await nodes.device(0)
    await publisher.deliver(topic, b"for nobody", 1)
    await device.disconnect()
    device, ack = await nodes.attempt(0, client_id, clean=False)
    assert not ack.session_present
    await device.expect_nothing(0.3)


async def test_a_will_goes_out_when_the_session_is_taken_over_elsewhere(nodes: Nodes) -> None:
    topic, client_id = nodes.topic(), nodes.id()
    receiver = await nodes.device(1)
    await receiver.subscribe((topic, 1))
    await nodes.device(0, client_id, will=Will(topic, b"gone", 1))
    await nodes.device(1, client_id)
    assert (await receiver.receive()).payload == b"gone"
