"""Lifecycle events as they reach `GID_xxx_MQTT` (contract section 7)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio

from tests.kit.device import Device
from tests.kit.server_app import AppMessage, Reader, next_where
from tests.kit.wire import Will, frame
from tests.kit.world import Scene, World


def own_port(device: Device) -> int:
    """The device's side of its connection."""
    assert isinstance(device.stream, trio.SocketStream)
    port: int = device.stream.socket.getsockname()[1]
    return port


class Watcher:
    """Reads the events of the watched group."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._last: dict[str, int] = {}

    async def next(self, client_id: str) -> tuple[AppMessage, dict[str, Any]]:
        """The next event of this client, whose form is checked. After a crash an event may come again, with its `seq`: it is dropped."""
        while True:
            message = await next_where(self._reader, lambda message: json.loads(message.body)["clientId"] == client_id)
            seq = int(message.properties["seq"])
            if seq > self._last.get(client_id, 0):
                break
        self._last[client_id] = seq
        event = json.loads(message.body)
        assert set(event) == {"clientId", "time", "eventType", "channelId", "clientIp"}
        assert message.tag == event["eventType"]
        assert isinstance(event["time"], int)
        assert re.fullmatch("[0-9a-f]{32}", event["channelId"])
        assert abs(event["time"] - time.time() * 1000) < 600_000
        return message, event

    async def types(self, client_id: str, count: int) -> list[str]:
        """The types of the next events of this client; their times must grow and they must share a queue, in order."""
        found = [await self.next(client_id) for _ in range(count)]
        times = [event["time"] for _, event in found]
        assert times == sorted(set(times)), "time must grow strictly"
        assert len({message.place[0] for message, _ in found}) == 1, "one queue for one client"
        offsets = [message.place[1] for message, _ in found]
        assert offsets == sorted(offsets)
        return [event["eventType"] for _, event in found]


@pytest.fixture
async def watcher(scene: Scene) -> Watcher:
    """From now on."""
    return Watcher(await scene.app.reader(f"{scene.world.watched}_MQTT"))


async def test_fields_of_connect(scene: Scene, watcher: Watcher) -> None:
    device = await scene.device(scene.id(scene.world.watched))
    _, event = await watcher.next(device.client_id)
    assert event["eventType"] == "connect"
    assert event["clientId"] == device.client_id
    assert event["clientIp"] == f"127.0.0.1:{own_port(device)}"


async def test_polite_end(scene: Scene, watcher: Watcher) -> None:
    device = await scene.device(scene.id(scene.world.watched))
    await device.disconnect()
    found = [await watcher.next(device.client_id) for _ in range(3)]
    assert [event["eventType"] for _, event in found] == ["connect", "disconnect", "tcpclean"]
    assert len({event["channelId"] for _, event in found}) == 1
    assert len({event["clientIp"] for _, event in found}) == 1
    times = [event["time"] for _, event in found]
    assert times == sorted(set(times))


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_lost_connection(scene: Scene, watcher: Watcher, reset: bool) -> None:
    device = await scene.device(scene.id(scene.world.watched))
    await device.drop(reset)
    assert await watcher.types(device.client_id, 2) == ["connect", "tcpclean"]


async def test_keep_alive_timeout(scene: Scene, watcher: Watcher) -> None:
    device = await scene.device(scene.id(scene.world.watched), keep_alive=1)
    assert await watcher.types(device.client_id, 2) == ["connect", "tcpclean"]
    await device.expect_closed()


async def test_protocol_error(scene: Scene, watcher: Watcher) -> None:
    device = await scene.device(scene.id(scene.world.watched))
    await device.send_raw(frame(0xF0))
    await device.expect_closed()
    assert await watcher.types(device.client_id, 2) == ["connect", "tcpclean"]


async def test_tcpclean_of_a_taken_over_connection_has_the_older_channel(scene: Scene, watcher: Watcher) -> None:
    client_id = scene.id(scene.world.watched)
    old = await scene.device(client_id)
    _, first = await watcher.next(client_id)
    new = await scene.device(client_id)
    await old.expect_closed()
    events = [(await watcher.next(client_id))[1] for _ in range(2)]
    by_type = {event["eventType"]: event for event in events}
    assert set(by_type) == {"tcpclean", "connect"}
    assert by_type["tcpclean"]["channelId"] == first["channelId"]
    assert by_type["connect"]["channelId"] != first["channelId"]
    assert by_type["tcpclean"]["clientIp"] == first["clientIp"]
    assert len({first["time"], *(event["time"] for event in events)}) == 3
    await new.disconnect()
    assert await watcher.types(client_id, 2) == ["disconnect", "tcpclean"]


async def test_time_grows_strictly_over_many_quick_connections(scene: Scene, watcher: Watcher) -> None:
    client_id = scene.id(scene.world.watched)
    for _ in range(15):
        device = await scene.device(client_id)
        await device.drop(reset=True)
    found = await watcher.types(client_id, 30)
    assert sorted(found) == ["connect"] * 15 + ["tcpclean"] * 15


async def test_channels_are_unique(scene: Scene, watcher: Watcher) -> None:
    client_id = scene.id(scene.world.watched)
    channels = set()
    for _ in range(10):
        await (await scene.device(client_id)).disconnect()
        events = [(await watcher.next(client_id))[1] for _ in range(3)]
        assert len({event["channelId"] for event in events}) == 1
        channels.add(events[0]["channelId"])
    assert len(channels) == 10


async def test_refused_connection_has_no_events(scene: Scene, watcher: Watcher) -> None:
    client_id = scene.id(scene.world.watched)
    refused, ack = await scene.attempt(client_id, password=b"wrong")
    assert ack.code == 4
    await refused.expect_closed()
    device = await scene.device(client_id)
    _, event = await watcher.next(client_id)
    assert event["clientIp"] == f"127.0.0.1:{own_port(device)}"


async def test_group_without_a_topic_has_no_events_and_no_error(scene: Scene) -> None:
    for _ in range(3):
        await (await scene.device(scene.id(scene.world.group))).disconnect()
    await (await scene.device()).ping()
    log = scene.world.gateway.log()
    assert log.count(f"{scene.world.group}_MQTT") == 1, "said once"


# ---------------------------------------------------------------- across the end of a gateway


@pytest.fixture
def own_world(namesrv: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway that the test may kill."""
    world = World(tmp_path_factory.mktemp("own"), namesrv)
    trio.run(world.prepare)
    world.gateway.start()
    yield world
    world.gateway.kill()
    world.gateway.check_log()


