"""From server apps to devices, and from device to device (contract section 5)."""

from __future__ import annotations

import pytest

from tests.kit.server_app import RocketMQApp
from tests.kit.world import Scene, live, payloads

ALL_BYTES = bytes(range(256)) * 4
BODIES = {"empty": b"", "null": b"\0", "nulls": b"a\0b\0\0c", "all": ALL_BYTES, "64_kib": ALL_BYTES * 64}


async def send(scene: Scene, second: str, body: bytes, tag: str = "MQ2MQTT", **properties: str) -> None:
    """A server app's message; `second` as it stands."""
    await scene.app.send(scene.parent, body, tag, {**({"mqttSecondTopic": second} if second else {}), **properties})


@pytest.mark.parametrize("body", BODIES)
async def test_body_byte_for_byte(scene: Scene, body: str) -> None:
    second = scene.sub()
    device = await scene.subscriber((scene.parent + second, 1))
    await send(scene, second, BODIES[body])
    packet = await device.receive()
    assert (packet.topic, packet.payload, packet.qos, packet.retain, packet.dup) == (scene.parent + second, BODIES[body], 1, False, False)


@pytest.mark.parametrize("size", [5_000, 20 * 1024, 60_000])
async def test_large_body_arrives_whole(scene: Scene, size: int) -> None:
    """On RocketMQ compressed, as the Java producer does above 4 KiB."""
    second, body = scene.sub(), (ALL_BYTES * 64)[:size]
    device = await scene.subscriber((scene.parent + second, 1))
    if isinstance(scene.app, RocketMQApp):
        await scene.app.send(scene.parent, body, properties={"mqttSecondTopic": second}, compress=True)
    else:
        await send(scene, second, body)
    assert (await device.receive()).payload == body


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0", 0), ("1", 1), ("2", 2), (None, 1), ("3", 1), ("-1", 1), ("x", 1), ("01", 1), ("1.0", 1)],
)
async def test_qoslevel(scene: Scene, given: str | None, expected: int) -> None:
    second = scene.sub()
    device = await scene.subscriber((scene.parent + second, 2))
    await send(scene, second, b"x", **({} if given is None else {"qoslevel": given}))
    packet = await device.receive()
    assert (packet.payload, packet.qos) == (b"x", expected)


@pytest.mark.parametrize("granted", [0, 1, 2])
async def test_qoslevel_is_downgraded(scene: Scene, granted: int) -> None:
    second = scene.sub()
    device = await scene.subscriber((scene.parent + second, granted))
    for qos in (0, 1, 2):
        await send(scene, second, b"%d" % qos, qoslevel=str(qos))
        packet = await device.receive()
        assert (packet.payload, packet.qos) == (b"%d" % qos, min(qos, granted))


@pytest.mark.parametrize("tag", ["", "MQTT2MQ", "MQTTP2P", "other", "mq2mqtt", "MQ2MQTTx"])
async def test_other_tags_never_reach_a_device(scene: Scene, tag: str) -> None:
    """Not even those that the gateway itself uses (it marks what is its own)."""
    second = scene.sub()
    device = await scene.subscriber((scene.parent + second, 1), (scene.parent + "/+", 1))
    await send(scene, second, b"never", tag)
    await send(scene, f"/p2p/{device.client_id}", b"never", tag)
    for number in range(8):  # one for each queue, so that each was read past the message above
        await send(scene, second, b"marker%d" % number)
    found = {(await device.receive()).payload for _ in range(8)}
    assert found == {b"marker%d" % number for number in range(8)}


@pytest.mark.parametrize(
    ("second", "topic"),
    [("", ""), ("/a", "/a"), ("a", "/a"), ("a/b", "/a/b"), ("/", "/"), ("/a/", "/a/"), ("//a", "//a"), ("/ä b/日本", "/ä b/日本")],
)
async def test_subtopic(scene: Scene, second: str, topic: str) -> None:
    """A missing leading slash is added."""
    body = scene.sub().encode()
    device = await scene.subscriber((scene.parent + topic, 1))
    await send(scene, second, body)
    [packet] = [packet for packet in [await device.receive()] if packet.payload == body]
    assert packet.topic == scene.parent + topic


@pytest.mark.parametrize("name", ["/#", "/+/x", "{}/#", "{}/+", "{}/x/#"])
async def test_wildcards(scene: Scene, name: str) -> None:
    second = scene.sub()
    device = await scene.subscriber((scene.parent + name.format(second), 1))
    await send(scene, second + "/x", second.encode())
    while (packet := await device.receive()).payload != second.encode():
        pass
    assert packet.topic == scene.parent + second + "/x"


async def test_wildcard_in_the_first_level(scene: Scene) -> None:
    second = scene.sub()
    device = await scene.subscriber(("+" + second, 1))
    await send(scene, second, b"1")
    assert (await device.receive()).topic == scene.parent + second
    await scene.app.send(scene.world.other, b"2", properties={"mqttSecondTopic": second})
    assert (await device.receive()).topic == scene.world.other + second


async def test_parents_are_apart(scene: Scene) -> None:
    second = scene.sub()
    device = await scene.subscriber((scene.parent + second, 1))
    await scene.app.send(scene.world.other, b"never", properties={"mqttSecondTopic": second})
    await send(scene, second, b"marker")
    assert await device.receive_until(b"marker") == []


