"""PUBLISH from server to device: QoS 0, 1 and 2, interruptions and what is sent again (clauses 3.3, 4.3 and 4.4)."""

from __future__ import annotations

import pytest

from tests.kit.broker import Broker
from tests.kit.device import Device
from tests.kit.wire import Kind


@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_mqtt_3_8_4_6_qos_is_the_lower_of_both(broker: Broker, qos: int, granted: int) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, granted))
    sender = await broker.connect()
    await sender.deliver(topic, b"x", qos)
    packet = await device.receive()
    assert (packet.qos, packet.dup, packet.retain) == (min(qos, granted), False, False)
    assert bool(packet.packet_id) == bool(packet.qos)  # [MQTT-2.3.1-5]


async def test_mqtt_2_3_1_4_ids_in_flight_are_different(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 2), auto_ack=False)
    sender = await broker.connect()
    for number in range(10):
        await sender.deliver(topic, b"%d" % number, 1 + number % 2)
    packets = [await device.receive() for _ in range(10)]
    assert len({packet.packet_id for packet in packets}) == 10


async def test_mqtt_4_3_2_1_qos_1_is_sent_once_on_one_connection(broker: Broker) -> None:
    """No timer sends it again [MQTT-4.4.0-1]; after its PUBACK it is over."""
    topic = broker.topic()
    device = await broker.subscriber((topic, 1), auto_ack=False)
    await device.deliver(topic, b"once")
    packet = await device.receive()
    await device.expect_nothing(0.3)
    await device.ack(Kind.PUBACK, packet.packet_id)
    await device.deliver(topic, b"marker")
    assert await device.receive_until(b"marker") == []


async def test_mqtt_4_3_3_1_qos_2_handshake(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 2), auto_ack=False)
    sender = await broker.connect()
    await sender.deliver(topic, b"once", 2)
    packet = await device.receive()
    assert (packet.qos, packet.dup) == (2, False)
    await device.ack(Kind.PUBREC, packet.packet_id)
    await device.expect_ack(Kind.PUBREL, packet.packet_id)
    await device.ack(Kind.PUBCOMP, packet.packet_id)
    await device.ping()
    assert device.inbox == []


async def test_mqtt_4_3_3_1_pubrec_again_is_answered_again(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 2), auto_ack=False)
    sender = await broker.connect()
    await sender.deliver(topic, b"once", 2)
    packet = await device.receive()
    for _ in range(2):
        await device.ack(Kind.PUBREC, packet.packet_id)
        await device.expect_ack(Kind.PUBREL, packet.packet_id)
    await device.ack(Kind.PUBCOMP, packet.packet_id)
    await device.ping()


async def come_back(broker: Broker, device: Device, end: str) -> Device:
    """End the connection and resume its session, acknowledging nothing."""
    if end == "disconnect":
        await device.disconnect()
    elif end == "drop":
        await device.drop(reset=True)
    new = await broker.resume(device.client_id, auto_ack=False)
    if end == "take_over":
        await device.expect_closed()
    return new


ENDS = pytest.mark.parametrize("end", ["drop", "disconnect", "take_over"])


@ENDS
@pytest.mark.parametrize("qos", [1, 2])
async def test_mqtt_4_4_0_1_unacknowledged_is_sent_again(broker: Broker, qos: int, end: str) -> None:
    """DUP 1, the same packet id, and again at every coming back [MQTT-3.3.1-1], [MQTT-2.3.1-3]."""
    topic = broker.topic()
    device = await broker.subscriber((topic, qos), clean=False, auto_ack=False)
    sender = await broker.connect()
    await sender.deliver(topic, b"x", qos)
    first = await device.receive()
    assert not first.dup
    for _ in range(2):
        device = await come_back(broker, device, end)
        again = await device.receive()
        assert (again.payload, again.packet_id, again.qos, again.dup) == (b"x", first.packet_id, qos, True)
    await device.ack(Kind.PUBACK if qos == 1 else Kind.PUBREC, first.packet_id)
    if qos == 2:
        await device.expect_ack(Kind.PUBREL, first.packet_id)
        await device.ack(Kind.PUBCOMP, first.packet_id)
    await device.ping()
    device = await come_back(broker, device, end)
    await sender.deliver(topic, b"marker", qos)
    assert await device.receive_until(b"marker") == []


@ENDS
async def test_mqtt_4_4_0_1_pubrel_is_sent_again(broker: Broker, end: str) -> None:
    """After the PUBREC only the PUBREL, with the same id, never the PUBLISH."""
    topic = broker.topic()
    device = await broker.subscriber((topic, 2), clean=False, auto_ack=False)
    sender = await broker.connect()
    await sender.deliver(topic, b"once", 2)
    packet = await device.receive()
    await device.ack(Kind.PUBREC, packet.packet_id)
    await device.expect_ack(Kind.PUBREL, packet.packet_id)
    for _ in range(2):
        device = await come_back(broker, device, end)
        again = await device.next()
        assert (again.kind, again.packet_id) == (Kind.PUBREL, packet.packet_id)
    await device.ack(Kind.PUBCOMP, packet.packet_id)
    await device.ping()
    device = await come_back(broker, device, end)
    await sender.deliver(topic, b"marker", 2)
    assert await device.receive_until(b"marker") == []
    assert device.inbox == []


