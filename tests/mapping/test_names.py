"""Names, groups, signatures and permissions as they are refused (contract sections 1, 3 and 11)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kit.wire import Will, subscribe_bytes
from tests.kit.world import SECRETS, Scene, sign

BAD_IDS = [
    "",
    "plain",
    "@@@device",
    "{group}",
    "{group}@@@",
    "{group}@@device",
    "{group}@device",
    "gid{group}@@@device",
    "GID_@@@device",
    "GID_ab@@@device",
    "GID_" + "x" * 29 + "@@@device",
    "GID_a b c@@@device",
    "GID_a.b.c@@@device",
    "GID_äöü@@@device",
    "{group}@@@" + "d" * 64,
    "{group}@@@a\u200bb",
    "{group}@@@a\u00a0b",
    "{group}@@@a\u2028b",
    "{group}@@@\ufeff",
]


@pytest.mark.parametrize("name", BAD_IDS, ids=range(len(BAD_IDS)))
async def test_malformed_client_id_is_0x02(scene: Scene, name: str) -> None:
    client_id = name.format(group=scene.world.group)
    device, ack = await scene.attempt(client_id)
    assert ack.code == 2
    assert await device.expect_closed() == []


async def test_longest_client_id(scene: Scene) -> None:
    client_id = (scene.id() + "y" * 64)[:64]
    await scene.device(client_id)
    device, ack = await scene.attempt(client_id + "z")
    assert ack.code == 2
    assert await device.expect_closed() == []


@pytest.mark.parametrize("device_id", ["a", "a@@@b", "a b", "ä日本😀", "!\"#$%&'()*+,-./:;<=>?[]^_`{|}~"])
async def test_device_id_is_the_business_own(scene: Scene, device_id: str) -> None:
    await (await scene.device(f"{scene.world.group}@@@{device_id}")).disconnect()


async def test_unknown_group_is_0x05(scene: Scene) -> None:
    device, ack = await scene.attempt("GID_never-created@@@device")
    assert ack.code == 5
    assert await device.expect_closed() == []


async def test_group_of_another_account_is_0x05(scene: Scene) -> None:
    device, ack = await scene.attempt(scene.id(scene.world.group), "guest")
    assert ack.code == 5
    assert await device.expect_closed() == []


async def test_open_group_is_for_every_account(scene: Scene) -> None:
    for access_key in SECRETS:
        await scene.device(scene.id(scene.world.opened), access_key)


WRONG: dict[str, dict[str, Any]] = {
    "password": {"password": b"wrong"},
    "empty_password": {"password": b""},
    "no_password": {"password": None},
    "binary_password": {"password": b"\0\xff"},
    "user": {"username": "nobody"},
    "empty_user": {"username": ""},
    "case": {"username": "OWNER"},
    "other_secret": {"username": "guest"},
    "newer_form_with_the_older_signature": {"username": "Signature|owner|instance"},
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_wrong_credentials_are_0x04(scene: Scene, wrong: str) -> None:
    device, ack = await scene.attempt(scene.id(), **WRONG[wrong])
    assert (ack.code, ack.session_present) == (4, False)
    assert await device.expect_closed() == []


async def test_signature_of_another_group_is_0x04(scene: Scene) -> None:
    device, ack = await scene.attempt(scene.id(scene.world.watched), password=sign(SECRETS["owner"], scene.world.group))
    assert ack.code == 4
    assert await device.expect_closed() == []


@pytest.mark.parametrize("username", ["Signature|owner|instance", "Signature|owner|"])
async def test_newer_form_signs_the_whole_client_id(scene: Scene, username: str) -> None:
    client_id = scene.id()
    await scene.device(client_id, username=username, password=sign(SECRETS["owner"], client_id))


async def test_identifier_is_looked_at_first(scene: Scene) -> None:
    device, ack = await scene.attempt("plain", password=b"wrong")
    assert ack.code == 2
    await device.expect_closed()


async def test_refused_connect_takes_nothing_over(scene: Scene) -> None:
    client_id = scene.id()
    device = await scene.device(client_id)
    thief, ack = await scene.attempt(client_id, password=b"wrong")
    assert ack.code == 4
    await thief.expect_closed()
    await device.ping()


async def test_account_may_use_its_topics_only(scene: Scene) -> None:
    guest = await scene.device(scene.id(scene.world.guests), "guest")
    mine = f"{scene.parent}/guest{scene.sub()}"
    assert await guest.subscribe((mine, 1)) == [1]
    await guest.deliver(mine, b"x", 1)
    assert (await guest.receive()).payload == b"x"


@pytest.mark.parametrize("topic", ["{parent}", "{parent}/a", "{parent}/guestx", "{other}/guest/a", "{parent}/p2p/{id}"])
async def test_publishing_elsewhere_closes(scene: Scene, topic: str) -> None:
    guest = await scene.device(scene.id(scene.world.guests), "guest")
    await guest.publish(topic.format(parent=scene.parent, other=scene.world.other, id=guest.client_id), b"x", 1)
    assert await guest.expect_closed() == []


@pytest.mark.parametrize("name", ["{parent}/a", "{parent}/#", "{parent}/+/a", "{other}/guest/a"])
async def test_subscribing_elsewhere_closes(scene: Scene, name: str) -> None:
    guest = await scene.device(scene.id(scene.world.guests), "guest")
    await guest.send_raw(subscribe_bytes(1, [(name.format(parent=scene.parent, other=scene.world.other), 1)]))
    assert await guest.expect_closed() == []


@pytest.mark.parametrize("topic", ["neverbridged/a", "{parent}/" + "x" * 64])
async def test_will_that_may_not_be_published_is_0x05(scene: Scene, topic: str) -> None:
    device, ack = await scene.attempt(scene.id(), will=Will(topic.format(parent=scene.parent), b"x", 1))
    assert ack.code == 5
    assert await device.expect_closed() == []


async def test_will_without_permission_is_0x05(scene: Scene) -> None:
    device, ack = await scene.attempt(scene.id(scene.world.guests), "guest", will=Will(f"{scene.parent}/a", b"x", 1))
    assert ack.code == 5
    assert await device.expect_closed() == []


async def test_secrets_are_not_logged(scene: Scene) -> None:
    client_id = scene.id()
    await scene.device(client_id)
    await scene.attempt(client_id, password=b"a-wrong-password")
    log = scene.world.gateway.log()
    for secret in (*SECRETS.values(), sign(SECRETS["owner"], scene.world.group).decode(), "a-wrong-password"):
        assert secret not in log
