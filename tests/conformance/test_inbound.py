"""PUBLISH from device to server: QoS 0, 1 and 2 and every interruption of their handshakes (clauses 3.3 to 3.7 and 4.3)."""

from __future__ import annotations

import pytest

from tests.kit.broker import Broker
from tests.kit.device import Device
from tests.kit.wire import Kind, ack_bytes, publish_bytes, subscribe_bytes


async def arrived(device: Device, watcher: Device, topic: str, qos: int) -> list[bytes]:
    """What reached the watcher before a marker of the same sender and QoS [MQTT-4.6.0-6]."""
    await device.deliver(topic, b"marker", qos, packet_id=1000)
    return [packet.payload for packet in await watcher.receive_until(b"marker")]


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("payload", [b"", b"x", b"\0\1\xff" * 100, b"p" * 60000], ids=["empty", "one", "binary", "long"])
async def test_mqtt_3_3_4_1_every_qos_every_payload(broker: Broker, qos: int, payload: bytes) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 2))
    device = await broker.connect()
    await device.deliver(topic, payload, qos)
    packet = await watcher.receive()
    assert (packet.topic, packet.payload, packet.qos, packet.retain, packet.dup) == (topic, payload, qos, False, False)


async def test_mqtt_2_3_1_6_acknowledgements_carry_the_packet_id(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.connect(auto_ack=False)
    for packet_id in (1, 2, 255, 256, 32768, 65535):
        await device.publish(topic, b"x", 1, packet_id=packet_id)
        await device.expect_ack(Kind.PUBACK, packet_id)
        await device.publish(topic, b"x", 2, packet_id=packet_id)
        await device.expect_ack(Kind.PUBREC, packet_id)
        await device.ack(Kind.PUBREL, packet_id)
        await device.expect_ack(Kind.PUBCOMP, packet_id)


async def test_mqtt_4_3_2_2_packet_id_is_free_after_puback(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await broker.connect()
    for number in range(5):
        await device.deliver(topic, b"%d" % number, 1, packet_id=7)
    assert await arrived(device, watcher, topic, 1) == [b"0", b"1", b"2", b"3", b"4"]


async def test_mqtt_4_3_2_2_repeated_qos_1_is_a_new_message(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await broker.connect()
    await device.deliver(topic, b"x", 1, packet_id=7)
    await device.publish(topic, b"x", 1, dup=True, packet_id=7)
    await device.expect_ack(Kind.PUBACK, 7)
    assert await arrived(device, watcher, topic, 1) == [b"x", b"x"]


async def test_mqtt_3_3_1_3_dup_is_not_passed_on(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 2))
    device = await broker.connect()
    for qos in (1, 2):
        packet_id = await device.publish(topic, b"x", qos, dup=True)
        await device.expect_ack(Kind.PUBACK if qos == 1 else Kind.PUBCOMP, packet_id)
        packet = await watcher.receive()
        assert (packet.payload, packet.dup, packet.qos) == (b"x", False, qos)


async def test_mqtt_4_3_3_2_repeat_before_pubrel_is_no_new_message(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 2))
    device = await broker.connect(auto_ack=False)
    for index in range(2):  # mosquitto 2.0 closes at the third
        await device.publish(topic, b"once", 2, dup=index > 0, packet_id=9)
        await device.expect_ack(Kind.PUBREC, 9)
    await device.ack(Kind.PUBREL, 9)
    await device.expect_ack(Kind.PUBCOMP, 9)
    assert await arrived(device, watcher, topic, 2) == [b"once"]


async def test_mqtt_4_3_3_2_packet_id_is_free_after_pubcomp(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 2))
    device = await broker.connect()
    for number in range(5):
        await device.deliver(topic, b"%d" % number, 2, packet_id=9)
    assert await arrived(device, watcher, topic, 2) == [b"0", b"1", b"2", b"3", b"4"]


