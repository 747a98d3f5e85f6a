"""A server app on the configured backend: directly on RocketMQ, through the running gateway's control socket on the embedded one."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import trio

from gateway.api.control import as_json, create_topic, must_exist, send_message, socket_path
from gateway.api.reading import reading, start_of
from gateway.ports import Backend
from gateway.settings import Settings
from gateway.tools.running import ToolError

SEND_SECONDS = 20.0

Found = dict[str, Any]


class ServerApp(Protocol):
    """What a server app can do here. Messages are as `gateway.api.control.as_json` makes them."""

    async def send(self, topic: str, body: bytes, tag: str, properties: Mapping[str, str], key: str) -> Found:
        """Store a message: `id`, `queue`, `offset`. Raises ToolError or BackendError."""

    async def create(self, topic: str, queues: int) -> int:
        """Create a topic when it isn't there; how many queues it has. Raises ToolError or BackendError."""

    def read(self, topic: str, tags: frozenset[str] | None, start: str) -> AbstractAsyncContextManager[AsyncIterator[Found]]:
        """Messages from `start` (begin, now, ms) on, without an end. Raises ToolError or BackendError."""


@asynccontextmanager
async def server_app(settings: Settings, build_backend: Callable[[Settings], Backend]) -> AsyncIterator[ServerApp]:
    """The one that fits the settings."""
    if settings.embedded_backend() is not None:
        yield ThroughGateway(socket_path(settings))
        return
    backend = build_backend(settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.run)
        yield OnBackend(backend)
        nursery.cancel_scope.cancel()


class OnBackend:
    """On the backend's own servers."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def send(self, topic: str, body: bytes, tag: str, properties: Mapping[str, str], key: str) -> Found:
        await must_exist(self._backend, topic)
        with trio.move_on_after(SEND_SECONDS):
            receipt, id = await send_message(self._backend, topic, body, tag, properties, key)
            return {"id": id, "queue": f"{receipt.queue.broker}/{receipt.queue.id}", "offset": receipt.offset}
        raise ToolError(f"topic {topic}: not stored within {SEND_SECONDS:.0f} s; `mqtt-gateway check` tells which server is missing.")

    async def create(self, topic: str, queues: int) -> int:
        return await create_topic(self._backend, topic, queues)

    @asynccontextmanager
    async def read(self, topic: str, tags: frozenset[str] | None, start: str) -> AsyncIterator[AsyncIterator[Found]]:
        await must_exist(self._backend, topic)
        async with reading(self._backend, topic, tags, start_of(start)) as batches, aclosing(_flat(batches)) as messages:
            yield messages


async def _flat(batches: AsyncIterator[list[Any]]) -> AsyncGenerator[Found, None]:
    async for messages in batches:
        for message in messages:
            yield as_json(message)


class ThroughGateway:
    """Over the control socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def send(self, topic: str, body: bytes, tag: str, properties: Mapping[str, str], key: str) -> Found:
        request = {"do": "send", "topic": topic, "body": base64.b64encode(body).decode("ascii"), "tag": tag, "key": key}
        async with self._ask({**request, "properties": dict(properties)}) as lines:
            return await self._answer(lines)

    async def create(self, topic: str, queues: int) -> int:
        async with self._ask({"do": "create", "topic": topic}) as lines:
            return int((await self._answer(lines))["queues"])

    @asynccontextmanager
    async def read(self, topic: str, tags: frozenset[str] | None, start: str) -> AsyncIterator[AsyncIterator[Found]]:
        async with self._ask({"do": "tail", "topic": topic, "tags": None if tags is None else sorted(tags), "start": start}) as lines:
            await self._answer(lines)
            yield lines

    @asynccontextmanager
    async def _ask(self, request: Mapping[str, object]) -> AsyncIterator[AsyncIterator[Found]]:
        try:
            stream = await trio.open_unix_socket(str(self._path))
        except OSError:
            raise ToolError(
                f"no gateway runs with the data directory {self._path.parent}. Start it with `mqtt-gateway serve`, "
                "or give the --config that it was started with."
            ) from None
        async with stream:
            await stream.send_all(json.dumps(request).encode() + b"\n")
            async with aclosing(_lines(stream)) as lines:
                yield lines

    async def _answer(self, lines: AsyncIterator[Found]) -> Found:
        async for line in lines:
            if not line.pop("ok"):
                raise ToolError(str(line["error"]))
            return line
        raise ToolError("the gateway closed the connection; its log has the reason.")


async def _lines(stream: trio.SocketStream) -> AsyncGenerator[Found, None]:
    buffer = bytearray()
    while True:
        try:
            data = await stream.receive_some(1 << 16)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            return
        buffer += data
        if b"\n" not in data:
            continue
        *lines, rest = buffer.split(b"\n")
        buffer = bytearray(rest)
        for line in lines:
            yield json.loads(line)
