"""Several gateway nodes on one Redis and one RocketMQ: what tests of the cluster stand on."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import trio

from tests.kit.device import Device
from tests.kit.gateway import Gateway
from tests.kit.server_app import RocketMQApp
from tests.kit.wire import Packet

_names = count(1)


class Nodes:
    """Names that no other run uses, and `many` gateways that know them: `gateways[0]` is node `n0`.

    parent: the one bridged topic. group, watched: of Client IDs; only `watched` has an event topic. settings: merged into every node's.
    """

    def __init__(self, folder: Path, namesrv: str, redis: str, many: int = 2, settings: Mapping[str, Any] | None = None) -> None:
        run = uuid.uuid4().hex[:8]
        self.namesrv = namesrv
        self.instance, self.parent, self.group, self.watched = f"t{run}", f"parent{run}", f"GID_{run}", f"GID_w{run}"
        self.gateways: list[Gateway] = []
        for number in range(many):
            home = folder / f"n{number}"
            home.mkdir(parents=True)
            sections: dict[str, Any] = {
                "gateway": {"data_dir": str(home / "data"), "instance": self.instance, "node_id": f"n{number}"},
                "bridge": {"topics": [self.parent], "default_topic": "", "create_topics": True},
                "naming": {"mode": "any"},
                "backend": {"url": f"rocketmq://{namesrv}"},
                "store": {"url": redis},
            }
            for section, values in (settings or {}).items():
                sections[section] = {**sections.get(section, {}), **values}
            self.gateways.append(Gateway(home, sections))
        self._devices: list[Device] = []
        self._apps: list[RocketMQApp] = []

    async def start(self) -> None:
        """The event topic, then all nodes together."""
        app = self.app()
        await app.create_topic(f"{self.watched}_MQTT", 3)
        await app.create_topic(self.parent, 8)
        async with trio.open_nursery() as nursery:
            for gateway in self.gateways:
                nursery.start_soon(trio.to_thread.run_sync, gateway.start)

    def app(self) -> RocketMQApp:
        """A server app."""
        self._apps.append(RocketMQApp(self.namesrv))
        return self._apps[-1]

    def topic(self) -> str:
        """A topic that no other test uses, two levels long."""
        return f"{self.parent}/s{next(_names)}"

    def id(self, group: str | None = None) -> str:
        """A new Client ID."""
        return f"{group or self.group}@@@d{next(_names)}"

    async def attempt(self, node: int, client_id: str, auto_ack: bool = True, **fields: Any) -> tuple[Device, Packet]:
        """A CONNECT to that node, and its answer."""
        device = await Device.open(self.gateways[node].host, self.gateways[node].port, auto_ack)
        self._devices.append(device)
        return device, await device.connect(client_id, **fields)

    async def device(self, node: int, client_id: str | None = None, auto_ack: bool = True, **fields: Any) -> Device:
        """An accepted device."""
        device, ack = await self.attempt(node, client_id or self.id(), auto_ack, **fields)
        assert ack.code == 0, f"refused with {ack.code}"
        return device

    async def close(self) -> None:
        """Drop devices and server apps."""
        for device in self._devices:
            await device.drop()
        for app in self._apps:
            await app.close()
        self._devices.clear()
        self._apps.clear()

    def kill(self) -> None:
        """The nodes; none may have logged a traceback."""
        for gateway in self.gateways:
            gateway.kill()
        for gateway in self.gateways:
            gateway.check_log()
