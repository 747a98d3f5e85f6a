"""gateway.api.http and gateway.api.metrics, over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
import trio.testing

from gateway import observe
from gateway.api.errors import ListenError
from gateway.api.http import serve_http
from gateway.ports import Health
from gateway.settings import Http, Settings
from tests.api.fakes import FixedViews


@asynccontextmanager
async def running(views: FixedViews) -> AsyncIterator[httpx.AsyncClient]:
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(serve_http, Settings(http=Http(listen="127.0.0.1:0")), views)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{bound[1]}", trust_env=False) as client:
            yield client
        nursery.cancel_scope.cancel()


async def test_healthz() -> None:
    async with running(FixedViews()) as client:
        answer = await client.get("/healthz")
    assert (answer.status_code, answer.text) == (200, "ok\n")


async def test_ready() -> None:
    async with running(FixedViews()) as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["ready"] is True
    assert answer.json()["servers"][0] == {"name": "store", "ok": True, "detail": "open", "cure": ""}


async def test_not_ready_names_the_server_and_the_cure() -> None:
    views = FixedViews()
    views.servers[1] = Health("rocketmq 127.0.0.1:9876", False, "connection refused", "start it")
    async with running(views) as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    assert answer.json()["servers"][1]["cure"] == "start it"


async def test_metrics() -> None:
    observe.note(observe.Fact.MESSAGE_DROPPED, reason="test_of_metrics")
    async with running(FixedViews()) as client:
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert "mqtt_gateway_connections 3.0" in lines
    assert "mqtt_gateway_backend_retries_total 2.0" in lines
    assert "mqtt_gateway_backend_lag_demo_0 7.0" in lines
    assert 'mqtt_gateway_reasons_total{fact="message_dropped",reason="test_of_metrics"} 1.0' in lines
    assert f"# HELP mqtt_gateway_message_dropped_total {observe.Fact.MESSAGE_DROPPED.meaning}" in lines
    for fact in observe.Fact:
        assert any(line.startswith(f"mqtt_gateway_{fact.event}_total ") for line in lines)
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)


async def test_other_paths_and_methods() -> None:
    async with running(FixedViews()) as client:
        assert (await client.get("/nothing")).status_code == 404
        assert (await client.post("/healthz")).status_code == 405


async def test_a_fault_is_logged_and_the_next_request_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    observe.configure("info", True)
    before = observe.counters()["internal_error"]
    views = FixedViews()
    views.broken = True
    async with running(views) as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 500
        assert "fault" not in answer.text
        views.broken = False
        assert (await client.get("/readyz")).status_code == 200
    assert observe.counters()["internal_error"] > before
    first = json.loads(capsys.readouterr().err.splitlines()[0])
    assert first["event"] == "internal_error"
    assert "RuntimeError: a fault of ours" in first["exception"]


async def test_off() -> None:
    async with trio.open_nursery() as nursery:
        assert await nursery.start(serve_http, Settings(http=Http(listen="")), FixedViews()) is None


async def test_an_address_in_use_is_named() -> None:
    with trio.socket.socket() as other:
        await other.bind(("127.0.0.1", 0))
        other.listen()
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ListenError, match=f"http.listen: can not listen on {listen}.*choose another"):
            await serve_http(Settings(http=Http(listen=listen)), FixedViews())


async def test_cancelling_ends_it_with_a_request_open() -> None:
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(serve_http, Settings(http=Http(listen="127.0.0.1:0")), FixedViews())
            async with await trio.open_tcp_stream(*bound) as stream:
                await stream.send_all(b"GET /healthz HTTP/1.1\r\n")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
