"""Topic names and topic filters (clause 4.7)."""

from __future__ import annotations

import pytest

from tests.kit.broker import Broker
from tests.kit.device import Device
from tests.kit.wire import publish_bytes, subscribe_bytes, unsubscribe_bytes

# (filter, topic, does it match); {} is a level that no other test uses
CASES = [
    ("{}/a", "{}/a", True),
    ("{}/a", "{}/A", False),
    ("{}/a", "{}/a/", False),
    ("{}/a", "{}/ab", False),
    ("{}/a", "{}", False),
    ("{}/#", "{}", True),
    ("{}/#", "{}/", True),
    ("{}/#", "{}/a", True),
    ("{}/#", "{}/a/b/c", True),
    ("{}/#", "{}x", False),
    ("{}/a/#", "{}/a", True),
    ("{}/a/#", "{}/b/a", False),
    ("{}/+", "{}/a", True),
    ("{}/+", "{}/", True),
    ("{}/+", "{}", False),
    ("{}/+", "{}/a/b", False),
    ("{}/+/", "{}/a", False),
    ("{}/+/", "{}/a/", True),
    ("{}/+/c", "{}/a/c", True),
    ("{}/+/c", "{}//c", True),
    ("{}/+/c", "{}/a/b/c", False),
    ("{}/+/+", "{}/a/b", True),
    ("{}/+/#", "{}/a", True),
    ("{}/+/#", "{}/a/b/c", True),
    ("{}/+/#", "{}", False),
    ("{}/+/c/#", "{}/a/c", True),
    ("{}/+/c/#", "{}/a/d", False),
    ("+/{}", "a/{}", True),
    ("+/{}", "/{}", True),
    ("+/{}", "{}", False),
    ("/{}", "/{}", True),
    ("/{}", "{}", False),
    ("{}", "/{}", False),
    ("/+", "/{}", True),
    ("+/+", "/{}", True),
    ("+", "{}", True),
    ("+", "/{}", False),
    ("+/#", "{}", True),
    ("#", "{}", True),
    ("#", "/{}/x", True),
    ("{}//a", "{}//a", True),
    ("{}//a", "{}/a", False),
    ("{}///", "{}///", True),
    ("{}///", "{}//", False),
    ("{}/a b", "{}/a b", True),
    ("{}/a b", "{}/a  b", False),
    ("{}/ä/日本", "{}/ä/日本", True),
    ("{}/😀/+", "{}/😀/x", True),
    ("{}/a$b", "{}/a$b", True),
    ("{}/$x/#", "{}/$x/y", True),
    ("{}/+", "{}/$x", True),
]


async def matches(broker: Broker, name: str, topic: str) -> bool:
    """Whether a subscription to `name` gets a message on `topic`; a marker on a topic of its own shows that nothing more comes."""
    marker = broker.topic()
    device = await broker.subscriber((name, 0), (marker + "/m", 0))
    await device.deliver(topic, topic.encode(), 1)
    await device.deliver(marker + "/m", b"marker", 1)
    found = [packet for packet in await device.receive_until(b"marker") if packet.topic == topic]
    assert len(found) <= 1
    assert all(packet.payload == topic.encode() for packet in found)
    return bool(found)


@pytest.mark.parametrize(("name", "topic", "expected"), CASES, ids=[f"{name}~{topic}".replace("{}", "T") for name, topic, _ in CASES])
async def test_mqtt_3_3_2_3_matching(broker: Broker, name: str, topic: str, expected: bool) -> None:
    level = broker.topic()
    assert await matches(broker, name.format(level), topic.format(level)) is expected


@pytest.mark.parametrize("name", ["#", "+/{}/x", "+/#", "/#"])
async def test_mqtt_4_7_2_1_dollar_topics_are_no_match_for_a_wildcard_first(broker: Broker, name: str) -> None:
    level = broker.topic()
    assert not await matches(broker, name.format(level), f"$other/{level}/x")