async def test_real_topic_is_what_the_device_sees(scene: Scene) -> None:
    second = scene.sub()
    device = await scene.subscriber((scene.parent + second, 1))
    await send(scene, second, b"x", mqttRealTopic="shown/instead")
    packet = await device.receive()
    assert (packet.topic, packet.payload) == ("shown/instead", b"x")


async def test_real_topic_does_not_decide_who_gets_it(scene: Scene) -> None:
    first, second = scene.sub(), scene.sub()
    device = await scene.subscriber((scene.parent + first, 1))
    await send(scene, second, b"never", mqttRealTopic=scene.parent + first)
    await send(scene, first, b"marker")
    assert await device.receive_until(b"marker") == []


@pytest.mark.parametrize(
    "properties", [{"mqttSecondTopic": "/a/#"}, {"mqttSecondTopic": "/+"}, {"mqttSecondTopic": "/a\tb"}, {"mqttRealTopic": "#"}]
)
async def test_what_can_not_be_published_stops_nothing(scene: Scene, properties: dict[str, str]) -> None:
    second = scene.sub()
    device = await scene.subscriber((scene.parent + second, 1))
    for _ in range(8):
        await scene.app.send(scene.parent, b"never", properties={"mqttSecondTopic": second, **properties})
    for number in range(8):
        await send(scene, second, b"marker%d" % number)
    assert {(await device.receive()).payload for _ in range(8)} == {b"marker%d" % number for number in range(8)}


async def test_unknown_properties_are_ignored(scene: Scene) -> None:
    second = scene.sub()
    device = await scene.subscriber((scene.parent + second, 1))
    await send(scene, second, b"x", anything="at all", cleansessionflag="false", KEYS="k1 k2")
    assert (await device.receive()).payload == b"x"


async def test_server_app_may_retain(scene: Scene) -> None:
    second = scene.sub()
    device = await scene.subscriber((scene.parent + second, 1))
    await send(scene, second, b"kept", mqttRetain="true", qoslevel="1")
    live = await device.receive()
    assert (live.payload, live.retain) == (b"kept", False)
    late = await scene.subscriber((scene.parent + second, 1))
    packet = await late.receive()
    assert (packet.payload, packet.retain, packet.qos) == (b"kept", True, 1)
    await send(scene, second, b"", mqttRetain="true")
    assert (await device.receive()).payload == b""
    last = await scene.subscriber((scene.parent + second, 1))
    await send(scene, second, b"marker")
    assert await last.receive_until(b"marker") == []


async def test_kept_for_an_offline_device(scene: Scene) -> None:
    second = scene.sub()
    device = await scene.subscriber((scene.parent + second, 2), clean=False)
    watcher = await scene.subscriber((scene.parent + second, 2))
    await device.disconnect()
    for qos in (0, 1, 2):
        await send(scene, second, b"%d" % qos, qoslevel=str(qos))
        assert (await watcher.receive()).qos == qos
    device = await scene.device(device.client_id, clean=False)
    found = [await device.receive(), await device.receive()]
    assert {(packet.payload, packet.qos) for packet in found} == {(b"1", 1), (b"2", 2)}


async def test_not_kept_for_a_clean_session(scene: Scene) -> None:
    second, client_id = scene.sub(), scene.id()
    device = await scene.subscriber((scene.parent + second, 1), client_id=client_id)
    watcher = await scene.subscriber((scene.parent + second, 1))
    await device.disconnect()
    await send(scene, second, b"never")
    assert (await watcher.receive()).payload == b"never"
    device = await scene.subscriber((scene.parent + second, 1), client_id=client_id)
    await send(scene, second, b"marker")
    assert await device.receive_until(b"marker") == []


async def test_one_message_for_many_devices(scene: Scene) -> None:
    second = scene.sub()
    devices = [await scene.subscriber((scene.parent + second, number % 3)) for number in range(12)]
    await send(scene, second, b"x", qoslevel="2")
    for number, device in enumerate(devices):
        packet = await device.receive()
        assert (packet.payload, packet.qos) == (b"x", number % 3)


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_device_to_device(scene: Scene, qos: int) -> None:
    second = scene.sub()
    receiver = await scene.subscriber((scene.parent + second + "/#", 2))
    sender = await scene.device()
    await sender.deliver(scene.parent + second + "/a", ALL_BYTES, qos)
    packet = await receiver.receive()
    assert (packet.topic, packet.payload, packet.qos, packet.retain) == (scene.parent + second + "/a", ALL_BYTES, qos, False)


async def test_device_to_device_once_beside_server_apps(scene: Scene) -> None:
    """What the gateway reads back of its own uplink is delivered once."""
    second = scene.sub()
    device = await scene.subscriber((scene.parent + second, 1), (scene.parent + "/#", 1))
    for number in range(20):
        await device.deliver(scene.parent + second, b"up%d" % number)
        await send(scene, second, b"down%d" % number)
    wanted = {b"%s%d" % (kind, number) for kind in (b"up", b"down") for number in range(20)}
    found = [packet for packet in [await live(device) for _ in range(40)] if packet.topic == scene.parent + second]
    assert set(payloads(found)) == wanted
    await device.deliver(scene.parent + second, b"marker")
    assert await device.receive_until(b"marker") == []


async def test_first_subscription_of_a_parent_sees_what_follows_its_suback(scene: Scene) -> None:
    """The tag filter is widened before the SUBACK goes out."""
    second = scene.sub()
    sender = await scene.device()
    device = await scene.subscriber((scene.world.other + second, 1))
    await sender.deliver(scene.world.other + second, b"first")
    assert (await device.receive()).payload == b"first"
