"""What a gateway finds when it starts: topics that hold messages already, sessions, messages sent while it was away (design section 4)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from tests.kit.server_app import RocketMQApp
from tests.kit.wire import Kind, publish_bytes
from tests.kit.world import Scene, World


@pytest.fixture
def world(namesrv: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway of this test, not started."""
    world = World(tmp_path_factory.mktemp("start"), namesrv)
    yield world
    world.gateway.kill()
    world.gateway.check_log()


@pytest.fixture
async def scene(world: World) -> AsyncIterator[Scene]:
    scene = Scene(world)
    yield scene
    await scene.close()


async def start(scene: Scene) -> None:
    await trio.to_thread.run_sync(scene.world.gateway.start)


async def stop(scene: Scene) -> None:
    await trio.to_thread.run_sync(scene.world.gateway.stop)


@pytest.mark.parametrize("namesrv", [pytest.param("rocketmq", marks=pytest.mark.services)], indirect=True)
async def test_first_start_on_a_topic_that_holds_messages(scene: Scene) -> None:
    """What was there before the topic was bridged is not for devices."""
    assert isinstance(scene.app, RocketMQApp)
    second = scene.sub()
    await scene.app.create_topic(scene.parent, 4)
    for number in range(20):
        await scene.app.send(scene.parent, b"old%d" % number, properties={"mqttSecondTopic": second})
    await start(scene)
    device = await scene.subscriber((scene.parent + second, 1))
    for number in range(8):
        await scene.app.send(scene.parent, b"new%d" % number, properties={"mqttSecondTopic": second})
    assert {(await device.receive()).payload for _ in range(8)} == {b"new%d" % number for number in range(8)}


@pytest.mark.parametrize("namesrv", [pytest.param("rocketmq", marks=pytest.mark.services)], indirect=True)
async def test_server_app_sends_while_the_gateway_is_away(scene: Scene) -> None:
    """For sessions that are older; a new subscription gets nothing of it."""
    await start(scene)
    second = scene.sub()
    device = await scene.subscriber((scene.parent + second, 1), clean=False)
    await stop(scene)
    await device.expect_closed()
    for number in range(20):
        await scene.app.send(scene.parent, b"%d" % number, properties={"mqttSecondTopic": second})
    await start(scene)
    device = await scene.device(device.client_id, clean=False)
    assert {(await device.receive()).payload for _ in range(20)} == {b"%d" % number for number in range(20)}
    late = await scene.subscriber((scene.parent + second, 1))
    for number in range(8):
        await scene.app.send(scene.parent, b"new%d" % number, properties={"mqttSecondTopic": second})
    assert {(await late.receive()).payload for _ in range(8)} == {b"new%d" % number for number in range(8)}


async def test_sessions_survive_a_clean_restart(scene: Scene) -> None:
    """Subscriptions, waiting messages, retained ones, QoS 2 in both directions, packet ids."""
    await start(scene)
    second, client_id = scene.sub(), scene.id()
    topic, kept = scene.parent + second, scene.parent + second + "/kept"
    device = await scene.subscriber((topic, 2), client_id=client_id, clean=False, auto_ack=False)
    sender = await scene.device()
    await sender.deliver(kept, b"\0kept", 1, retain=True)
    await sender.deliver(topic, b"1", 1)
    await sender.deliver(topic, b"2", 2)
    flight = {packet.payload: packet for packet in (await device.receive(), await device.receive())}
    await device.ack(Kind.PUBREC, flight[b"2"].packet_id)
    await device.expect_ack(Kind.PUBREL, flight[b"2"].packet_id)
    await device.publish(topic + "/up", b"up", 2, packet_id=77)
    await device.expect_ack(Kind.PUBREC, 77)
    await device.disconnect()
    await sender.deliver(topic, b"waits", 1)
    await stop(scene)
    await start(scene)
    watcher = await scene.subscriber((topic + "/#", 2))
    retained = await watcher.receive()
    assert (retained.payload, retained.retain) == (b"\0kept", True)
    device, ack = await scene.attempt(client_id, auto_ack=False, clean=False)
    assert ack.session_present
    again = await device.expect(Kind.PUBLISH)
    assert (again.payload, again.packet_id, again.dup) == (b"1", flight[b"1"].packet_id, True)
    await device.expect_ack(Kind.PUBREL, flight[b"2"].packet_id)
    await device.ack(Kind.PUBACK, again.packet_id)
    await device.ack(Kind.PUBCOMP, flight[b"2"].packet_id)
    assert (await device.receive()).payload == b"waits"
    await device.publish(topic + "/up", b"up", 2, dup=True, packet_id=77)
    await device.expect_ack(Kind.PUBREC, 77)
    await device.ack(Kind.PUBREL, 77)
    await device.expect_ack(Kind.PUBCOMP, 77)
    await device.deliver(topic + "/up", b"marker", 1)
    assert b"up" not in [packet.payload for packet in await watcher.receive_until(b"marker")]


async def test_200_devices_with_64_kib_at_once(scene: Scene) -> None:
    """They don't fail each other's batch."""
    await start(scene)
    reader, second = await scene.new_app().reader(scene.parent), scene.sub()
    devices = [await scene.device() for _ in range(200)]
    async with trio.open_nursery() as nursery:
        for number, device in enumerate(devices):
            nursery.start_soon(device.send_raw, publish_bytes(scene.parent + second, bytes([number]) * 65536, 1, packet_id=1))
    for device in devices:
        await device.expect_ack(Kind.PUBACK, 1)
    found: dict[str, int] = {}
    with trio.fail_after(60):
        while len(found) < 200:
            message = await reader.next()
            assert len(message.body) == 65536
            found[message.properties["clientId"]] = message.body[0]
    assert found == {device.client_id: number for number, device in enumerate(devices)}


async def test_settings_with_a_typo_are_refused(scene: Scene) -> None:
    """The text names the key and the cure; nothing is started."""
    config = scene.world.gateway.config
    config.write_text(config.read_text().replace("default_topic", "defalt_topic"))
    with pytest.raises(AssertionError, match="default_topic"):
        await trio.to_thread.run_sync(scene.world.gateway.start)


async def test_port_in_use_is_an_error(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> None:
    await start(scene)
    second = World(tmp_path_factory.mktemp("second"), None)
    text = second.gateway.config.read_text()
    second.gateway.config.write_text(text.replace(f":{second.gateway.port}", f":{scene.world.gateway.port}"))
    with pytest.raises(AssertionError, match=rf"(?s){scene.world.gateway.port}.*"):
        await trio.to_thread.run_sync(second.gateway.start)
    second.gateway.check_log()
    await (await scene.device()).ping()