@pytest.mark.parametrize("name", ["#", "+/#", "+/{}"])
async def test_mqtt_4_7_2_1_retained_messages_below_dollar(broker: Broker, name: str) -> None:
    level, marker = broker.topic(), broker.topic()
    device = await broker.connect()
    await device.deliver(f"$other/{level}", b"kept", 1, retain=True)
    reader = await broker.subscriber((name.format(level), 0), (marker, 1))
    await reader.deliver(marker, b"marker")
    assert not [packet for packet in await reader.receive_until(b"marker") if packet.topic.startswith("$")]


BAD_FILTERS = ["", "a/b#", "#/a", "a/#/b", "a#", "##", "a/##", "a+", "+a", "a/+b", "a/b+/c", "++", "/a+/b", "#+", "+#"]


@pytest.mark.parametrize("name", BAD_FILTERS, ids=lambda name: name or "empty")
async def test_mqtt_4_7_1_2_and_3_bad_filter_in_subscribe_closes(broker: Broker, name: str) -> None:
    device = await broker.connect()
    await device.send_raw(subscribe_bytes(1, [("fine", 0), (name, 0)]))
    assert await device.expect_closed() == []


@pytest.mark.parametrize("name", BAD_FILTERS, ids=lambda name: name or "empty")
async def test_mqtt_4_7_1_2_and_3_bad_filter_in_unsubscribe_closes(broker: Broker, name: str) -> None:
    device = await broker.connect()
    await device.send_raw(unsubscribe_bytes(1, ["fine", name]))
    assert await device.expect_closed() == []


@pytest.mark.parametrize("topic", ["#", "+", "a/#", "a/+", "+/a", "a/+/b", "a#b", "a+b", "/#"])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_mqtt_3_3_2_2_wildcard_in_publish_closes(broker: Broker, topic: str, qos: int) -> None:
    device = await broker.connect()
    await device.send_raw(publish_bytes(topic, b"x", qos, packet_id=1 if qos else None))
    assert await device.expect_closed() == []


@pytest.mark.parametrize("qos", [0, 1])
async def test_mqtt_4_7_3_1_empty_topic_in_publish_closes(broker: Broker, qos: int) -> None:
    device = await broker.connect()
    await device.send_raw(publish_bytes("", b"x", qos, packet_id=1 if qos else None))
    assert await device.expect_closed() == []


@pytest.mark.parametrize("topic", ["/", "//", " ", "/ /", "a/", "/a"])
async def test_mqtt_4_7_3_1_one_character_is_enough(broker: Broker, topic: str) -> None:
    name = topic + broker.topic()
    device = await broker.subscriber((name, 1))
    await device.deliver(name, b"x")
    assert (await device.receive()).topic == name
    device = await broker.subscriber((topic, 1))
    await device.deliver(topic, b"x")
    assert (await device.receive_until(b"x")) == []


async def test_mqtt_4_7_3_3_long_topic(broker: Broker) -> None:
    name = (broker.topic() + "/" + "x" * 1024)[:1024]
    device = await broker.subscriber((name, 1))
    await device.deliver(name, b"x")
    assert (await device.receive()).topic == name


async def test_topic_of_many_levels(broker: Broker) -> None:
    base = broker.topic()
    name = base + "/a" * 150
    device: Device = await broker.subscriber((base + "/+" * 150, 1), (base + "/#", 1))
    await device.deliver(name, b"x")
    assert (await device.receive()).topic == name


async def test_mqtt_4_7_3_4_no_normalisation(broker: Broker) -> None:
    """Composed and decomposed forms, case and blanks are different names."""
    base = broker.topic()
    names = [base + "/" + last for last in ("\u00e9", "e\u0301", "\u00c9", "\u212b", "\u00c5", "A\u030a", "ﬁ", "fi")]
    device = await broker.subscriber(*((name, 1) for name in names))
    for name in names:
        await device.deliver(name, name.encode())
        packet = await device.receive()
        assert (packet.topic, packet.payload) == (name, name.encode())
