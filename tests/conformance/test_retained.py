"""Retained messages (clause 3.3.1.3)."""

from __future__ import annotations

import pytest

from tests.kit.broker import Broker
from tests.kit.device import Device
from tests.kit.wire import Packet


async def retained(broker: Broker, name: str, qos: int = 2) -> list[Packet]:
    """What a new subscriber of `name` gets as retained messages; a marker on a topic of its own shows the end. A message at QoS 0 that is
    not
    acknowledged may still be on its way when the subscription is made: it comes with RETAIN 0 and is no retained one [MQTT-3.3.1-9]."""
    topic = broker.topic()
    device = await broker.connect()
    await device.subscribe((name, qos))
    await device.subscribe((topic, 1))
    await device.deliver(topic, b"marker")
    return [packet for packet in await device.receive_until(b"marker") if packet.retain]


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_mqtt_3_3_1_5_retained_message_is_stored_with_its_qos(broker: Broker, qos: int) -> None:
    topic = broker.topic()
    device = await broker.connect()
    await device.deliver(topic, b"kept", qos, retain=True)
    [packet] = await retained(broker, topic)
    assert (packet.topic, packet.payload, packet.qos, packet.retain, packet.dup) == (topic, b"kept", qos, True, False)


async def test_mqtt_3_3_1_5_retained_message_outlives_its_sender(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.connect()
    await device.deliver(topic, b"kept", 1, retain=True)
    await device.disconnect()
    assert [packet.payload for packet in await retained(broker, topic)] == [b"kept"]


async def test_mqtt_3_3_1_5_last_retained_message_replaces_the_older(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.connect()
    for number in range(5):
        await device.deliver(topic, b"%d" % number, 1, retain=True)
    assert [packet.payload for packet in await retained(broker, topic)] == [b"4"]


async def test_mqtt_3_3_1_7_qos_0_replaces_the_older_too(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.connect()
    await device.deliver(topic, b"old", 2, retain=True)
    await device.deliver(topic, b"new", 0, retain=True)
    assert [packet.payload for packet in await retained(broker, topic)] == [b"new"]


async def test_mqtt_3_3_1_6_each_new_subscription_gets_it(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.connect()
    await device.deliver(topic, b"kept", 1, retain=True)
    for _ in range(3):
        assert [packet.payload for packet in await retained(broker, topic)] == [b"kept"]


async def test_mqtt_3_8_4_3_subscribing_again_gets_it_again(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.connect()
    await device.deliver(topic, b"kept", 1, retain=True)
    for _ in range(3):
        assert await device.subscribe((topic, 1)) == [1]
        packet = await device.receive()
        assert (packet.payload, packet.retain) == (b"kept", True)


async def test_resumed_session_does_not_get_it_again(broker: Broker) -> None:
    topic, client_id = broker.topic(), broker.id()
    sender = await broker.connect()
    await sender.deliver(topic, b"kept", 1, retain=True)
    device = await broker.subscriber((topic, 1), client_id=client_id, clean=False)
    assert (await device.receive()).payload == b"kept"
    await device.disconnect()
    device = await broker.resume(client_id)
    await sender.deliver(topic, b"marker")
    assert await device.receive_until(b"marker") == []


async def test_mqtt_3_3_1_8_and_9_retain_flag_of_new_and_established_subscriptions(broker: Broker) -> None:
    topic = broker.topic()
    established = await broker.subscriber((topic, 1))
    sender = await broker.connect()
    await sender.deliver(topic, b"kept", 1, retain=True)
    live = await established.receive()
    assert (live.payload, live.retain) == (b"kept", False)
    [late] = await retained(broker, topic)
    assert (late.payload, late.retain) == (b"kept", True)


async def test_mqtt_3_3_1_9_retain_flag_of_messages_kept_offline(broker: Broker) -> None:
    topic, client_id = broker.topic(), broker.id()
    await (await broker.subscriber((topic, 1), client_id=client_id, clean=False)).disconnect()
    sender = await broker.connect()
    await sender.deliver(topic, b"kept", 1, retain=True)
    device = await broker.resume(client_id)
    packet = await device.receive()
    assert (packet.payload, packet.retain) == (b"kept", False)


async def test_mqtt_3_3_1_10_empty_payload_clears_and_is_delivered(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 1))
    await device.deliver(topic, b"kept", 1, retain=True)
    assert (await device.receive()).payload == b"kept"
    await device.deliver(topic, b"", 1, retain=True)
    packet = await device.receive()
    assert (packet.payload, packet.retain) == (b"", False)
    assert await retained(broker, topic) == []


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_mqtt_3_3_1_11_empty_payload_is_not_stored(broker: Broker, qos: int) -> None:
    topic = broker.topic()
    device = await broker.connect()
    await device.deliver(topic, b"", qos, retain=True)
    assert await retained(broker, topic) == []
    await device.deliver(topic, b"kept", 1, retain=True)
    await device.deliver(topic, b"", qos, retain=True)
    assert await retained(broker, topic) == []


@pytest.mark.parametrize("payload", [b"", b"plain"], ids=["empty", "plain"])
async def test_mqtt_3_3_1_12_message_without_retain_changes_nothing(broker: Broker, payload: bytes) -> None:
    topic = broker.topic()
    device = await broker.connect()
    await device.deliver(topic, payload, 1)
    assert await retained(broker, topic) == []
    await device.deliver(topic, b"kept", 1, retain=True)
    await device.deliver(topic, payload, 1)
    assert [packet.payload for packet in await retained(broker, topic)] == [b"kept"]


async def test_retained_messages_of_wildcard_filters(broker: Broker) -> None:
    base = broker.topic()
    device = await broker.connect()
    for name in ("", "/a", "/a/x", "/b", "/b/x", "/b/x/deep", "/"):
        await device.deliver(base + name, name.encode(), 1, retain=True) if name else await device.deliver(base, b"base", 1, retain=True)
    wanted = {
        "/#": {"base", "/a", "/a/x", "/b", "/b/x", "/b/x/deep", "/"},
        "/+": {"/a", "/b", "/"},
        "/+/x": {"/a/x", "/b/x"},
        "/b/#": {"/b", "/b/x", "/b/x/deep"},
        "/+/+": {"/a/x", "/b/x"},
        "/+/x/#": {"/a/x", "/b/x", "/b/x/deep"},
        "/a/+": {"/a/x"},
        "/c/#": set(),
        "": {"base"},
    }
    for name, expected in wanted.items():
        found = await retained(broker, base + name)
        assert {packet.payload.decode() for packet in found} == expected, name
        assert len(found) == len(expected), name
        assert all(packet.retain for packet in found)


async def test_retained_messages_of_several_filters_in_one_subscribe(broker: Broker) -> None:
    first, second = broker.topic(), broker.topic()
    device = await broker.connect()
    await device.deliver(first, b"1", 1, retain=True)
    await device.deliver(second, b"2", 1, retain=True)
    assert await device.subscribe((first, 1), (second, 0), (broker.topic(), 1)) == [1, 0, 1]
    found = [await device.receive(), await device.receive()]
    assert {(packet.payload, packet.qos) for packet in found} == {(b"1", 1), (b"2", 0)}


@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_mqtt_3_8_4_6_retained_messages_are_downgraded(broker: Broker, qos: int, granted: int) -> None:
    topic = broker.topic()
    device = await broker.connect()
    await device.deliver(topic, b"kept", qos, retain=True)
    assert [packet.qos for packet in await retained(broker, topic, granted)] == [min(qos, granted)]


async def test_retained_topics_are_told_apart(broker: Broker) -> None:
    base = broker.topic()
    device = await broker.connect()
    names = [base, base + "/", "/" + base, base + "/a", base + "/A", base + "/a ", base + "/ä"]
    for name in names:
        await device.deliver(name, name.encode(), 1, retain=True)
    for name in names:
        assert [(packet.topic, packet.payload) for packet in await retained(broker, name)] == [(name, name.encode())]


async def test_retained_message_is_not_given_to_other_subscribers_again(broker: Broker) -> None:
    topic = broker.topic()
    first = await broker.subscriber((topic, 1))
    await first.deliver(topic, b"kept", 1, retain=True)
    assert (await first.receive()).payload == b"kept"
    await broker.subscriber((topic, 1))
    await first.deliver(topic, b"marker")
    assert await first.receive_until(b"marker") == []


@pytest.mark.parametrize("payload", [b"\0", b"\0\1\2\xff", b"r" * 60000], ids=["null", "binary", "long"])
async def test_retained_payload_is_any_bytes(broker: Broker, payload: bytes) -> None:
    topic = broker.topic()
    device = await broker.connect()
    await device.deliver(topic, payload, 1, retain=True)
    assert [packet.payload for packet in await retained(broker, topic)] == [payload]


async def test_retained_message_waits_for_the_handshake_of_a_new_subscriber(broker: Broker) -> None:
    """QoS 2 both ways, taken up again after a lost connection."""
    topic, client_id = broker.topic(), broker.id()
    sender = await broker.connect()
    await sender.deliver(topic, b"kept", 2, retain=True)
    device: Device = await broker.subscriber((topic, 2), client_id=client_id, clean=False, auto_ack=False)
    first = await device.receive()
    await device.drop(reset=True)
    device = await broker.resume(client_id)
    again = await device.receive()
    assert (again.payload, again.packet_id, again.dup, again.qos) == (first.payload, first.packet_id, True, 2)
