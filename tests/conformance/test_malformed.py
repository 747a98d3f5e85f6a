"""Malformed packets, garbage and half packets close their own connection and nothing else (clauses 2.2, 2.3 and 4.8)."""

from __future__ import annotations

import random

import pytest

from tests.kit.broker import Broker
from tests.kit.device import Device
from tests.kit.wire import DISCONNECT, PINGREQ, Kind, Packet, connect_bytes, frame, publish_bytes, subscribe_bytes, text, unsubscribe_bytes

BAD = {
    "reserved_type_0": frame(0x00),
    "reserved_type_15": frame(0xF0),
    "connack_from_a_client": frame(0x20, b"\0\0"),
    "publish_qos_3": frame(0x36, text("a") + b"\0\1x"),
    "publish_qos_3_dup": frame(0x3E, text("a") + b"\0\1x"),
    "publish_qos_1_id_0": publish_bytes("a", b"x", 1, packet_id=0),
    "publish_qos_2_id_0": publish_bytes("a", b"x", 2, packet_id=0),
    "publish_without_topic": frame(0x30),
    "publish_half_topic_length": frame(0x30, b"\0"),
    "publish_short_topic": frame(0x30, b"\0\5a"),
    "publish_without_id": frame(0x32, text("a")),
    "publish_half_id": frame(0x32, text("a") + b"\0"),
    "puback_short": frame(0x40, b"\0"),
    "puback_empty": frame(0x40),
    "pubrec_short": frame(0x50, b"\0"),
    "pubrel_short": frame(0x62, b"\0"),
    "pubcomp_short": frame(0x70, b"\0"),
    "pubrel_flags_0": frame(0x60, b"\0\1"),
    "pubrel_flags_3": frame(0x63, b"\0\1"),
    "pubrel_flags_6": frame(0x66, b"\0\1"),
    "remaining_length_5_bytes": b"\x30\x80\x80\x80\x80\x01",
    "remaining_length_all_ones": b"\x30\xff\xff\xff\xff\xff\xff",
}
STRICT = {  # 2.2.2 and 3.x demand these too; mosquitto 2.0 lets them pass
    "publish_qos_0_dup": frame(0x38, text("a") + b"x"),
    "puback_flags": frame(0x41, b"\0\1"),
    "pubrec_flags": frame(0x52, b"\0\1"),
    "pubcomp_flags": frame(0x78, b"\0\1"),
    "puback_long": frame(0x40, b"\0\1\0"),
    "pubrel_long": frame(0x62, b"\0\1\0"),
    "pubrec_id_0": frame(0x50, b"\0\0"),
    "puback_id_0": frame(0x40, b"\0\0"),
    "pubrel_id_0": frame(0x62, b"\0\0"),
    "pubcomp_id_0": frame(0x70, b"\0\0"),
    "pingreq_with_a_body": frame(0xC0, b"\0"),
    "disconnect_with_a_body": frame(0xE0, b"\0"),
    "suback_from_a_client": frame(0x90, b"\0\1\0"),
    "unsuback_from_a_client": frame(0xB0, b"\0\1"),
    "pingresp_from_a_client": frame(0xD0),
}


async def closes_itself_only(broker: Broker, data: bytes) -> None:
    other = await broker.connect()
    device = await broker.connect()
    await device.send_raw(data)
    assert await device.expect_closed() == []
    await other.ping()
    await (await broker.connect()).ping()


@pytest.mark.parametrize("bad", BAD)
async def test_mqtt_4_8_0_1_closes_that_connection_only(broker: Broker, bad: str) -> None:
    await closes_itself_only(broker, BAD[bad])


@pytest.mark.targets("gateway")
@pytest.mark.parametrize("bad", STRICT)
async def test_mqtt_2_2_2_2_closes_that_connection_only(broker: Broker, bad: str) -> None:
    await closes_itself_only(broker, STRICT[bad])


@pytest.mark.targets("gateway")  # mosquitto 2.0 skips them
async def test_bytes_after_the_last_field_of_connect_close(broker: Broker) -> None:
    device = await broker.open()
    await device.send_raw(frame(0x10, connect_bytes(broker.id())[2:] + b"extra"))
    assert await device.expect_closed() == []


async def test_bad_packet_behind_good_ones(broker: Broker) -> None:
    """What came before it in the same segment is done."""
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await broker.connect()
    await device.send_raw(publish_bytes(topic, b"good", 0) + BAD["publish_qos_3"] + publish_bytes(topic, b"never", 0))
    await device.expect_closed()
    assert (await watcher.receive()).payload == b"good"
    await watcher.deliver(topic, b"marker")
    assert await watcher.receive_until(b"marker") == []


