"""A server as a conformance test sees it: devices that are closed at the end, names that no other test uses."""

from __future__ import annotations

from itertools import count
from typing import Any

import trio

from tests.kit.device import Device
from tests.kit.wire import Packet

_names = count(1)


class Broker:
    """`name` is the target's: "gateway" or "mosquitto"."""

    def __init__(self, host: str, port: int, name: str) -> None:
        self.host = host
        self.port = port
        self.name = name
        self._devices: list[Device] = []

    def id(self) -> str:
        """A new Client ID."""
        return f"dev{next(_names)}"

    def topic(self) -> str:
        """A new topic of one level."""
        return f"t{next(_names)}"

    async def open(self, auto_ack: bool = True) -> Device:
        """A connection without a CONNECT."""
        device = await Device.open(self.host, self.port, auto_ack)
        self._devices.append(device)
        return device

    async def attempt(self, client_id: str | None = None, auto_ack: bool = True, **fields: Any) -> tuple[Device, Packet]:
        """A connection and the answer to its CONNECT."""
        device = await self.open(auto_ack)
        return device, await device.connect(self.id() if client_id is None else client_id, **fields)

    async def connect(self, client_id: str | None = None, auto_ack: bool = True, **fields: Any) -> Device:
        """An accepted connection; clean unless told otherwise."""
        device, ack = await self.attempt(client_id, auto_ack, **fields)
        assert ack.code == 0, f"refused with {ack.code}"
        return device

    async def resume(self, client_id: str, auto_ack: bool = True, **fields: Any) -> Device:
        """An accepted connection with CleanSession 0 that finds its session [MQTT-3.2.2-2]."""
        device, ack = await self.attempt(client_id, auto_ack, clean=False, **fields)
        assert ack.code == 0
        assert ack.session_present
        return device

    async def subscriber(self, *filters: tuple[str, int], client_id: str | None = None, auto_ack: bool = True, **fields: Any) -> Device:
        """A connection with subscriptions that were granted as asked."""
        device = await self.connect(client_id, auto_ack, **fields)
        assert await device.subscribe(*filters) == [qos for _, qos in filters]
        return device

    async def close(self) -> None:
        """Drop every connection of the test."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
            for device in self._devices:
                await device.drop()
