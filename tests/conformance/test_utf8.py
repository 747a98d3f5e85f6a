"""UTF-8 encoded strings (clause 1.5.3)."""

from __future__ import annotations

import pytest

from tests.kit.broker import Broker
from tests.kit.wire import Will, connect_bytes, publish_bytes, subscribe_bytes, unsubscribe_bytes

ILL_FORMED = {
    "lone_continuation": b"\x80",
    "overlong_slash": b"\xc0\xaf",
    "overlong_3": b"\xe0\x80\xaf",
    "overlong_4": b"\xf0\x80\x80\xaf",
    "high_surrogate": b"\xed\xa0\x80",
    "low_surrogate": b"\xed\xbf\xbf",
    "cesu_8_pair": b"\xed\xa0\xbd\xed\xb8\x80",
    "above_10ffff": b"\xf4\x90\x80\x80",
    "five_bytes": b"\xf8\x88\x80\x80\x80",
    "truncated_2": b"\xc3",
    "truncated_3": b"\xe2\x82",
    "truncated_4": b"\xf0\x9f\x98",
    "fe": b"\xfe",
    "ff": b"\xff",
    "bad_continuation": b"\xc3\x28",
}
NULL = {"null": b"\0", "null_at_the_end": b"a\0", "modified_utf8_null": b"\xc0\x80"}
BAD = {**ILL_FORMED, **NULL}


@pytest.mark.parametrize("bad", BAD)
async def test_mqtt_1_5_3_1_and_2_topic_name(broker: Broker, bad: str) -> None:
    device = await broker.connect()
    await device.send_raw(publish_bytes(b"t/" + BAD[bad], b"x", 1, packet_id=1))
    assert await device.expect_closed() == []


@pytest.mark.parametrize("bad", BAD)
async def test_mqtt_1_5_3_1_and_2_topic_filter_of_subscribe(broker: Broker, bad: str) -> None:
    device = await broker.connect()
    await device.send_raw(subscribe_bytes(1, [(b"t/" + BAD[bad], 0)]))
    assert await device.expect_closed() == []


@pytest.mark.parametrize("bad", BAD)
async def test_mqtt_1_5_3_1_and_2_topic_filter_of_unsubscribe(broker: Broker, bad: str) -> None:
    device = await broker.connect()
    await device.send_raw(unsubscribe_bytes(1, [b"t/" + BAD[bad]]))
    assert await device.expect_closed() == []


@pytest.mark.parametrize("bad", BAD)
async def test_mqtt_1_5_3_1_and_2_client_id(broker: Broker, bad: str) -> None:
    device = await broker.open()
    await device.send_raw(connect_bytes(b"c" + BAD[bad]))
    assert not [packet for packet in await device.expect_closed() if packet.code == 0]


@pytest.mark.parametrize("bad", BAD)
async def test_mqtt_1_5_3_1_and_2_user_name(broker: Broker, bad: str) -> None:
    device = await broker.open()
    await device.send_raw(connect_bytes(broker.id(), username=b"u" + BAD[bad], password=b"p"))
    assert not [packet for packet in await device.expect_closed() if packet.code == 0]


@pytest.mark.parametrize("where", ["{}\ufeff", "\ufeff{}", "{}/\ufeff/x"], ids=["end", "start", "inside"])
async def test_mqtt_1_5_3_3_bom_is_a_character(broker: Broker, where: str) -> None:
    plain = broker.topic()
    topic = where.format(plain)
    device = await broker.subscriber((topic, 1), (topic.replace("\ufeff", ""), 1))
    await device.deliver(topic, b"with")
    await device.deliver(topic.replace("\ufeff", ""), b"without")
    assert [(packet.topic, packet.payload) for packet in (await device.receive(), await device.receive())] == [
        (topic, b"with"),
        (topic.replace("\ufeff", ""), b"without"),
    ]


async def test_mqtt_1_5_3_3_bom_tells_client_ids_apart(broker: Broker) -> None:
    plain = broker.id()
    first, second = await broker.connect(plain), await broker.connect(plain + "\ufeff")
    await first.ping()
    await second.ping()


@pytest.mark.parametrize("character", ["\u00a0", "\u200b", "\u2028", "\ufffd", "\U0001f600", "\U0010ffff", "\ue000"])
async def test_other_characters_pass_unchanged(broker: Broker, character: str) -> None:
    if broker.name == "mosquitto" and character == "\U0010ffff":
        character = "\U0010fffd"  # mosquitto also refuses the noncharacters, which 1.5.3 allows
    topic = f"{broker.topic()}/{character}/x"
    device = await broker.subscriber((topic, 1))
    await device.deliver(topic, b"x")
    assert (await device.receive()).topic == topic


CONTROLS = ["\x01", "\x02", "\t", "\n", "\x1f", "\x7f", "\x80", "\x85", "\x9f"]


@pytest.mark.targets("gateway")  # contract section 2: refused, which 1.5.3 allows; mosquitto 2.0 refuses some of them in some places
@pytest.mark.parametrize("control", CONTROLS, ids=[f"{ord(character):02x}" for character in CONTROLS])
@pytest.mark.parametrize("place", ["publish", "subscribe", "unsubscribe", "client_id", "will_topic"])
async def test_control_characters_close(broker: Broker, place: str, control: str) -> None:
    name = f"t/{control}/x"
    device = await (broker.open() if place in ("client_id", "will_topic") else broker.connect())
    data = {
        "publish": publish_bytes(name, b"x", 1, packet_id=1),
        "subscribe": subscribe_bytes(1, [(name, 0)]),
        "unsubscribe": unsubscribe_bytes(1, [name]),
        "client_id": connect_bytes(f"c{control}"),
        "will_topic": connect_bytes(broker.id(), will=Will(name, b"x")),
    }[place]
    await device.send_raw(data)
    assert not [packet for packet in await device.expect_closed() if packet.code == 0]
