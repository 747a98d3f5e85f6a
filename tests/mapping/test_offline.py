"""Offline messages of a device that is back: automatic and active mode (contract section 6, docs/offline.md)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from tests.kit.device import Device
from tests.kit.wire import Kind, publish_bytes
from tests.kit.world import Scene, World

TOPIC = "$SYS/getOfflineMsg"
PERIOD = 4.0  # seconds: the first period of the patient gateway


@pytest.fixture(scope="module")
def patient_world(namesrv: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway that brings nothing unasked in the first keep-alive period."""
    settings = {"offline": {"first_batch": "after_first_period", "first_period_seconds": PERIOD}}
    world = World(tmp_path_factory.mktemp("patient"), namesrv, settings)
    trio.run(world.prepare)
    world.gateway.start()
    yield world
    world.gateway.stop()


@pytest.fixture
async def patient(patient_world: World) -> AsyncIterator[Scene]:
    scene = Scene(patient_world)
    yield scene
    await scene.close()


def asking(order: str, most: object) -> bytes:
    return json.dumps({"pushOrder": order, "maxPushNum": most}).encode()


async def ask(device: Device, order: str, most: object, expected: int) -> list[int]:
    """One request and what comes for it."""
    await device.deliver(TOPIC, asking(order, most))
    return await numbers(device, expected)


async def numbers(device: Device, expected: int) -> list[int]:
    return [int((await device.receive()).payload) for _ in range(expected)]


async def stock(scene: Scene, number: int) -> tuple[str, str]:
    """A device that is away, and the messages 0, 1, ... that wait for it: its Client ID and their topic."""
    topic = scene.parent + scene.sub()
    device = await scene.subscriber((topic, 1), clean=False)
    await device.disconnect()
    watcher = await scene.subscriber((topic, 1))
    sender = await scene.device()
    packets = [publish_bytes(topic, b"%d" % each, 1, packet_id=each + 1) for each in range(number)]
    await sender.send_raw(b"".join(packets))
    assert await numbers(watcher, number) == list(range(number))  # read back, and so handed to the store too
    return device.client_id, topic


async def marked(scene: Scene, device: Device, topic: str) -> list[bytes]:
    """What the device had got before a live message."""
    await (await scene.device()).deliver(topic, b"marker")
    return [packet.payload for packet in await device.receive_until(b"marker")]


async def acknowledge(device: Device, *ids: int) -> None:
    for packet_id in ids:
        await device.ack(Kind.PUBACK, packet_id)


# ---------------------------------------------------------------- the first batch at once (the default)


async def test_oldest_and_newest_of_50(scene: Scene) -> None:
    """The first batch comes unasked; nothing is acknowledged, and nothing comes twice."""
    client_id, topic = await stock(scene, 50)
    device = await scene.device(client_id, auto_ack=False, clean=False, keep_alive=60)
    assert await numbers(device, 30) == list(range(30))
    assert await ask(device, "ASC", 10, 10) == list(range(30, 40))
    assert await ask(device, "DESC", 4, 4) == [49, 48, 47, 46]
    assert await ask(device, "DESC", 31, 6) == [45, 44, 43, 42, 41, 40]
    await device.deliver(TOPIC, asking("ASC", 30))
    assert await marked(scene, device, topic) == []


async def test_the_first_request_ends_automatic_mode_and_a_new_connection_begins_anew(scene: Scene) -> None:
    client_id, topic = await stock(scene, 70)
    device = await scene.device(client_id, clean=False, auto_ack=False)
    first = [await device.receive() for _ in range(30)]
    await device.deliver(TOPIC, asking("DESC", 5))
    pulled = [await device.receive() for _ in range(5)]
    assert [int(packet.payload) for packet in pulled] == [69, 68, 67, 66, 65]
    await acknowledge(device, *(packet.packet_id for packet in [*first, *pulled]))
    await trio.sleep(2.5)  # automatic mode would have brought two batches
    device.auto_ack = True
    assert await marked(scene, device, topic) == []
    await device.disconnect()
    device = await scene.device(client_id, clean=False)
    assert await numbers(device, 35) == list(range(30, 65))
    assert await marked(scene, device, topic) == []


async def test_the_sixth_request_in_a_second_is_acknowledged_and_ignored(scene: Scene) -> None:
    client_id, topic = await stock(scene, 40)
    device = await scene.device(client_id, clean=False, auto_ack=False)
    assert await numbers(device, 30) == list(range(30))
    await device.send_raw(b"".join(publish_bytes(TOPIC, asking("ASC", 1), 1, packet_id=each) for each in range(1, 7)))
    for each in range(1, 7):
        await device.expect_ack(Kind.PUBACK, each)
    assert await numbers(device, 5) == [30, 31, 32, 33, 34]
    assert await marked(scene, device, topic) == []
    await trio.sleep(1)
    assert await ask(device, "ASC", 1, 1) == [35]


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_any_qos_will_do(scene: Scene, qos: int) -> None:
    client_id, _topic = await stock(scene, 32)
    device = await scene.device(client_id, clean=False, auto_ack=False)
    assert await numbers(device, 30) == list(range(30))
    await device.deliver(TOPIC, asking("DESC", 1), qos)
    assert await numbers(device, 1) == [31]


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_request_that_says_nothing_changes_nothing(scene: Scene, qos: int) -> None:
    client_id, topic = await stock(scene, 2)
    device = await scene.device(client_id, clean=False)
    for payload in (b"", b"\0\xff", b"[]", b"[" * 60_000, asking("UP", 3), asking("ASC", 0), asking("ASC", "3")):
        await device.deliver(TOPIC, payload, qos)
    assert await marked(scene, device, topic) == [b"0", b"1"]


async def test_a_clean_session_has_nothing_to_ask_for(scene: Scene) -> None:
    topic = scene.parent + scene.sub()
    device = await scene.subscriber((topic, 1))
    await device.deliver(TOPIC, asking("ASC", 30))
    assert await marked(scene, device, topic) == []


# ---------------------------------------------------------------- the first batch after the first period


async def test_what_a_device_asks_for_is_the_first_that_it_gets(patient: Scene) -> None:
    """As the manual's own example: connect, subscribe again, ask for the newest."""
    client_id, topic = await stock(patient, 50)
    device = await patient.device(client_id, clean=False, keep_alive=90)
    assert await device.subscribe((topic, 1)) == [1]
    assert await marked(patient, device, topic) == []
    assert await ask(device, "DESC", 10, 10) == list(range(49, 39, -1))
    assert await ask(device, "ASC", 3, 3) == [0, 1, 2]
    assert await ask(device, "ASC", 1000, 30) == list(range(3, 33))
    assert await marked(patient, device, topic) == []
    assert await ask(device, "ASC", 30, 7) == list(range(33, 40))
    await device.deliver(TOPIC, asking("DESC", 30))
    assert await marked(patient, device, topic) == []


@pytest.mark.parametrize(("keep_alive", "period"), [(2, 2.0), (0, PERIOD)])
async def test_without_a_request_automatic_mode_begins(patient: Scene, keep_alive: int, period: float) -> None:
    client_id, topic = await stock(patient, 3)
    device = await patient.device(client_id, clean=False, keep_alive=keep_alive)
    began = trio.current_time()
    assert await marked(patient, device, topic) == []
    while not any(packet.kind is Kind.PUBLISH for packet in device.inbox):
        await device.ping()
        await trio.sleep(0.1)
        assert trio.current_time() - began < period + 5
    assert trio.current_time() - began > period - 0.5
    assert await numbers(device, 3) == [0, 1, 2]