@pytest.fixture
async def own_scene(own_world: World) -> AsyncIterator[Scene]:
    scene = Scene(own_world)
    yield scene
    await scene.close()


async def kill_and_start(scene: Scene) -> None:
    scene.world.gateway.kill()
    await trio.to_thread.run_sync(scene.world.gateway.start)


async def all_events(scene: Scene) -> Watcher:
    """From the first one on, asked of the gateway that runs now."""
    return Watcher(await scene.new_app().reader(f"{scene.world.watched}_MQTT", from_start=True))


async def test_kill_9_of_the_gateway_gives_tcpclean_and_wills(own_scene: Scene) -> None:
    scene, second = own_scene, own_scene.sub()
    client_id, keeper_id = scene.id(scene.world.watched), scene.id()
    keeper = await scene.subscriber((scene.parent + second, 1), client_id=keeper_id, clean=False)
    await keeper.disconnect()
    device = await scene.device(client_id, will=Will(scene.parent + second, b"\0gone", 1, retain=True))
    await kill_and_start(scene)
    keeper = await scene.device(keeper_id, clean=False)
    assert (await keeper.receive()).payload == b"\0gone"
    watcher = await all_events(scene)
    found = [await watcher.next(client_id) for _ in range(2)]
    assert [event["eventType"] for _, event in found] == ["connect", "tcpclean"]
    assert found[0][1]["channelId"] == found[1][1]["channelId"]
    assert found[1][1]["clientIp"] == f"127.0.0.1:{own_port_of(found[0][1])}"
    assert found[0][1]["time"] < found[1][1]["time"]
    assert found[1][0].properties.get("reason") == "node_lost"
    late = await scene.subscriber((scene.parent + second, 1))
    kept = await late.receive()
    assert (kept.payload, kept.retain) == (b"\0gone", True)
    assert device.client_id == client_id


async def test_no_will_after_disconnect_and_kill_9(own_scene: Scene) -> None:
    """When the device sees the connection closed, its will is gone for good [MQTT-3.14.4-3]."""
    scene, second = own_scene, own_scene.sub()
    keeper = await scene.subscriber((scene.parent + second, 1), clean=False)
    await keeper.disconnect()
    for _ in range(10):
        polite = await scene.device(will=Will(scene.parent + second, b"never", 1))
        await polite.disconnect()
    await kill_and_start(scene)
    keeper = await scene.device(keeper.client_id, clean=False)
    await keeper.deliver(scene.parent + second, b"marker")
    assert await keeper.receive_until(b"marker") == []


def own_port_of(event: dict[str, Any]) -> int:
    return int(event["clientIp"].rpartition(":")[2])


async def test_a_device_that_comes_back_after_kill_9(own_scene: Scene) -> None:
    scene = own_scene
    client_id = scene.id(scene.world.watched)
    await scene.device(client_id, clean=False)
    await kill_and_start(scene)
    await scene.device(client_id, clean=False)
    watcher = await all_events(scene)
    found = [(await watcher.next(client_id))[1] for _ in range(3)]
    assert [event["eventType"] for event in found] == ["connect", "tcpclean", "connect"]
    assert found[0]["channelId"] == found[1]["channelId"] != found[2]["channelId"]
    times = [event["time"] for event in found]
    assert times == sorted(set(times))


async def test_sigterm_ends_every_connection_in_good_order(own_scene: Scene) -> None:
    """The server closes without a DISCONNECT: wills are published [MQTT-3.1.2-8], `tcpclean` follows."""
    scene, second = own_scene, own_scene.sub()
    keeper = await scene.subscriber((scene.parent + second, 1), clean=False)
    await keeper.disconnect()
    devices = [
        await scene.device(scene.id(scene.world.watched), will=Will(scene.parent + second, b"%d" % number, 1)) for number in range(5)
    ]
    await trio.to_thread.run_sync(scene.world.gateway.stop)
    for device in devices:
        await device.expect_closed()
    await trio.to_thread.run_sync(scene.world.gateway.start)
    keeper = await scene.device(keeper.client_id, clean=False)
    assert {(await keeper.receive()).payload for _ in devices} == {b"0", b"1", b"2", b"3", b"4"}
    for device in devices:
        watcher = await all_events(scene)
        assert await watcher.types(device.client_id, 2) == ["connect", "tcpclean"]
