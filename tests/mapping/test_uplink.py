"""From devices to server apps, byte for byte (contract section 5)."""

from __future__ import annotations

import re
from itertools import product

import pytest

from tests.kit.server_app import AppMessage, Reader, collect, next_where
from tests.kit.wire import Kind, Will, publish_bytes
from tests.kit.world import Scene

ALL_BYTES = bytes(range(256)) * 4
BODIES = {"empty": b"", "null": b"\0", "nulls": b"a\0b\0\0c", "all": ALL_BYTES, "64_kib": ALL_BYTES * 64}


async def only(reader: Reader, second: str, marker: bytes = b"marker") -> list[AppMessage]:
    """What the server app got on one subtopic before the marker."""
    found: list[AppMessage] = []
    while True:
        message = await next_where(reader, lambda message: message.properties.get("mqttSecondTopic") == second)
        if message.body == marker:
            return found
        found.append(message)


@pytest.mark.parametrize(("qos", "clean", "retain"), list(product((0, 1, 2), (True, False), (True, False))))
async def test_tag_and_properties(scene: Scene, qos: int, clean: bool, retain: bool) -> None:
    reader, second = await scene.app.reader(scene.parent), scene.sub() + "/b"
    device = await scene.device(clean=clean)
    await device.deliver(scene.parent + second, b"body", qos, retain)
    [message] = await collect(reader, 1, lambda message: message.body == b"body")
    expected = {
        "mqttSecondTopic": second,
        "qoslevel": str(qos),
        "cleansessionflag": "true" if clean else "false",
        "clientId": device.client_id,
        "mqttGateway": scene.world.instance,
    }
    if retain:
        expected["mqttRetain"] = "true"
    assert message.properties == expected
    assert message.tag == "MQTT2MQ"
    assert re.fullmatch("[0-9A-F]{32}", message.id)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_body_byte_for_byte(scene: Scene, qos: int, body: str) -> None:
    reader, second = await scene.app.reader(scene.parent), scene.sub()
    device = await scene.device()
    await device.deliver(scene.parent + second, BODIES[body], qos)
    await device.deliver(scene.parent + second, b"marker")
    assert [message.body for message in await only(reader, second)] == [BODIES[body]]


@pytest.mark.parametrize("second", ["", "/", "//", "/a/", "/a b/ä/日本/😀", "/$x"])
async def test_subtopic(scene: Scene, second: str) -> None:
    reader, body = await scene.app.reader(scene.parent), scene.sub().encode()
    device = await scene.device()
    await device.deliver(scene.parent + second, body)
    message = await next_where(reader, lambda message: message.body == body)
    assert message.properties.get("mqttSecondTopic", "") == second


async def test_each_parent_is_its_own_topic(scene: Scene) -> None:
    first, second = await scene.app.reader(scene.parent), await scene.app.reader(scene.world.other)
    device, name = await scene.device(), scene.sub()
    await device.deliver(scene.parent + name, b"1")
    await device.deliver(scene.world.other + name, b"2")
    for number, (reader, parent) in enumerate(((first, scene.parent), (second, scene.world.other)), 1):
        await device.deliver(parent + name, b"marker")
        assert [message.body for message in await only(reader, name)] == [b"%d" % number]


async def test_identities_are_unique(scene: Scene) -> None:
    reader, second = await scene.app.reader(scene.parent), scene.sub()
    device = await scene.device()
    for _ in range(50):
        await device.publish(scene.parent + second, b"same", 1)
    found = await collect(reader, 50, lambda message: message.properties.get("mqttSecondTopic") == second)
    assert len({message.id for message in found}) == 50


@pytest.mark.parametrize("asked", [False, True], ids=["plain", "enableOrderMsg"])
async def test_order_of_one_device(scene: Scene, asked: bool) -> None:
    """One queue and the order of sending, over all its topics and QoS levels."""
    reader, second = await scene.app.reader(scene.parent), scene.sub()
    device = await scene.device(auto_ack=True)
    if asked:
        await device.deliver("$SYS/enableOrderMsg", b'{"order": "true"}', 1)
    sent = [b"%d" % number for number in range(90)]
    await device.send_raw(
        b"".join(
            publish_bytes(f"{scene.parent}{second}/{number % 4}", body, number % 3, packet_id=number + 1 if number % 3 else None)
            for number, body in enumerate(sent)
        )
    )
    found = await collect(reader, 90, lambda message: message.properties.get("mqttSecondTopic", "").startswith(second + "/"))
    assert [message.body for message in found] == sent
    assert len({message.place[0] for message in found}) == 1
    assert [message.place[1] for message in found] == sorted(message.place[1] for message in found)


