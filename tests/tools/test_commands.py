"""gateway.tools.commands against a running embedded gateway: devices, server apps, lifecycle events."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway import app
from gateway.settings import Settings, load
from gateway.tools import commands
from gateway.tools.check import check
from gateway.tools.commands import Note, Who
from gateway.tools.running import ToolError
from tests.kit.server import HOST, free_port

NOBODY = Who("", "", "", "")


def who(client_id: str) -> Who:
    return Who("", "", "", client_id)


def note(**fields: Any) -> Note:
    return Note(**{"subtopic": "", "p2p": "", "qos": 1, "retain": False, "keep": False, "show_as": "", "tag": None, **fields})


class Lines:
    """What the commands printed, as JSON."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._found: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        self._found += [json.loads(line) for line in self._capsys.readouterr().out.splitlines()]
        return self._found


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    return Lines(capsys)


@asynccontextmanager
async def gateway(tmp_path: Path, **more: Any) -> AsyncIterator[Settings]:
    accounts = [{"access_key": "ak", "secret_key": "sk", "groups": ["GID_demo"], "publish": ["demo/#"], "subscribe": ["demo/#"]}]
    places = {"gateway.data_dir": str(tmp_path), "mqtt.tcp": f"{HOST}:{free_port()}", "http.listen": f"{HOST}:{free_port()}"}
    settings = load(None, {"accounts": accounts, **places, **more}, {})
    ending = app.Ending.never()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def serve(*, task_status: trio.TaskStatus[None]) -> None:
                await app.serve(settings, ending=ending, task_status=task_status)

            await nursery.start(serve)
            try:
                yield settings
            finally:
                ending.stop.set()


