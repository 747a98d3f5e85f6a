"""Message order (clause 4.6)."""

from __future__ import annotations

import pytest
import trio

from tests.kit.broker import Broker
from tests.kit.wire import Kind, publish_bytes


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_mqtt_4_6_0_6_order_of_one_topic(broker: Broker, qos: int) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, qos))
    sender = await broker.connect()
    sent = [b"%d" % number for number in range(100)]
    for payload in sent:
        await sender.publish(topic, payload, qos)
        if qos == 2:
            await sender.expect(Kind.PUBCOMP)
    assert [(await device.receive()).payload for _ in sent] == sent


@pytest.mark.parametrize("qos", [0, 1])
async def test_mqtt_4_6_0_6_order_in_one_segment(broker: Broker, qos: int) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, qos))
    sender = await broker.connect()
    sent = [b"%d" % number for number in range(80)]
    await sender.send_raw(
        b"".join(publish_bytes(topic, payload, qos, packet_id=index + 1 if qos else None) for index, payload in enumerate(sent))
    )
    assert [(await device.receive()).payload for _ in sent] == sent


async def test_mqtt_4_6_0_5_order_for_each_of_many_subscribers(broker: Broker) -> None:
    topic = broker.topic()
    devices = [await broker.subscriber((topic, qos)) for qos in (0, 1, 2) for _ in range(3)]
    sender = await broker.connect()
    sent = [b"%d" % number for number in range(50)]
    for payload in sent:
        await sender.deliver(topic, payload)
    for device in devices:
        assert [(await device.receive()).payload for _ in sent] == sent


async def test_mqtt_4_6_0_6_order_through_a_wildcard(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic + "/#", 1))
    sender = await broker.connect()
    sent = [b"%d" % number for number in range(60)]
    for number, payload in enumerate(sent):
        await sender.publish(f"{topic}/{number % 3}", payload, 1)
    received = [await device.receive() for _ in sent]
    for branch in range(3):
        assert [packet.payload for packet in received if packet.topic == f"{topic}/{branch}"] == sent[branch::3]


async def test_mqtt_4_6_0_6_order_of_each_of_two_senders(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 1))
    async with trio.open_nursery() as nursery:
        for name in (b"a", b"b"):
            sender = await broker.connect()

            async def send(sender=sender, name=name) -> None:  # type: ignore[no-untyped-def]
                for number in range(50):
                    await sender.deliver(topic, name + b"%d" % number)

            nursery.start_soon(send)
    received = [(await device.receive()).payload for _ in range(100)]
    for name in (b"a", b"b"):
        assert [payload for payload in received if payload.startswith(name)] == [name + b"%d" % number for number in range(50)]


async def test_mqtt_4_6_0_3_pubrecs_and_4_6_0_4_pubcomps_in_order(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.connect(auto_ack=False)
    ids = list(range(1, 16))
    await device.send_raw(b"".join(publish_bytes(topic, b"x", 2, packet_id=number) for number in ids))
    for number in ids:
        await device.expect_ack(Kind.PUBREC, number)
    for number in ids:
        await device.ack(Kind.PUBREL, number)
    for number in ids:
        await device.expect_ack(Kind.PUBCOMP, number)


async def test_mqtt_4_6_0_4_pubrels_in_the_order_of_the_pubrecs(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 2), auto_ack=False)
    sender = await broker.connect()
    for number in range(5):
        await sender.deliver(topic, b"%d" % number, 2)
    ids = [(await device.receive()).packet_id for _ in range(5)]
    for number in ids:
        await device.ack(Kind.PUBREC, number)
    for number in ids:
        await device.expect_ack(Kind.PUBREL, number)


async def test_order_of_what_was_kept_offline(broker: Broker) -> None:
    topic, client_id = broker.topic(), broker.id()
    await (await broker.subscriber((topic, 2), client_id=client_id, clean=False)).disconnect()
    sender = await broker.connect()
    sent = [b"%d" % number for number in range(20)]
    for number, payload in enumerate(sent):
        await sender.deliver(topic, payload, 1 + number % 2)
    device = await broker.resume(client_id)
    received = [await device.receive() for _ in sent]
    for qos in (1, 2):
        assert [packet.payload for packet in received if packet.qos == qos] == sent[qos - 1 :: 2]
