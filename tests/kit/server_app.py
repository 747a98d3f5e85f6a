"""Server apps for whole-system tests: one face over RocketMQ and the embedded backend, sharing no code with `backend_adapters`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import trio

from tests.kit.remoting import Remoting, StoredMessage

PATIENCE = 15.0  # seconds


class AppMessage(NamedTuple):
    """A message as a server app gets it. place: (queue, offset). properties: without the system's own ones."""

    tag: str
    body: bytes
    properties: dict[str, str]
    place: tuple[str, int]
    id: str


class Reader(Protocol):
    """Reads one topic, all its tags, from the moment of its making (or from the start)."""

    async def next(self) -> AppMessage: ...


class ServerApp(Protocol):
    async def send(self, topic: str, body: bytes, tag: str = "MQ2MQTT", properties: Mapping[str, str] | None = None) -> None: ...
    async def reader(self, topic: str, from_start: bool = False) -> Reader: ...
    async def close(self) -> None: ...


async def next_where(reader: Reader, wanted: Callable[[AppMessage], bool]) -> AppMessage:
    """The next message that is wanted; others are passed over."""
    with trio.fail_after(PATIENCE):
        while not wanted(message := await reader.next()):
            pass
    return message


async def collect(reader: Reader, count: int, wanted: Callable[[AppMessage], bool] = lambda message: True) -> list[AppMessage]:
    """The next `count` messages that are wanted."""
    return [await next_where(reader, wanted) for _ in range(count)]


# ---------------------------------------------------------------- RocketMQ

SYSTEM_PROPERTIES = frozenset(("UNIQ_KEY", "TAGS", "WAIT", "CLUSTER", "MSG_REGION", "TRACE_ON", "KEYS", "INSTANCE_ID", "__CRC32#"))


class RocketMQApp:
    """A server app on a real RocketMQ, through the remoting protocol."""

    def __init__(self, namesrv: str) -> None:
        self._remoting = Remoting(namesrv)

    async def create_topic(self, topic: str, queues: int = 4) -> None:
        """As an operator does."""
        await self._remoting.create_topic(topic, queues)

    async def send(
        self, topic: str, body: bytes, tag: str = "MQ2MQTT", properties: Mapping[str, str] | None = None, compress: bool = False
    ) -> None:
        await self._remoting.send(topic, body, {**(properties or {}), **({"TAGS": tag} if tag else {})}, compress)

    async def reader(self, topic: str, from_start: bool = False) -> Reader:
        return _RocketMQReader(self._remoting, topic, await self._remoting.positions(topic, from_start))

    async def close(self) -> None:
        await self._remoting.close()


class _RocketMQReader:
    def __init__(self, remoting: Remoting, topic: str, positions: dict[tuple[str, int], int]) -> None:
        self._remoting = remoting
        self._topic = topic
        self._positions = positions
        self._ready: list[AppMessage] = []

    async def next(self) -> AppMessage:
        while not self._ready:
            for queue, position in self._positions.items():
                messages, self._positions[queue] = await self._remoting.pull(self._topic, queue, position)
                self._ready += [_as_app(message, queue) for message in messages]
            if not self._ready:
                await trio.sleep(0.02)
        return self._ready.pop(0)


def _as_app(message: StoredMessage, queue: tuple[str, int]) -> AppMessage:
    properties = {name: value for name, value in message.properties.items() if name not in SYSTEM_PROPERTIES}
    place = (f"{queue[0]}/{queue[1]}", message.offset)
    return AppMessage(message.properties.get("TAGS", ""), message.body, properties, place, message.properties.get("UNIQ_KEY", ""))


# ---------------------------------------------------------------- the embedded backend


class EmbeddedApp:
    """A server app on the embedded backend of a running gateway, through its control socket."""

    def __init__(self, data_dir: Path) -> None:
        self._path = str(data_dir / "control.sock")
        self._readers: list[_EmbeddedReader] = []

    async def send(self, topic: str, body: bytes, tag: str = "MQ2MQTT", properties: Mapping[str, str] | None = None) -> None:
        request = {"do": "send", "topic": topic, "body": base64.b64encode(body).decode(), "tag": tag, "properties": dict(properties or {})}
        reader = await self._ask(request)
        await reader.aclose()

    async def reader(self, topic: str, from_start: bool = False) -> Reader:
        reader = await self._ask({"do": "tail", "topic": topic, "tags": None, "start": "begin" if from_start else "now"})
        self._readers.append(reader)
        return reader

    async def _ask(self, request: Mapping[str, object]) -> _EmbeddedReader:
        reader = _EmbeddedReader(await trio.open_unix_socket(self._path))
        await reader.stream.send_all(json.dumps(request).encode() + b"\n")
        answer = await reader.line()
        assert answer["ok"], answer
        return reader

    async def close(self) -> None:
        for reader in self._readers:
            await reader.aclose()


class _EmbeddedReader:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._bytes = bytearray()

    async def line(self) -> dict[str, object]:
        while b"\n" not in self._bytes:
            data = await self.stream.receive_some(65536)
            assert data, "the gateway closed its control socket"
            self._bytes += data
        line, _, self._bytes = self._bytes.partition(b"\n")
        value: dict[str, object] = json.loads(line)
        return value

    async def next(self) -> AppMessage:
        found = await self.line()
        properties = found["properties"]
        assert isinstance(properties, dict)
        place = (str(found["queue"]), int(str(found["offset"])))
        kept = {name: value for name, value in properties.items() if name not in SYSTEM_PROPERTIES}
        return AppMessage(str(found["tag"]), base64.b64decode(str(found["body"])), kept, place, str(found["id"]))

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)
