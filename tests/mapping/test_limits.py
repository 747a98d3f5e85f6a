"""Limits of topics and subscriptions (contract section 11)."""

from __future__ import annotations

import pytest

from tests.kit.world import Scene


async def test_subscriptions_of_a_client(scene: Scene) -> None:
    """30; the ones beyond get 0x80, and the connection stays."""
    device, base = await scene.device(), scene.parent + scene.sub()
    assert await device.subscribe(*((f"{base}/{number}", 1) for number in range(32))) == [1] * 30 + [0x80] * 2
    assert await device.subscribe((f"{base}/0", 2), (f"{base}/new", 1)) == [2, 0x80]
    await device.deliver(f"{base}/31", b"never")
    await device.deliver(f"{base}/29", b"marker")
    assert await device.receive_until(b"marker") == []
    await device.unsubscribe(f"{base}/0")
    assert await device.subscribe((f"{base}/new", 1)) == [1]


async def test_subscriptions_of_a_stored_session_count(scene: Scene) -> None:
    base = scene.parent + scene.sub()
    device = await scene.subscriber(*((f"{base}/{number}", 1) for number in range(30)), clean=False)
    await device.disconnect()
    device = await scene.device(device.client_id, clean=False)
    assert await device.subscribe((f"{base}/30", 1)) == [0x80]


def topic_of(scene: Scene, length: int) -> str:
    base = scene.parent + scene.sub() + "/"
    return base + "x" * (length - len(base))


async def test_topic_of_64_characters(scene: Scene) -> None:
    topic = topic_of(scene, 64)
    device = await scene.subscriber((topic, 1))
    await device.deliver(topic, b"x")
    assert (await device.receive()).topic == topic


async def test_characters_are_counted_not_bytes(scene: Scene) -> None:
    topic = topic_of(scene, 64).replace("x", "日")
    device = await scene.subscriber((topic, 1))
    await device.deliver(topic, b"x")
    assert (await device.receive()).topic == topic


@pytest.mark.parametrize("length", [65, 200, 2000])
async def test_subscribe_to_a_longer_topic_is_0x80(scene: Scene, length: int) -> None:
    device, fine = await scene.device(), scene.parent + scene.sub()
    assert await device.subscribe((topic_of(scene, length), 1), (fine, 1)) == [0x80, 1]
    await device.deliver(fine, b"x")
    assert (await device.receive()).payload == b"x"


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_publish_to_a_longer_topic_closes(scene: Scene, qos: int) -> None:
    device = await scene.device()
    await device.publish(topic_of(scene, 65), b"x", qos)
    assert await device.expect_closed() == []


@pytest.mark.parametrize("name", ["neverbridged", "neverbridged/a", "neverbridged/#", "/a"])
async def test_subscribe_to_an_unknown_parent_is_0x80(scene: Scene, name: str) -> None:
    device, fine = await scene.device(), scene.parent + scene.sub()
    assert await device.subscribe((fine, 1), (name, 1), (fine + "/2", 0)) == [1, 0x80, 0]
    await device.ping()


async def test_refused_filter_leaves_an_older_subscription_alone(scene: Scene) -> None:
    device, base = await scene.device(), scene.parent + scene.sub()
    assert await device.subscribe((base, 1)) == [1]
    assert await device.subscribe(("neverbridged/a", 1)) == [0x80]
    await device.deliver(base, b"x")
    assert (await device.receive()).payload == b"x"
