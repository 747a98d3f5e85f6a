"""A strict gateway between devices that sign and a server app, on either backend: what whole-system tests stand on."""

from __future__ import annotations

import base64
import hashlib
import hmac
import uuid
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import trio

from backend_adapters.local import LocalBackend
from tests.kit.broker import Broker
from tests.kit.device import Device
from tests.kit.gateway import Gateway
from tests.kit.server_app import EmbeddedApp, RocketMQApp, ServerApp
from tests.kit.wire import Packet

SECRETS = {"owner": "owner-secret", "guest": "guest-secret"}
_names = count(1)


def sign(secret: str, text: str) -> bytes:
    """Base64(HMAC-SHA1(secret, text)), contract section 3."""
    return base64.b64encode(hmac.new(secret.encode(), text.encode(), hashlib.sha1).digest())


class World:
    """Names that no other run uses, and a gateway that knows them.

    instance: the gateway's. parent, other: bridged topics. group, watched: groups of account `owner`; only `watched` has an event topic.
    guests: the group of account `guest`, which may publish and subscribe below `<parent>/guest/` alone. opened: a group for every account.
    """

    def __init__(self, folder: Path, namesrv: str | None, settings: Mapping[str, Any] | None = None) -> None:
        run = uuid.uuid4().hex[:8]
        self.namesrv, self.instance = namesrv, f"t{run}"
        self.instance, self.parent, self.other = f"t{run}", f"parent{run}", f"other{run}"
        self.group, self.watched, self.guests, self.opened = f"GID_{run}", f"GID_w{run}", f"GID_g{run}", f"GID_o{run}"
        sections: dict[str, Any] = {
            "gateway": {"data_dir": str(folder / "data"), "instance": self.instance},
            "bridge": {"topics": [self.parent, self.other], "default_topic": "", "create_topics": True},
            "naming": {"mode": "strict", "groups": [self.opened]},
            "auth": {"anonymous": False},
            "accounts": [
                {"access_key": "owner", "secret_key": SECRETS["owner"], "groups": [self.group, self.watched]},
                {
                    "access_key": "guest",
                    "secret_key": SECRETS["guest"],
                    "groups": [self.guests],
                    "publish": [f"{self.parent}/guest/#"],
                    "subscribe": [f"{self.parent}/guest/#"],
                },
            ],
        }
        if namesrv:
            sections["backend"] = {"url": f"rocketmq://{namesrv}"}
        for section, values in (settings or {}).items():
            sections[section] = {**sections.get(section, {}), **values}
        self.gateway = Gateway(folder, sections)

    async def prepare(self) -> None:
        """What an operator does before the start: the event topic of the watched group, one queue fewer than usual to make it special."""
        topic = f"{self.watched}_MQTT"
        if self.namesrv:
            app = RocketMQApp(self.namesrv)
            await app.create_topic(topic, 3)
            await app.close()
            return
        backend = LocalBackend(self.gateway.folder / "data" / "backend.db")
        (self.gateway.folder / "data").mkdir(mode=0o700, exist_ok=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(backend.run)
            await backend.create_topic(topic, 3)
            nursery.cancel_scope.cancel()

    def app(self) -> ServerApp:
        """A server app on the gateway's backend."""
        return RocketMQApp(self.namesrv) if self.namesrv else EmbeddedApp(self.gateway.folder / "data")


class Scene:
    """One test's devices and server app in a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.parent = world.parent
        self.broker = Broker(world.gateway.host, world.gateway.port, "gateway")
        self._apps: list[ServerApp] = []
        self.app = self.new_app()

    def new_app(self) -> ServerApp:
        """Another server app, e.g. after the gateway was started again."""
        self._apps.append(self.world.app())
        return self._apps[-1]

    def sub(self) -> str:
        """A subtopic that no other test uses, with its leading slash."""
        return f"/s{next(_names)}"

    def id(self, group: str | None = None) -> str:
        """A new Client ID."""
        return f"{group or self.world.group}@@@d{next(_names)}"

    async def attempt(self, client_id: str, access_key: str = "owner", auto_ack: bool = True, **fields: Any) -> tuple[Device, Packet]:
        """A signed CONNECT and its answer."""
        password = sign(SECRETS[access_key], client_id.partition("@@@")[0])
        fields = {"username": access_key, "password": password, **fields}
        return await self.broker.attempt(client_id, auto_ack, **fields)

    async def device(self, client_id: str | None = None, access_key: str = "owner", auto_ack: bool = True, **fields: Any) -> Device:
        """An accepted device."""
        device, ack = await self.attempt(client_id or self.id(), access_key, auto_ack, **fields)
        assert ack.code == 0, f"refused with {ack.code}"
        return device

    async def subscriber(self, *filters: tuple[str, int], **fields: Any) -> Device:
        """An accepted device with granted subscriptions."""
        device = await self.device(**fields)
        assert await device.subscribe(*filters) == [qos for _, qos in filters]
        return device

    async def close(self) -> None:
        """Drop devices and server app."""
        await self.broker.close()
        for app in self._apps:
            await app.close()


async def live(device: Device) -> Packet:
    """The next PUBLISH that is no retained message of another test, for those who subscribe a whole parent."""
    while (packet := await device.receive()).retain:
        pass
    return packet


def payloads(packets: Iterable[Packet]) -> list[bytes]:
    """What they carry."""
    return [packet.payload for packet in packets]
