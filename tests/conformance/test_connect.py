"""CONNECT and CONNACK (clauses 3.1 and 3.2), sessions and wills apart."""

from __future__ import annotations

import struct

import pytest

from tests.kit.broker import Broker
from tests.kit.device import Device
from tests.kit.wire import PINGREQ, Kind, Will, connect_bytes, frame, publish_bytes, subscribe_bytes, text, unsubscribe_bytes

FIRST = {
    "publish": publish_bytes("a", b"x"),
    "publish_qos_1": publish_bytes("a", b"x", 1, packet_id=1),
    "puback": frame(0x40, b"\0\1"),
    "pubrec": frame(0x50, b"\0\1"),
    "pubrel": frame(0x62, b"\0\1"),
    "pubcomp": frame(0x70, b"\0\1"),
    "subscribe": subscribe_bytes(1, [("a", 0)]),
    "unsubscribe": unsubscribe_bytes(1, ["a"]),
    "pingreq": PINGREQ,
    "disconnect": frame(0xE0),
    "connack": frame(0x20, b"\0\0"),
    "reserved_0": frame(0x00),
    "reserved_15": frame(0xF0),
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


async def refused(device: Device, data: bytes) -> None:
    """The connection is closed without a CONNACK [MQTT-3.1.4-1]."""
    await device.send_raw(data)
    assert await device.expect_closed() == []


@pytest.mark.parametrize("first", FIRST)
async def test_mqtt_3_1_0_1_first_packet_is_not_connect(broker: Broker, first: str) -> None:
    await refused(await broker.open(), FIRST[first])


async def test_mqtt_3_1_0_2_second_connect_closes(broker: Broker) -> None:
    client_id = broker.id()
    device = await broker.connect(client_id)
    await device.send_raw(connect_bytes(client_id))
    assert await device.expect_closed() == []


async def test_mqtt_3_1_0_2_second_connect_of_another_id_closes(broker: Broker) -> None:
    device = await broker.connect()
    await device.send_raw(connect_bytes(broker.id()))
    assert await device.expect_closed() == []


@pytest.mark.parametrize("name", ["", "MQT", "mqtt", "MQTTT", "HTTP", "MQIsdp", b"\xff\xfe\xfd\xfc"])
async def test_mqtt_3_1_2_1_wrong_protocol_name_closes(broker: Broker, name: str | bytes) -> None:
    device = await broker.open()
    await device.send_raw(connect_bytes(broker.id(), name=name, level=4))
    left = await device.expect_closed()
    assert [packet.code for packet in left] in ([], [1])


@pytest.mark.parametrize("level", [0, 1, 2, 3, 6, 7, 127, 255])
async def test_mqtt_3_1_2_2_unacceptable_level(broker: Broker, level: int) -> None:
    device = await broker.open()
    await device.send_raw(connect_bytes(broker.id(), name="MQTT", level=level))
    answer = await device.next()
    assert (answer.kind, answer.code, answer.session_present) == (Kind.CONNACK, 1, False)
    assert await device.expect_closed() == []


@pytest.mark.targets("gateway")  # mosquitto speaks MQTT 5
async def test_mqtt_3_1_2_2_level_5_is_not_spoken_yet(broker: Broker) -> None:
    device = await broker.open()
    await device.send_raw(frame(0x10, text("MQTT") + struct.pack("!BBHB", 5, 2, 0, 0) + text(broker.id())))
    assert [packet.code for packet in await device.expect_closed()] == [1]


@pytest.mark.parametrize("level", [3, 4])
async def test_both_levels_are_accepted(broker: Broker, level: int) -> None:
    device = await broker.connect(level=level)
    topic = broker.topic()
    assert await device.subscribe((topic, 2)) == [2]
    for qos in (0, 1, 2):
        await device.deliver(topic, bytes([qos]), qos)
        assert (await device.receive()).payload == bytes([qos])
    await device.ping()
    await device.unsubscribe(topic)
    await device.disconnect()


async def test_mqtt_3_1_2_3_reserved_flag_closes(broker: Broker) -> None:
    await refused(await broker.open(), connect_bytes(broker.id(), flags=0x03))


@pytest.mark.parametrize("flags", [0x0A, 0x12, 0x22], ids=["will_qos_1", "will_qos_2", "will_retain"])
async def test_mqtt_3_1_2_11_will_bits_without_will_flag_close(broker: Broker, flags: int) -> None:
    await refused(await broker.open(), connect_bytes(broker.id(), flags=flags))


async def test_mqtt_3_1_2_14_will_qos_3_closes(broker: Broker) -> None:
    await refused(await broker.open(), connect_bytes(broker.id(), will=Will("a", b"x"), flags=0x1E))


async def test_mqtt_3_1_2_22_password_without_user_name_closes(broker: Broker) -> None:
    await refused(await broker.open(), connect_bytes(broker.id(), password=b"x"))


@pytest.mark.parametrize("flags", [0x06, 0x82, 0xC2], ids=["will", "user_name", "password"])
async def test_mqtt_3_1_2_19_promised_field_missing_closes(broker: Broker, flags: int) -> None:
    await refused(await broker.open(), connect_bytes(broker.id(), flags=flags))


@pytest.mark.targets("gateway")  # 3.1.1 says nothing of bytes after the payload's last field; mosquitto 2.0 lets them pass
@pytest.mark.parametrize("flags", [0x02, 0x82], ids=["password", "user_name_and_password"])
async def test_mqtt_3_1_2_18_field_that_was_not_promised_closes(broker: Broker, flags: int) -> None:
    await refused(await broker.open(), connect_bytes(broker.id(), username="user", password=b"pass", flags=flags))


@pytest.mark.parametrize("cut", range(1, 13))
async def test_mqtt_3_1_4_1_truncated_connect_closes(broker: Broker, cut: int) -> None:
    """The remaining length is right, the fields run over its end."""
    body = connect_bytes("abc")[2:]
    await refused(await broker.open(), frame(0x10, body[:-cut]))


@pytest.mark.parametrize("flags", range(1, 16))
async def test_mqtt_2_2_2_2_connect_header_flags_close(broker: Broker, flags: int) -> None:
    device = await broker.open()
    data = connect_bytes(broker.id())
    await refused(device, bytes([0x10 | flags]) + data[1:])


async def test_mqtt_3_1_3_3_client_id_missing_closes(broker: Broker) -> None:
    await refused(await broker.open(), frame(0x10, text("MQTT") + struct.pack("!BBH", 4, 2, 0)))


@pytest.mark.parametrize("raw", [b"a\0b", b"a\xc0\x80b", b"\xff", b"a\xed\xa0\x80"], ids=["null", "overlong_null", "not_utf8", "surrogate"])
async def test_mqtt_3_1_3_4_client_id_is_utf8(broker: Broker, raw: bytes) -> None:
    device = await broker.open()
    await device.send_raw(connect_bytes(raw))
    assert [packet.code for packet in await device.expect_closed()] in ([], [2])


async def test_mqtt_3_1_3_5_client_id_characters_and_lengths(broker: Broker) -> None:
    alphabet = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for client_id in (alphabet[:23], alphabet[23:46], alphabet[39:], "z"):
        await (await broker.connect(client_id)).disconnect()


async def test_mqtt_3_1_3_6_empty_client_ids_are_made_unique(broker: Broker) -> None:
    first, second = await broker.connect(""), await broker.connect("")
    await first.ping()
    await second.ping()


async def test_mqtt_3_1_3_8_empty_client_id_with_a_session(broker: Broker) -> None:
    device, ack = await broker.attempt("", clean=False)
    assert (ack.code, ack.session_present) == (2, False)
    assert await device.expect_closed() == []


@pytest.mark.targets("gateway")  # level 3 knows no empty Client ID; mosquitto 2.0 gives one anyway
async def test_level_3_refuses_an_empty_client_id(broker: Broker) -> None:
    device, ack = await broker.attempt("", level=3)
    assert ack.code == 2
    assert await device.expect_closed() == []


@pytest.mark.parametrize("raw", [b"u\0", b"\xc3\x28"], ids=["null", "not_utf8"])
async def test_mqtt_3_1_3_11_user_name_is_utf8(broker: Broker, raw: bytes) -> None:
    device = await broker.open()
    await device.send_raw(connect_bytes(broker.id(), username=raw, password=b"p"))
    assert not [packet for packet in await device.expect_closed() if packet.code == 0]


@pytest.mark.parametrize("password", [b"", b"\0\xff\x80", b"p" * 60000], ids=["empty", "binary", "long"])
async def test_password_is_any_bytes(broker: Broker, password: bytes) -> None:
    device, ack = await broker.attempt(username="user", password=password)
    assert ack.code == 0
    await device.ping()


async def test_user_name_may_come_without_a_password(broker: Broker) -> None:
    device, ack = await broker.attempt(username="user")
    assert ack.code == 0
    await device.ping()


async def test_mqtt_3_1_4_2_take_over(broker: Broker) -> None:
    client_id = broker.id()
    old = await broker.connect(client_id)
    new = await broker.connect(client_id)
    assert await old.expect_closed() == []
    await new.ping()


async def test_mqtt_3_1_4_2_take_over_keeps_the_session(broker: Broker) -> None:
    client_id, topic = broker.id(), broker.topic()
    old = await broker.subscriber((topic, 1), client_id=client_id, clean=False)
    new = await broker.resume(client_id)
    await old.expect_closed()
    await new.deliver(topic, b"to the new one")
    assert (await new.receive()).payload == b"to the new one"


async def test_mqtt_3_1_4_2_take_over_again_and_again(broker: Broker) -> None:
    client_id = broker.id()
    devices = [await broker.connect(client_id, clean=index % 2 == 0) for index in range(12)]
    for device in devices[:-1]:
        await device.expect_closed()
    await devices[-1].ping()


async def test_mqtt_3_1_4_5_packets_behind_connect_need_not_wait_for_connack(broker: Broker) -> None:
    device, topic = await broker.open(), broker.topic()
    await device.send_raw(
        connect_bytes(broker.id()) + subscribe_bytes(1, [(topic, 1)]) + publish_bytes(topic, b"x", 1, packet_id=2) + PINGREQ
    )
    assert (await device.next()).kind is Kind.CONNACK
    assert (await device.expect(Kind.SUBACK)).codes == [1]
    await device.expect_ack(Kind.PUBACK, 2)
    assert (await device.receive()).payload == b"x"
    await device.expect(Kind.PINGRESP)


async def test_mqtt_3_1_4_5_packets_behind_a_refused_connect_are_not_processed(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await broker.open()
    await device.send_raw(
        connect_bytes("", clean=False) + publish_bytes(topic, b"forbidden", 1, packet_id=1) + subscribe_bytes(2, [(topic, 1)])
    )
    left = await device.expect_closed()
    assert [(packet.kind, packet.code) for packet in left] == [(Kind.CONNACK, 2)]
    await watcher.deliver(topic, b"marker")
    assert await watcher.receive_until(b"marker") == []


async def test_mqtt_3_2_2_5_close_follows_every_refusal(broker: Broker) -> None:
    device = await broker.open()
    ack = await device.connect("", clean=False)
    assert ack.code != 0
    assert await device.expect_closed() == []


async def test_connection_that_says_nothing_disturbs_nobody(broker: Broker) -> None:
    silent = [await broker.open() for _ in range(10)]
    await silent[0].send_raw(b"\x10")
    device = await broker.connect()
    await device.ping()
