"""Messages to one client (contract section 5 and 6)."""

from __future__ import annotations

import pytest

from tests.kit.device import Device
from tests.kit.server_app import next_where
from tests.kit.world import Scene, live


async def settled(scene: Scene, device: Device) -> list[bytes]:
    """What the device had got before a P2P message that it sends to itself."""
    await device.deliver(f"{scene.parent}/p2p/{device.client_id}", b"marker", 1)
    return [packet.payload for packet in await device.receive_until(b"marker") if not packet.retain]


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("payload", [b"", b"\0x\0\xff"], ids=["empty", "binary"])
async def test_from_device_to_device(scene: Scene, qos: int, payload: bytes) -> None:
    """Nobody subscribes; the QoS is the sender's."""
    sender, receiver = await scene.device(), await scene.device()
    topic = f"{scene.parent}/p2p/{receiver.client_id}"
    await sender.deliver(topic, payload, qos)
    packet = await receiver.receive()
    assert (packet.topic, packet.payload, packet.qos, packet.retain) == (topic, payload, qos, False)


async def test_as_a_server_app_sees_it(scene: Scene) -> None:
    reader = await scene.app.reader(scene.parent)
    sender, receiver = await scene.device(clean=False), await scene.device()
    body = receiver.client_id.encode()
    await sender.deliver(f"{scene.parent}/p2p/{receiver.client_id}", body, 1)
    message = await next_where(reader, lambda message: message.body == body)
    assert message.tag == "MQTTP2P"
    assert message.properties == {
        "mqttSecondTopic": f"/p2p/{receiver.client_id}",
        "qoslevel": "1",
        "cleansessionflag": "false",
        "clientId": sender.client_id,
        "mqttGateway": scene.world.instance,
    }


@pytest.mark.parametrize("slash", ["/", ""])
async def test_from_server_app(scene: Scene, slash: str) -> None:
    receiver = await scene.device()
    await scene.app.send(scene.parent, b"\0p2p", properties={"mqttSecondTopic": f"{slash}p2p/{receiver.client_id}", "qoslevel": "2"})
    packet = await receiver.receive()
    assert (packet.topic, packet.payload, packet.qos) == (f"{scene.parent}/p2p/{receiver.client_id}", b"\0p2p", 2)


async def test_real_topic(scene: Scene) -> None:
    receiver = await scene.device()
    properties = {"mqttSecondTopic": f"/p2p/{receiver.client_id}", "mqttRealTopic": "your/own/topic"}
    await scene.app.send(scene.parent, b"x", properties=properties)
    assert (await receiver.receive()).topic == "your/own/topic"


async def test_subscribing_to_p2p_is_accepted_and_adds_no_copy(scene: Scene) -> None:
    receiver, sender = await scene.device(), await scene.device()
    own = f"{scene.parent}/p2p/{receiver.client_id}"
    filters = [(f"{scene.parent}/p2p", 1), (f"{scene.parent}/p2p/", 0), (own, 2), (f"{scene.parent}/p2p/#", 1), (f"{scene.parent}/#", 1)]
    assert await receiver.subscribe(*filters) == [1, 0, 2, 1, 1]
    await sender.deliver(own, b"once", 1)
    await scene.app.send(scene.parent, b"twice", properties={"mqttSecondTopic": f"/p2p/{receiver.client_id}"})
    assert {(await live(receiver)).payload for _ in range(2)} == {b"once", b"twice"}
    assert await settled(scene, receiver) == []


async def test_others_never_see_it(scene: Scene) -> None:
    receiver, sender = await scene.device(), await scene.device()
    own = f"{scene.parent}/p2p/{receiver.client_id}"
    spy = await scene.subscriber(
        (f"{scene.parent}/#", 1),
        (f"{scene.parent}/p2p/+", 1),
        (own, 1),
        (f"{scene.parent}/+/{receiver.client_id}", 1),
        ("#", 1),
        ("+/#", 1),
    )
    await sender.deliver(own, b"secret", 1)
    await scene.app.send(scene.parent, b"secret", properties={"mqttSecondTopic": f"/p2p/{receiver.client_id}"})
    assert {(await receiver.receive()).payload for _ in range(2)} == {b"secret"}
    assert b"secret" not in await settled(scene, spy)