async def test_mqtt_4_3_3_2_pubrel_is_answered_every_time(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.connect(auto_ack=False)
    await device.publish(topic, b"x", 2, packet_id=3)
    await device.expect_ack(Kind.PUBREC, 3)
    for _ in range(3):
        await device.ack(Kind.PUBREL, 3)
        await device.expect_ack(Kind.PUBCOMP, 3)


async def test_mqtt_3_6_4_pubrel_of_an_unknown_id_is_answered(broker: Broker) -> None:
    device = await broker.connect(auto_ack=False)
    await device.ack(Kind.PUBREL, 4321)
    await device.expect_ack(Kind.PUBCOMP, 4321)
    await device.ping()


@pytest.mark.parametrize("kind", [Kind.PUBACK, Kind.PUBREC, Kind.PUBCOMP])
async def test_acknowledgement_of_an_unknown_id_disturbs_nobody(broker: Broker, kind: Kind) -> None:
    """3.1.1 says nothing of it. The connection may go on; if it is closed, only this one."""
    other = await broker.connect()
    device = await broker.connect(auto_ack=False)
    await device.ack(kind, 4321)
    await other.ping()
    again = await broker.connect()
    await again.ping()


async def test_mqtt_4_4_0_1_qos_1_sent_again_on_a_new_connection(broker: Broker) -> None:
    topic, client_id = broker.topic(), broker.id()
    watcher = await broker.subscriber((topic, 1))
    device = await broker.connect(client_id, clean=False)
    await device.publish(topic, b"x", 1, packet_id=5)
    await device.expect_ack(Kind.PUBACK, 5)
    await device.drop(reset=True)
    device = await broker.resume(client_id)
    await device.publish(topic, b"x", 1, dup=True, packet_id=5)
    await device.expect_ack(Kind.PUBACK, 5)
    assert await arrived(device, watcher, topic, 1) == [b"x", b"x"]


@pytest.mark.parametrize("polite", [False, True], ids=["drop", "disconnect"])
async def test_mqtt_4_4_0_1_lost_before_pubrec(broker: Broker, polite: bool) -> None:
    """PUBLISH, PUBREC lost; PUBLISH again (DUP) after coming back: one message."""
    topic, client_id = broker.topic(), broker.id()
    watcher = await broker.subscriber((topic, 2))
    device = await broker.connect(client_id, clean=False, auto_ack=False)
    await device.publish(topic, b"once", 2, packet_id=5)
    await device.expect_ack(Kind.PUBREC, 5)
    await (device.disconnect() if polite else device.drop(reset=True))
    device = await broker.resume(client_id, auto_ack=False)
    await device.publish(topic, b"once", 2, dup=True, packet_id=5)
    await device.expect_ack(Kind.PUBREC, 5)
    await device.ack(Kind.PUBREL, 5)
    await device.expect_ack(Kind.PUBCOMP, 5)
    assert await arrived(device, watcher, topic, 2) == [b"once"]


async def test_mqtt_4_4_0_1_lost_before_pubcomp(broker: Broker) -> None:
    """PUBREL sent, PUBCOMP lost; PUBREL again after coming back: one message, and the id is free."""
    topic, client_id = broker.topic(), broker.id()
    watcher = await broker.subscriber((topic, 2))
    device = await broker.connect(client_id, clean=False, auto_ack=False)
    await device.publish(topic, b"once", 2, packet_id=5)
    await device.expect_ack(Kind.PUBREC, 5)
    await device.send_raw(ack_bytes(Kind.PUBREL, 5))
    await device.drop()
    device = await broker.resume(client_id, auto_ack=False)
    await device.ack(Kind.PUBREL, 5)
    await device.expect_ack(Kind.PUBCOMP, 5)
    await device.publish(topic, b"next", 2, packet_id=5)
    await device.expect_ack(Kind.PUBREC, 5)
    await device.ack(Kind.PUBREL, 5)
    await device.expect_ack(Kind.PUBCOMP, 5)
    assert await arrived(device, watcher, topic, 2) == [b"once", b"next"]


async def test_mqtt_4_4_0_1_take_over_in_the_middle_of_qos_2(broker: Broker) -> None:
    topic, client_id = broker.topic(), broker.id()
    watcher = await broker.subscriber((topic, 2))
    device = await broker.connect(client_id, clean=False, auto_ack=False)
    await device.publish(topic, b"once", 2, packet_id=5)
    await device.expect_ack(Kind.PUBREC, 5)
    new = await broker.resume(client_id, auto_ack=False)
    await new.publish(topic, b"once", 2, dup=True, packet_id=5)
    await new.expect_ack(Kind.PUBREC, 5)
    await new.ack(Kind.PUBREL, 5)
    await new.expect_ack(Kind.PUBCOMP, 5)
    assert await arrived(new, watcher, topic, 2) == [b"once"]


async def test_clean_session_forgets_inbound_qos_2(broker: Broker) -> None:
    """[MQTT-3.1.2-6]: the same id on a clean session is a new message."""
    topic, client_id = broker.topic(), broker.id()
    watcher = await broker.subscriber((topic, 2))
    device = await broker.connect(client_id, auto_ack=False)
    await device.publish(topic, b"first", 2, packet_id=5)
    await device.expect_ack(Kind.PUBREC, 5)
    await device.drop()
    device = await broker.connect(client_id, auto_ack=False)
    await device.publish(topic, b"second", 2, packet_id=5)
    await device.expect_ack(Kind.PUBREC, 5)
    await device.ack(Kind.PUBREL, 5)
    await device.expect_ack(Kind.PUBCOMP, 5)
    found = await arrived(device, watcher, topic, 2)
    assert found[-1] == b"second"
    assert found in ([b"second"], [b"first", b"second"])  # the first may be passed on at once or at its PUBREL (figure 4.3)


async def test_many_qos_2_handshakes_interleaved(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 2))
    device = await broker.connect(auto_ack=False)
    ids = list(range(1, 11))
    for packet_id in ids:
        await device.publish(topic, b"%d" % packet_id, 2, packet_id=packet_id)
    for packet_id in ids:  # [MQTT-4.6.0-3]
        await device.expect_ack(Kind.PUBREC, packet_id)
    for packet_id in ids:
        await device.ack(Kind.PUBREL, packet_id)
    for packet_id in ids:
        await device.expect_ack(Kind.PUBCOMP, packet_id)
    assert sorted(await arrived(device, watcher, topic, 2), key=int) == [b"%d" % packet_id for packet_id in ids]


