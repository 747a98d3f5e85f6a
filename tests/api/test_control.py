"""gateway.api.control: the socket's protocol, its mode, and what ends a tail."""

from __future__ import annotations

import base64
import json
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from gateway.api.control import serve_control, socket_path
from gateway.api.errors import ListenError
from gateway.settings import Gateway, Settings
from tests.api.fakes import MemoryBackend


class Client:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = bytearray()

    async def ask(self, **request: Any) -> None:
        await self.stream.send_all(json.dumps(request).encode() + b"\n")

    async def line(self) -> dict[str, Any]:
        with trio.fail_after(5):
            while b"\n" not in self._buffer:
                data = await self.stream.receive_some(65536)
                assert data, "the gateway closed the connection"
                self._buffer += data
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        found: dict[str, Any] = json.loads(line)
        return found

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stream.aclose()


class Running:
    def __init__(self, path: Path, backend: MemoryBackend, nursery: trio.Nursery) -> None:
        self.path = path
        self.backend = backend
        self.nursery = nursery

    async def connect(self) -> Client:
        return Client(await trio.open_unix_socket(str(self.path)))


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    settings = Settings(gateway=Gateway(data_dir=tmp_path))
    async with trio.open_nursery() as nursery:
        backend = MemoryBackend(nursery, "demo", "other")
        path = await nursery.start(serve_control, settings, backend)
        assert path == socket_path(settings)
        yield Running(path, backend, nursery)
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_mode(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        assert stat.S_IMODE(gateway.path.stat().st_mode) == 0o600


async def test_send(tmp_path: Path) -> None:
    body = bytes(range(256))
    async with running(tmp_path) as gateway, await gateway.connect() as client:
        await client.ask(do="send", topic="demo", body=base64.b64encode(body).decode(), tag="t", properties={"a": "b"}, key="k")
        answer = await client.line()
        (message,) = gateway.backend.logs["demo"]
    assert answer == {"ok": True, "id": message.id, "queue": "memory/0", "offset": 0}
    assert (message.body, message.tag, message.properties, message.key) == (body, "t", {"a": "b"}, "k")


async def test_tail(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway, await gateway.connect() as reader:
        await reader.ask(do="tail", topic="demo", tags=["yes"], start="begin")
        assert await reader.line() == {"ok": True}
        for tag in ("yes", "no", "yes"):
            async with await gateway.connect() as sender:
                await sender.ask(do="send", topic="demo", body="AAEC", tag=tag, properties={"p": "ü"})
                assert (await sender.line())["ok"]
        first, second = await reader.line(), await reader.line()
        assert (first["tag"], first["offset"], second["offset"]) == ("yes", 0, 2)
        assert (base64.b64decode(first["body"]), first["properties"], first["topic"]) == (b"\0\1\2", {"p": "ü"}, "demo")


async def test_a_tail_ends_with_its_client(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        async with await gateway.connect() as reader:
            await reader.ask(do="tail", topic="demo", start="now")
            await reader.line()
            assert len(gateway.backend.readers) == 1
        with trio.fail_after(5):
            while gateway.backend.readers:
                await trio.lowlevel.checkpoint()


async def test_a_client_that_stops_reading_holds_up_no_shutdown(tmp_path: Path) -> None:
    with trio.fail_after(5):
        async with running(tmp_path) as gateway, await gateway.connect() as reader:
            await reader.ask(do="tail", topic="demo", start="begin")
            await reader.line()
            for _ in range(40):
                async with await gateway.connect() as sender:
                    await sender.ask(do="send", topic="demo", body=base64.b64encode(bytes(30_000)).decode())
                    await sender.line()
            await trio.testing.wait_all_tasks_blocked()
            gateway.nursery.cancel_scope.cancel()


async def test_create(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        async with await gateway.connect() as client:
            await client.ask(do="create", topic="GID_new_MQTT")
            assert await client.line() == {"ok": True, "queues": 8}
        assert "GID_new_MQTT" in gateway.backend.logs
        for name in ("", "a/b", None, 5, "x" * 128):
            async with await gateway.connect() as client:
                await client.ask(do="create", topic=name)
                assert "no topic name" in (await client.line())["error"]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (b"not json\n", "no JSON"),
        (b"[1]\n", "no JSON object"),
        (b'{"do": "dance"}\n', "unknown request 'dance'"),
        (b"{}\n", "unknown request None"),
        (b'{"do": "send", "topic": "demo"}\n', "field"),
        (b'{"do": "send", "topic": "demo", "body": "%%"}\n', "field"),
        (b'{"do": "send", "topic": "demo", "body": "", "properties": 5}\n', "field"),
        (b'{"do": "send", "topic": "nowhere", "body": ""}\n', "app create-topic nowhere"),
        (b'{"do": "tail", "topic": "nowhere"}\n', "app create-topic nowhere"),
        (b'{"do": "tail", "topic": "demo", "start": "yesterday"}\n', "field"),
        (b'{"do": "tail"}\n', "field"),
    ],
)
async def test_mistakes_are_answered(tmp_path: Path, request_: bytes, text: str) -> None:
    async with running(tmp_path) as gateway:
        async with await gateway.connect() as client:
            await client.stream.send_all(request_)
            answer = await client.line()
            assert answer["ok"] is False
            assert text in answer["error"]
        async with await gateway.connect() as client:  # and the gateway goes on
            await client.ask(do="send", topic="demo", body="")
            assert (await client.line())["ok"]


async def test_a_client_that_says_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        async with await gateway.connect():
            pass
        async with await gateway.connect() as client:
            await client.stream.send_all(b'{"do": ')
        async with await gateway.connect() as client:
            await client.ask(do="send", topic="demo", body="")
            assert (await client.line())["ok"]


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    settings = Settings(gateway=Gateway(data_dir=tmp_path))
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(socket_path(settings)))
    async with running(tmp_path) as gateway:
        with pytest.raises(ListenError, match="another gateway runs in"):
            await serve_control(settings, gateway.backend)  # type: ignore[arg-type]
        async with await gateway.connect() as client:
            await client.ask(do="send", topic="demo", body="")
            assert (await client.line())["ok"]


async def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        with pytest.raises(ListenError, match="too long"):
            await serve_control(Settings(gateway=Gateway(data_dir=tmp_path / ("x" * 120))), MemoryBackend(nursery))  # type: ignore[arg-type]