@asynccontextmanager
async def beside(settings: Settings, reader: Callable[[], Awaitable[int]], ready: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
    """Run a reading command beside the body, and wait for its end."""
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            assert await reader() == 0

        nursery.start_soon(read)
        while not await ready():
            await trio.sleep(0.02)
        yield


async def subscribed(settings: Settings, capsys: pytest.CaptureFixture[str]) -> bool:
    return "subscribed as" in capsys.readouterr().err


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_device_to_device(tmp_path: Path, capsys: pytest.CaptureFixture[str], qos: int) -> None:
    body = bytes(range(256))
    async with gateway(tmp_path) as settings:
        reader = lambda: commands.device_sub(settings, NOBODY, ["demo/#"], 2, False, 1, True)  # noqa: E731
        async with beside(settings, reader, lambda: subscribed(settings, capsys)):
            assert await commands.device_pub(settings, NOBODY, "demo/a", body, qos, False, True) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        published, received = sorted(found, key=lambda one: "body" in one)  # the message may be faster than its acknowledgement
    assert (published["qos"], published["acknowledged"], published["bytes"]) == (qos, qos > 0, 256)
    assert (received["topic"], received["qos"], base64.b64decode(received["body"])) == ("demo/a", qos, body)


async def test_server_app_to_device_and_p2p(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with gateway(tmp_path) as settings:
        reader = lambda: commands.device_sub(settings, who("GID_demo@@@me"), ["demo/x"], 1, False, 3, False)  # noqa: E731
        async with beside(settings, reader, lambda: subscribed(settings, capsys)):
            for index, one in enumerate((note(subtopic="/x"), note(p2p="GID_demo@@@me"), note(p2p="GID_demo@@@me", show_as="demo/other"))):
                assert await commands.app_send(settings, "demo", f"m{index}".encode(), one, False) == 0
        out = capsys.readouterr().out
    assert {"demo/x m0", "demo/p2p/GID_demo@@@me m1", "demo/other m2"} <= set(out.splitlines())
    assert out.count("stored ") == 3


async def test_device_to_server_app(tmp_path: Path, lines: Lines) -> None:
    async with gateway(tmp_path) as settings:
        for index in range(3):
            await commands.device_pub(settings, who("GID_demo@@@me"), "demo/a/b", b"%d\0" % index, 1, False, True)
        await commands.app_send(settings, "demo", b"", note(tag="other"), True)
        assert await commands.app_tail(settings, "demo", ["MQTT2MQ"], "begin", 3, True) == 0
        found = [one for one in lines.read() if "properties" in one]
        assert sorted(one["text"] for one in found) == ["0\0", "1\0", "2\0"]
        assert found[0]["properties"]["mqttSecondTopic"] == "/a/b"
        assert found[0]["properties"]["clientId"] == "GID_demo@@@me"
        assert {one["tag"] for one in found} == {"MQTT2MQ"}
        assert await commands.app_tail(settings, "demo", [], "begin", 4, False) == 0


async def test_lifecycle_events(tmp_path: Path, lines: Lines) -> None:
    async with gateway(tmp_path) as settings:
        with pytest.raises(Exception, match="create-topic GID_demo_MQTT"):
            await commands.tail(settings, "GID_demo", "", [], "", "now", 1, True)
        assert await commands.app_create_topic(settings, "GID_demo_MQTT", True) == 0
        await commands.device_pub(settings, who("GID_demo@@@me"), "demo/a", b"", 1, False, True)
        await commands.device_pub(settings, who("GID_demo@@@you"), "demo/a", b"", 1, False, True)
        assert await commands.tail(settings, "GID_demo", "me", [], "", "begin", 3, True) == 0
        mine = [one for one in lines.read() if "eventType" in one]
        assert [one["eventType"] for one in mine] == ["connect", "disconnect", "tcpclean"]
        assert {one["clientId"] for one in mine} == {"GID_demo@@@me"}
        assert len({one["channelId"] for one in mine}) == 1
        assert [one["time"] for one in mine] == sorted({one["time"] for one in mine})
        assert await commands.tail(settings, "GID_demo", "you", ["tcpclean"], "", "begin", 1, False) == 0


@pytest.mark.parametrize(
    ("as_whom", "topic", "text"),
    [
        (NOBODY, "nowhere/x", "closed the connection"),
        (who("GID_demo@@@" + "x" * 60), "demo/x", "code 2"),
        (who("GID_other@@@x"), "demo/x", "code 5"),
    ],
)
async def test_what_the_gateway_refuses(tmp_path: Path, as_whom: Who, topic: str, text: str) -> None:
    async with gateway(tmp_path) as settings:
        with pytest.RaisesGroup(pytest.RaisesExc(ToolError, match=text)):
            await commands.device_pub(settings, as_whom, topic, b"", 1, False, True)


async def test_wrong_secret_and_refused_filter(tmp_path: Path) -> None:
    async with gateway(tmp_path) as settings:
        accounts = [{"access_key": "ak", "secret_key": "wrong", "groups": ["GID_demo"]}]
        wrong = load(None, {"accounts": accounts, "gateway.data_dir": str(tmp_path), "mqtt.tcp": settings.mqtt.tcp}, {})
        with pytest.RaisesGroup(pytest.RaisesExc(ToolError, match="code 4")):
            await commands.device_pub(wrong, NOBODY, "demo/x", b"", 1, False, True)
        with pytest.RaisesGroup(pytest.RaisesExc(ToolError, match=r"refused: demo/x{64}")):
            await commands.device_sub(settings, NOBODY, ["demo/" + "x" * 64], 1, False, 1, True)


async def test_check_asks_the_running_gateway(tmp_path: Path) -> None:
    async with gateway(tmp_path) as settings:
        found = [one async for one in check(settings, app.build_store, app.build_backend, app.report_store)]
    assert found[0].name == "gateway"
    assert len(found) >= 3
    assert all(one.ok for one in found)
    found = [one async for one in check(settings, app.build_store, app.build_backend, app.report_store)]
    assert {"mqtt.tcp", "http.listen", "topic demo", "event topic GID_demo_MQTT"} <= {one.name for one in found}
    assert all(one.ok for one in found), found


async def test_a_topic_that_is_missing_and_not_to_be_created(tmp_path: Path) -> None:
    async with gateway(tmp_path) as settings:
        pass
    strict = settings.model_copy(update={"bridge": settings.bridge.model_copy(update={"create_topics": False, "topics": ["demo", "gone"]})})
    found = {one.name: one async for one in check(strict, app.build_store, app.build_backend, app.report_store)}
    assert found["topic demo"].ok
    assert not found["topic gone"].ok
    assert "create_topics" in found["topic gone"].cure


async def test_a_store_that_another_process_has(tmp_path: Path) -> None:
    async with gateway(tmp_path) as settings:
        other = load(
            None, {"gateway.data_dir": str(tmp_path / "other"), "store.url": f"sqlite:{tmp_path / 'store.db'}", "http.listen": ""}, {}
        )
        found = {one.name: one async for one in check(other, app.build_store, app.build_backend, app.report_store)}
        assert settings.embedded_store().path == other.embedded_store().path
    assert not found["store"].ok
    assert found["store"].cure