async def test_packet_ids_of_both_directions_are_apart(broker: Broker) -> None:
    """Clause 2.3.1: both sides may use the same id at the same time."""
    topic, other = broker.topic(), broker.topic()
    device = await broker.subscriber((topic, 1), auto_ack=False)
    sender = await broker.connect()
    await sender.deliver(topic, b"down")
    down = await device.receive()
    await device.publish(other, b"up", 1, packet_id=down.packet_id)
    await device.expect_ack(Kind.PUBACK, down.packet_id)
    await device.send_raw(subscribe_bytes(down.packet_id, [(broker.topic(), 0)]))
    await device.expect_ack(Kind.SUBACK, down.packet_id)
    await device.ack(Kind.PUBACK, down.packet_id)
    await sender.deliver(topic, b"next")
    assert (await device.receive()).payload == b"next"


async def test_mqtt_4_6_0_2_pubacks_come_in_the_order_of_the_publishes(broker: Broker) -> None:
    topics = [broker.topic() for _ in range(3)]
    device = await broker.connect()
    ids = list(range(1, 61))
    await device.send_raw(b"".join(publish_bytes(topics[number % 3], b"x", 1, packet_id=number) for number in ids))
    for number in ids:
        await device.expect_ack(Kind.PUBACK, number)


async def test_qos_0_and_1_and_2_in_one_segment(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 2))
    device = await broker.connect()
    await device.send_raw(
        publish_bytes(topic, b"0")
        + publish_bytes(topic, b"1", 1, packet_id=1)
        + publish_bytes(topic, b"2", 2, packet_id=2)
        + publish_bytes(topic, b"3")
    )
    await device.expect_ack(Kind.PUBACK, 1)
    await device.expect_ack(Kind.PUBCOMP, 2)
    assert sorted(await arrived(device, watcher, topic, 2)) == [b"0", b"1", b"2", b"3"]