async def test_bad_packet_keeps_the_session(broker: Broker) -> None:
    topic, client_id = broker.topic(), broker.id()
    device = await broker.subscriber((topic, 1), client_id=client_id, clean=False)
    await device.send_raw(BAD["reserved_type_15"])
    await device.expect_closed()
    sender = await broker.connect()
    await sender.deliver(topic, b"kept")
    device = await broker.resume(client_id)
    assert (await device.receive()).payload == b"kept"


async def whole_life(device: Device, send: list[bytes], topic: str) -> None:
    """Send the pieces; they are CONNECT, SUBSCRIBE, three PUBLISHes, UNSUBSCRIBE, PINGREQ."""
    for piece in send:
        await device.send_raw(piece)
    assert (await device.expect(Kind.CONNACK)).code == 0
    assert (await device.expect(Kind.SUBACK)).codes == [2]
    received = {(await device.receive()).payload for _ in range(3)}
    assert received == {b"0", b"1", b"2" * 300}
    await device.expect_ack(Kind.PUBACK, 2)
    await device.expect(Kind.PUBCOMP)
    await device.expect(Kind.PINGRESP)


def life(client_id: str, topic: str) -> bytes:
    return b"".join(
        [
            connect_bytes(client_id, username="user", password=b"pass"),
            subscribe_bytes(1, [(topic, 2)]),
            publish_bytes(topic, b"0"),
            publish_bytes(topic, b"1", 1, packet_id=2),
            publish_bytes(topic, b"2" * 300, 2, packet_id=3),
            PINGREQ,
        ]
    )


async def test_half_packets_byte_by_byte(broker: Broker) -> None:
    device, topic = await broker.open(), broker.topic()
    data = life(broker.id(), topic)
    await whole_life(device, [data[index : index + 1] for index in range(len(data))], topic)


async def test_many_packets_in_one_segment(broker: Broker) -> None:
    device, topic = await broker.open(), broker.topic()
    await whole_life(device, [life(broker.id(), topic)], topic)


@pytest.mark.parametrize("seed", range(5))
async def test_packets_cut_anywhere(broker: Broker, seed: int) -> None:
    device, topic = await broker.open(), broker.topic()
    data, cuts = life(broker.id(), topic), random.Random(seed)
    pieces = []
    while data:
        size = cuts.randint(1, 40)
        pieces.append(data[:size])
        data = data[size:]
    await whole_life(device, pieces, topic)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 60000])
async def test_remaining_length_of_every_size(broker: Broker, size: int) -> None:
    """Table 2.4: one to three bytes; the sizes are those of the whole packet's rest, as far as the topic allows."""
    topic = broker.topic()
    device = await broker.subscriber((topic, 1))
    payload = b"s" * max(0, size - len(topic) - 4)
    await device.deliver(topic, payload)
    assert (await device.receive()).payload == payload


async def test_needlessly_long_remaining_length(broker: Broker) -> None:
    """3.1.1 does not forbid it: it is understood or closes, and is never taken for something else."""
    device = await broker.connect()
    await device.send_raw(b"\xc0\x80\x00" + PINGREQ)
    assert [packet.kind for packet in await closing(device)] in ([], [Kind.PINGRESP] * 2)


async def closing(device: Device) -> list[Packet]:
    """What comes until the server closes, which a DISCONNECT makes it do if it has not yet."""
    await device.send_raw(DISCONNECT)
    return await device.expect_closed()


@pytest.mark.parametrize("seed", range(20))
async def test_garbage_instead_of_connect(broker: Broker, seed: int) -> None:
    device = await broker.open()
    await device.send_raw(random.Random(seed).randbytes(200))
    await device.drop()
    await (await broker.connect()).ping()


@pytest.mark.parametrize("seed", range(20))
async def test_garbage_after_connect(broker: Broker, seed: int) -> None:
    other = await broker.connect()
    device = await broker.connect()
    await device.send_raw(random.Random(seed).randbytes(500))
    await device.drop()
    await other.ping()


@pytest.mark.parametrize("seed", range(20))
async def test_one_flipped_bit(broker: Broker, seed: int) -> None:
    """Whatever it does to its own connection, others and the server go on."""
    other, topic, chance = await broker.connect(), broker.topic(), random.Random(seed)
    data = bytearray(
        subscribe_bytes(1, [(topic, 1)])
        + publish_bytes(topic, b"x" * 20, 2, packet_id=2)
        + frame(0x62, b"\0\2")
        + unsubscribe_bytes(3, [topic])
    )
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    device = await broker.connect()
    await device.send_raw(bytes(data))
    await device.drop()
    await other.ping()


async def test_connections_that_come_and_go(broker: Broker) -> None:
    for index in range(30):
        device = await broker.open()
        if index % 3:
            await device.send_raw(connect_bytes(broker.id())[: index % 7])
        await device.drop(reset=index % 2 == 0)
    await (await broker.connect()).ping()