async def test_enable_order_must_be_confirmed_and_goes_nowhere(scene: Scene) -> None:
    reader, second = await scene.app.reader(scene.parent), scene.sub()
    device = await scene.device()
    await device.publish("$SYS/enableOrderMsg", b'{"order": "true"}', 1, packet_id=9)
    await device.expect_ack(Kind.PUBACK, 9)
    await device.deliver(scene.parent + second, b"marker")
    assert await only(reader, second) == []


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("topic", ["$SYS/nothing", "$other/x", "$SYS/enableOrderMsg/x"])
async def test_unknown_system_topic_is_acknowledged_and_dropped(scene: Scene, topic: str, qos: int) -> None:
    device = await scene.device()
    await device.deliver(topic, b"x", qos)
    await device.ping()


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_unknown_parent_closes(scene: Scene, qos: int) -> None:
    device = await scene.device()
    await device.publish("neverbridged/a", b"x", qos)
    assert await device.expect_closed() == []


async def test_similar_parent_is_unknown(scene: Scene) -> None:
    for topic in (scene.parent + "x/a", "/" + scene.parent, scene.parent.upper()):
        device = await scene.device()
        await device.publish(topic, b"x", 1)
        assert await device.expect_closed() == []


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_payload_over_the_limit_is_acknowledged_and_dropped(scene: Scene, qos: int) -> None:
    reader, second = await scene.app.reader(scene.parent), scene.sub()
    watcher = await scene.subscriber((scene.parent + second, 2))
    device = await scene.device()
    await device.deliver(scene.parent + second, b"x" * 65537, qos)
    await device.deliver(scene.parent + second, b"y" * 300_000, qos)
    await device.deliver(scene.parent + second, b"marker")
    assert await only(reader, second) == []
    assert await watcher.receive_until(b"marker") == []


async def test_over_limit_payload_leaves_what_surrounds_it_alone(scene: Scene) -> None:
    reader, second = await scene.app.reader(scene.parent), scene.sub()
    device = await scene.device()
    topic = scene.parent + second
    await device.send_raw(
        publish_bytes(topic, b"before", 1, packet_id=1)
        + publish_bytes(topic, b"x" * 200_000, 1, packet_id=2)
        + publish_bytes(topic, b"after", 1, packet_id=3)
    )
    for packet_id in (1, 2, 3):
        await device.expect_ack(Kind.PUBACK, packet_id)
    await device.deliver(topic, b"marker")
    assert [message.body for message in await only(reader, second)] == [b"before", b"after"]


async def test_packet_over_a_mebibyte_closes(scene: Scene) -> None:
    device = await scene.device()
    await device.send_raw(publish_bytes(scene.parent, b"x" * (1 << 20), 1, packet_id=1))
    assert await device.expect_closed() == []


async def test_qos_2_reaches_the_backend_once(scene: Scene) -> None:
    reader, second = await scene.app.reader(scene.parent), scene.sub()
    client_id = scene.id()
    device = await scene.device(client_id, clean=False, auto_ack=False)
    for repeat in (False, True):
        await device.publish(scene.parent + second, b"once", 2, dup=repeat, packet_id=5)
        await device.expect_ack(Kind.PUBREC, 5)
    await device.drop(reset=True)
    device = await scene.device(client_id, clean=False, auto_ack=False)
    await device.publish(scene.parent + second, b"once", 2, dup=True, packet_id=5)
    await device.expect_ack(Kind.PUBREC, 5)
    for _ in range(2):
        await device.ack(Kind.PUBREL, 5)
        await device.expect_ack(Kind.PUBCOMP, 5)
    await device.deliver(scene.parent + second, b"marker")
    assert [message.body for message in await only(reader, second)] == [b"once"]


async def test_will_is_an_uplink_message(scene: Scene) -> None:
    reader, second = await scene.app.reader(scene.parent), scene.sub()
    device = await scene.device(will=Will(scene.parent + second, b"\0gone", 1, retain=True))
    await device.drop(reset=True)
    message = await next_where(reader, lambda message: message.body == b"\0gone")
    assert message.tag == "MQTT2MQ"
    assert message.properties == {
        "mqttSecondTopic": second,
        "qoslevel": "1",
        "cleansessionflag": "true",
        "clientId": device.client_id,
        "mqttGateway": scene.world.instance,
        "mqttRetain": "true",
    }