@ENDS
async def test_mqtt_4_6_0_1_sent_again_in_the_original_order(broker: Broker, end: str) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 2), clean=False, auto_ack=False)
    sender = await broker.connect()
    for number in range(8):
        await sender.deliver(topic, b"%d" % number, 1 + number % 2)
    first = [await device.receive() for _ in range(8)]
    assert {packet.payload for packet in first} == {b"%d" % number for number in range(8)}  # their order is promised for each QoS only
    device = await come_back(broker, device, end)
    again = [await device.receive() for _ in range(8)]
    assert [(packet.payload, packet.packet_id) for packet in again] == [(packet.payload, packet.packet_id) for packet in first]
    assert all(packet.dup for packet in again)


async def test_mqtt_4_4_0_1_only_what_is_not_acknowledged_is_sent_again(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 1), clean=False, auto_ack=False)
    sender = await broker.connect()
    for number in range(6):
        await sender.deliver(topic, b"%d" % number)
    packets = [await device.receive() for _ in range(6)]
    for packet in packets[::2]:
        await device.ack(Kind.PUBACK, packet.packet_id)
    await device.ping()
    device = await come_back(broker, device, "drop")
    again = [await device.receive() for _ in range(3)]
    assert [(packet.payload, packet.packet_id) for packet in again] == [(packet.payload, packet.packet_id) for packet in packets[1::2]]


async def test_resent_messages_come_before_those_of_the_time_offline(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 1), clean=False, auto_ack=False)
    sender = await broker.connect()
    for number in range(3):
        await sender.deliver(topic, b"%d" % number)
    for _ in range(3):
        await device.receive()
    await device.disconnect()
    for number in range(3, 6):
        await sender.deliver(topic, b"%d" % number)
    device = await broker.resume(device.client_id)
    packets = [await device.receive() for _ in range(6)]
    assert [packet.payload for packet in packets] == [b"%d" % number for number in range(6)]
    assert [packet.dup for packet in packets] == [True] * 3 + [False] * 3


async def test_mqtt_3_1_2_6_clean_session_gets_nothing_again(broker: Broker) -> None:
    topic, client_id = broker.topic(), broker.id()
    device = await broker.subscriber((topic, 1), client_id=client_id, clean=False, auto_ack=False)
    await device.deliver(topic, b"x")
    await device.receive()
    await device.drop(reset=True)
    device = await broker.subscriber((topic, 1), client_id=client_id)
    await device.deliver(topic, b"marker")
    assert await device.receive_until(b"marker") == []


async def test_packet_ids_are_used_again(broker: Broker) -> None:
    """More messages than the window holds, on one connection."""
    topic = broker.topic()
    device = await broker.subscriber((topic, 1))
    sender = await broker.connect()
    sent = [b"%d" % number for number in range(300)]
    for start in range(0, 300, 50):
        for payload in sent[start : start + 50]:
            await sender.publish(topic, payload, 1)
        for _ in range(50):
            await sender.expect(Kind.PUBACK)
    assert [(await device.receive()).payload for _ in sent] == sent


async def test_device_that_never_acknowledges_slows_nobody(broker: Broker) -> None:
    topic = broker.topic()
    stuck = await broker.subscriber((topic, 1), auto_ack=False, clean=False)
    quick = await broker.subscriber((topic, 1))
    sender = await broker.connect()
    sent = [b"%d" % number for number in range(200)]
    for payload in sent:
        await sender.publish(topic, payload, 1)
    for _ in sent:
        await sender.expect(Kind.PUBACK)
    assert [(await quick.receive()).payload for _ in sent] == sent
    await stuck.ping()


async def test_acknowledgements_out_of_order_are_taken(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 1), auto_ack=False)
    for number in range(5):
        await device.deliver(topic, b"%d" % number)
    for packet in reversed([await device.receive() for _ in range(5)]):
        await device.ack(Kind.PUBACK, packet.packet_id)
    await device.deliver(topic, b"marker")
    assert await device.receive_until(b"marker") == []


async def test_acknowledgement_of_the_wrong_kind_does_not_finish_it(broker: Broker) -> None:
    """A PUBACK for a QoS 2 message: it is sent again, or the connection is closed; it is never lost."""
    topic = broker.topic()
    device = await broker.subscriber((topic, 2), clean=False, auto_ack=False)
    sender = await broker.connect()
    await sender.deliver(topic, b"x", 2)
    packet = await device.receive()
    await device.ack(Kind.PUBCOMP, packet.packet_id)
    await device.drop()
    device = await broker.resume(device.client_id, auto_ack=False)
    again = await device.receive()
    assert (again.payload, again.packet_id, again.dup) == (b"x", packet.packet_id, True)
