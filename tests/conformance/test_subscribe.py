"""SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (clauses 3.8 to 3.11)."""

from __future__ import annotations

import struct

import pytest

from tests.kit.broker import Broker
from tests.kit.device import Device
from tests.kit.wire import Kind, frame, subscribe_bytes, text, unsubscribe_bytes


async def until_marker(device: Device, topic: str) -> list[tuple[str, bytes, int]]:
    """What came before a marker on `topic`, to which the device is subscribed."""
    await device.deliver(topic, b"marker", 1)
    return [(packet.topic, packet.payload, packet.qos) for packet in await device.receive_until(b"marker")]


async def test_mqtt_3_8_4_1_suback(broker: Broker) -> None:
    device = await broker.connect()
    for packet_id in (1, 77, 65535):
        assert await device.subscribe((broker.topic(), 1), packet_id=packet_id) == [1]


async def test_mqtt_3_9_3_1_return_codes_in_order(broker: Broker) -> None:
    device = await broker.connect()
    wanted = [2, 0, 1, 1, 0, 2, 2]
    assert await device.subscribe(*((broker.topic(), qos) for qos in wanted)) == wanted


async def test_mqtt_3_8_4_4_many_filters_work_like_many_packets(broker: Broker) -> None:
    topics = [broker.topic() for _ in range(10)]
    device = await broker.subscriber(*((topic, 1) for topic in topics))
    sender = await broker.connect()
    for topic in topics:
        await sender.deliver(topic, topic.encode())
        assert (await device.receive()).payload == topic.encode()


async def test_mqtt_3_8_4_4_same_filter_twice_in_one_packet(broker: Broker) -> None:
    """As a sequence: the later one replaces the earlier."""
    topic, other = broker.topic(), broker.topic()
    device = await broker.connect()
    assert await device.subscribe((topic, 2), (topic, 0), (other, 1)) == [2, 0, 1]
    await device.deliver(topic, b"x", 2)
    assert await until_marker(device, other) == [(topic, b"x", 0)]


async def test_mqtt_3_8_4_3_subscribing_again_replaces(broker: Broker) -> None:
    topic, other = broker.topic(), broker.topic()
    device = await broker.subscriber((other, 1))
    for qos in (0, 2, 1, 0):
        assert await device.subscribe((topic, qos)) == [qos]
        await device.deliver(topic, b"x", 2)
        assert await until_marker(device, other) == [(topic, b"x", qos)]


async def test_mqtt_3_8_4_3_replaced_subscription_is_what_a_session_keeps(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 2), clean=False)
    await device.subscribe((topic, 1))
    await device.disconnect()
    sender = await broker.connect()
    await sender.deliver(topic, b"x", 2)
    device = await broker.resume(device.client_id)
    packet = await device.receive()
    assert (packet.payload, packet.qos) == (b"x", 1)


@pytest.mark.targets("gateway")  # mosquitto 2.0 gives one copy at the QoS of whichever it finds first
@pytest.mark.parametrize("filters", [(("", 0), ("/+", 2), ("/#", 1)), (("/#", 2), ("/a", 0)), (("/a", 1), ("/+", 1), ("/a/#", 0))])
async def test_mqtt_3_3_5_1_overlapping_subscriptions(broker: Broker, filters: tuple[tuple[str, int], ...]) -> None:
    """One copy at the highest granted QoS of those that match (the standard allows more copies; we promise one)."""
    base, other = broker.topic(), broker.topic()
    device = await broker.subscriber(*((base + name, qos) for name, qos in filters), (other, 1))
    await device.deliver(base + "/a", b"x", 2)
    highest = max(qos for name, qos in filters if name)
    assert await until_marker(device, other) == [(base + "/a", b"x", highest)]


async def test_subscription_becomes_active_with_its_suback(broker: Broker) -> None:
    sender = await broker.connect()
    device = await broker.connect()
    for number in range(20):
        topic = broker.topic()
        await device.subscribe((topic, 1))
        await sender.publish(topic, b"%d" % number, 1)
        assert (await device.receive()).payload == b"%d" % number


async def test_subscriber_gets_its_own_messages(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 1))
    await device.deliver(topic, b"mine")
    assert (await device.receive()).payload == b"mine"


@pytest.mark.parametrize("flags", [flags for flags in range(16) if flags != 2])
async def test_mqtt_3_8_1_1_subscribe_flags_close(broker: Broker, flags: int) -> None:
    device = await broker.connect()
    await device.send_raw(bytes([0x80 | flags]) + subscribe_bytes(1, [("a", 0)])[1:])
    assert await device.expect_closed() == []


@pytest.mark.parametrize("flags", [flags for flags in range(16) if flags != 2])
async def test_mqtt_3_10_1_1_unsubscribe_flags_close(broker: Broker, flags: int) -> None:
    device = await broker.connect()
    await device.send_raw(bytes([0xA0 | flags]) + unsubscribe_bytes(1, ["a"])[1:])
    assert await device.expect_closed() == []


async def test_mqtt_3_8_3_3_subscribe_without_a_filter_closes(broker: Broker) -> None:
    device = await broker.connect()
    await device.send_raw(subscribe_bytes(1, []))
    assert await device.expect_closed() == []


async def test_mqtt_3_10_3_2_unsubscribe_without_a_filter_closes(broker: Broker) -> None:
    device = await broker.connect()
    await device.send_raw(unsubscribe_bytes(1, []))
    assert await device.expect_closed() == []