async def test_to_oneself(scene: Scene) -> None:
    device = await scene.device()
    await device.deliver(f"{scene.parent}/p2p/{device.client_id}", b"me", 2)
    packet = await device.receive()
    assert (packet.payload, packet.qos) == (b"me", 2)


async def test_to_a_client_id_with_wildcard_characters_or_slashes(scene: Scene) -> None:
    receiver = await scene.device(f"{scene.id()}/a")
    await (await scene.device()).deliver(f"{scene.parent}/p2p/{receiver.client_id}", b"x", 1)
    assert (await receiver.receive()).payload == b"x"


async def test_to_nobody(scene: Scene) -> None:
    device = await scene.device()
    for qos in (0, 1, 2):
        await device.deliver(f"{scene.parent}/p2p/{scene.id()}", b"x", qos)


async def test_order(scene: Scene) -> None:
    sender, receiver = await scene.device(), await scene.device()
    sent = [b"%d" % number for number in range(60)]
    for payload in sent:
        await sender.publish(f"{scene.parent}/p2p/{receiver.client_id}", payload, 1)
    assert [(await receiver.receive()).payload for _ in sent] == sent


@pytest.mark.parametrize("receiver_clean", [False, True])
@pytest.mark.parametrize("sender_clean", [False, True])
async def test_kept_offline_by_the_senders_session_kind(scene: Scene, sender_clean: bool, receiver_clean: bool) -> None:
    """Kept if and only if the sender is persistent and the receiver has a stored session."""
    client_id, sender = scene.id(), await scene.device(clean=sender_clean)
    receiver = await scene.device(client_id, clean=receiver_clean)
    await receiver.disconnect()
    await sender.deliver(f"{scene.parent}/p2p/{client_id}", b"kept", 1)
    await sender.deliver(f"{scene.parent}/p2p/{sender.client_id}", b"read back", 1)  # same queue: the one before was read too
    assert (await sender.receive()).payload == b"read back"
    receiver = await scene.device(client_id, clean=False)
    assert await settled(scene, receiver) == ([] if sender_clean or receiver_clean else [b"kept"])


@pytest.mark.parametrize(("flag", "kept"), [("false", True), ("true", False), (None, False), ("nonsense", False)])
async def test_kept_offline_by_cleansessionflag(scene: Scene, flag: str | None, kept: bool) -> None:
    receiver = await scene.device(clean=False)
    await receiver.disconnect()
    properties = {"mqttSecondTopic": f"/p2p/{receiver.client_id}"} | ({} if flag is None else {"cleansessionflag": flag})
    await scene.app.send(scene.parent, b"kept", properties=properties)
    watcher, second = await scene.device(), scene.sub()
    await watcher.subscribe((scene.parent + second, 1))
    for number in range(8):  # each queue was read past the message above
        await scene.app.send(scene.parent, b"%d" % number, properties={"mqttSecondTopic": second})
    for _ in range(8):
        await watcher.receive()
    receiver = await scene.device(receiver.client_id, clean=False)
    assert await settled(scene, receiver) == ([b"kept"] if kept else [])


async def test_qos_0_is_not_kept_offline(scene: Scene) -> None:
    receiver, sender = await scene.device(clean=False), await scene.device(clean=False)
    await receiver.disconnect()
    await sender.deliver(f"{scene.parent}/p2p/{receiver.client_id}", b"lost", 0)
    await sender.deliver(f"{scene.parent}/p2p/{receiver.client_id}", b"kept", 1)
    receiver = await scene.device(receiver.client_id, clean=False)
    assert (await receiver.receive()).payload == b"kept"


@pytest.mark.parametrize("length", [24, 64])
async def test_client_id_does_not_count_in_the_topic_length(scene: Scene, length: int) -> None:
    client_id = (scene.id() + "-" + "x" * 64)[:length]
    receiver = await scene.device(client_id)
    await (await scene.device()).deliver(f"{scene.parent}/p2p/{client_id}", b"x", 1)
    assert (await receiver.receive()).payload == b"x"


async def test_after_take_over_the_new_connection_gets_it(scene: Scene) -> None:
    client_id, sender = scene.id(), await scene.device()
    old = await scene.device(client_id)
    new = await scene.device(client_id)
    await old.expect_closed()
    await sender.deliver(f"{scene.parent}/p2p/{client_id}", b"x", 1)
    assert (await new.receive()).payload == b"x"