@pytest.mark.parametrize("qos", [3, 4, 0x80, 0xFC, 0xFF])
async def test_mqtt_3_8_3_4_reserved_qos_bits_close(broker: Broker, qos: int) -> None:
    device = await broker.connect()
    await device.send_raw(subscribe_bytes(1, [("a", 0), ("b", qos)]))
    assert await device.expect_closed() == []


@pytest.mark.parametrize(
    "body",
    [b"", b"\0", b"\0\1\0", b"\0\1\0\5a", b"\0\1" + text("a"), b"\0\1" + text("a") + b"\0" + text("b")],
    ids=["no_id", "half_id", "half_length", "short_filter", "no_qos", "second_without_qos"],
)
async def test_truncated_subscribe_closes(broker: Broker, body: bytes) -> None:
    device = await broker.connect()
    await device.send_raw(frame(0x82, body))
    assert await device.expect_closed() == []


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\1\0", b"\0\1\0\5a"], ids=["no_id", "half_id", "half_length", "short_filter"])
async def test_truncated_unsubscribe_closes(broker: Broker, body: bytes) -> None:
    device = await broker.connect()
    await device.send_raw(frame(0xA2, body))
    assert await device.expect_closed() == []


async def test_mqtt_2_3_1_1_subscribe_with_packet_id_0_closes(broker: Broker) -> None:
    device = await broker.connect()
    await device.send_raw(subscribe_bytes(0, [("a", 0)]))
    assert await device.expect_closed() == []


async def test_mqtt_2_3_1_1_unsubscribe_with_packet_id_0_closes(broker: Broker) -> None:
    device = await broker.connect()
    await device.send_raw(unsubscribe_bytes(0, ["a"]))
    assert await device.expect_closed() == []


async def test_mqtt_3_10_4_2_unsubscribed_topic_comes_no_more(broker: Broker) -> None:
    topic, other = broker.topic(), broker.topic()
    device = await broker.subscriber((topic, 1), (other, 1))
    await device.unsubscribe(topic)
    await device.deliver(topic, b"x")
    assert await until_marker(device, other) == []


async def test_mqtt_3_10_4_1_filters_are_compared_character_by_character(broker: Broker) -> None:
    base, other = broker.topic(), broker.topic()
    device = await broker.subscriber((base + "/a", 1), (other, 1))
    await device.unsubscribe(base + "/+", base + "/#", base + "/A", base + "/a/", "/" + base + "/a", "#")
    await device.deliver(base + "/a", b"still")
    assert await until_marker(device, other) == [(base + "/a", b"still", 1)]


async def test_mqtt_3_10_4_3_started_deliveries_are_completed(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 2), clean=False, auto_ack=False)
    sender = await broker.connect()
    await sender.deliver(topic, b"x", 2)
    packet = await device.receive()
    await device.unsubscribe(topic)
    await device.drop(reset=True)
    device = await broker.resume(device.client_id, auto_ack=False)
    again = await device.receive()
    assert (again.payload, again.packet_id, again.dup) == (b"x", packet.packet_id, True)
    await device.ack(Kind.PUBREC, again.packet_id)
    await device.expect_ack(Kind.PUBREL, again.packet_id)
    await device.ack(Kind.PUBCOMP, again.packet_id)
    await device.ping()


async def test_mqtt_3_10_4_5_unsuback_without_a_match(broker: Broker) -> None:
    device = await broker.connect()
    await device.unsubscribe(broker.topic())
    await device.unsubscribe(broker.topic(), broker.topic() + "/#")


async def test_mqtt_3_10_4_6_many_filters_in_one_unsubscribe(broker: Broker) -> None:
    topics, other = [broker.topic() for _ in range(5)], broker.topic()
    device = await broker.subscriber(*((topic, 1) for topic in topics), (other, 1))
    await device.unsubscribe(*topics[:4])
    for topic in topics:
        await device.deliver(topic, b"x")
    assert await until_marker(device, other) == [(topics[4], b"x", 1)]


async def test_unsubscribe_holds_in_the_stored_session(broker: Broker) -> None:
    topic, other = broker.topic(), broker.topic()
    device = await broker.subscriber((topic, 1), (other, 1), clean=False)
    await device.unsubscribe(topic)
    await device.disconnect()
    sender = await broker.connect()
    await sender.deliver(topic, b"x")
    device = await broker.resume(device.client_id)
    await sender.deliver(topic, b"x")
    assert await until_marker(device, other) == []


async def test_unsubscribing_one_of_two_overlapping_filters_keeps_the_other(broker: Broker) -> None:
    base, other = broker.topic(), broker.topic()
    device = await broker.subscriber((base + "/a", 2), (base + "/+", 1), (other, 1))
    await device.unsubscribe(base + "/a")
    await device.deliver(base + "/a", b"x", 2)
    assert await until_marker(device, other) == [(base + "/a", b"x", 1)]


async def test_unsubscribe_of_one_client_is_not_that_of_another(broker: Broker) -> None:
    topic = broker.topic()
    first, second = await broker.subscriber((topic, 1)), await broker.subscriber((topic, 1))
    await first.unsubscribe(topic)
    await second.deliver(topic, b"x")
    assert (await second.receive()).payload == b"x"


async def test_packet_id_of_subscribe_may_be_used_again_after_suback(broker: Broker) -> None:
    device = await broker.connect()
    for _ in range(3):
        await device.subscribe((broker.topic(), 0), packet_id=5)
        await device.send_raw(frame(0xA2, struct.pack("!H", 5) + text("nothing")))
        await device.expect_ack(Kind.UNSUBACK, 5)
