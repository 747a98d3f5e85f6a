"""Every server and address that the settings name: does it answer, and what to do when it does not."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import trio

from gateway.api.control import socket_path
from gateway.ports import Backend, BackendError, Health, Store, StoreError
from gateway.rules.presence import event_topic
from gateway.settings import Settings, address
from gateway.tools.identity import reachable

SECONDS = 15.0  # for one server
CONNECT_SECONDS = 6.0  # twice what `Backend.health` may take


async def check(
    settings: Settings, build_store: Callable[[Settings], Store], build_backend: Callable[[Settings], Backend]
) -> AsyncGenerator[Health, None]:
    """Each finding when it is there. While a gateway runs on the same data directory, its own findings, since it holds the files."""
    if await _runs_here(settings):
        for health in await _of_running(settings):
            yield health
        return
    for name, text in (("mqtt.tcp", settings.mqtt.tcp), ("http.listen", settings.http.listen)):
        if text:
            yield _can_listen(name, text)
    for health in await _check_store(settings, build_store):
        yield health
    for health in await _check_backend(settings, build_backend):
        yield health


async def _runs_here(settings: Settings) -> bool:
    try:
        stream = await trio.open_unix_socket(str(socket_path(settings)))
    except OSError:
        return False
    await stream.aclose()
    return True


async def _of_running(settings: Settings) -> list[Health]:
    runs = Health("gateway", True, f"runs, with data in {settings.gateway.data_dir}")
    if not settings.http.listen:
        return [runs, Health("http.listen", True, "off: the running gateway can not be asked for more")]
    host, port = reachable(settings.http.listen)
    url = f"http://[{host}]:{port}/readyz" if ":" in host else f"http://{host}:{port}/readyz"
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=SECONDS) as client:
            servers: list[dict[str, Any]] = (await client.get(url)).json()["servers"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return [runs, Health("http.listen", False, f"{url} does not answer ({error})", "see the gateway's log")]
    return [runs, *(Health(server["name"], server["ok"], server["detail"], server["cure"]) for server in servers)]


def _can_listen(name: str, text: str) -> Health:
    host, port = address(text)
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
    except OSError as error:
        return Health(name, False, f"{text}: {error.strerror}", f"stop what uses it, or choose another address for {name}")
    return Health(name, True, f"{text} is free")


async def _check_store(settings: Settings, build_store: Callable[[Settings], Store]) -> list[Health]:
    place = settings.embedded_store()
    if place is None:
        return [Health("store", False, f"{settings.store.url} is of a kind that this build does not have", "see store.url")]
    path = place.path
    if not path.exists():
        return [Health("store", True, f"{path} will be made at the first start")]
    found: list[Health] = []
    try:
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                store = build_store(settings)
                await nursery.start(store.run)
                found = await store.health()
                nursery.cancel_scope.cancel()
    except* trio.TooSlowError:
        found = [Health("store", False, f"{path} does not open within {SECONDS:.0f} s", "check the disk")]
    except* (StoreError, OSError) as group:
        found = [Health("store", False, str(_first(group)), "see store.url and gateway.data_dir")]
    return found


async def _check_backend(settings: Settings, build_backend: Callable[[Settings], Backend]) -> list[Health]:
    embedded = settings.embedded_backend()
    if embedded is not None and not embedded.path.exists():
        return [Health("backend", True, f"{embedded.path} will be made at the first start")]
    found: list[Health] = []
    try:
        async with trio.open_nursery() as nursery:
            backend = build_backend(settings)
            await nursery.start(backend.run)
            found += await _settled_health(backend)
            if all(health.ok for health in found):
                found += await _check_topics(settings, backend)
            nursery.cancel_scope.cancel()
    except* (BackendError, OSError) as group:
        found.append(Health("backend", False, str(_first(group)), "see backend.url"))
    return found or [Health("backend", False, f"no answer within {SECONDS:.0f} s", "see backend.url")]


async def _settled_health(backend: Backend) -> list[Health]:
    """A backend connects in the background: ask until all is well, or it had its time."""
    found: list[Health] = []
    with trio.move_on_after(CONNECT_SECONDS):
        while not found or not all(health.ok for health in found):
            found = await backend.health()
            await trio.sleep(0.1)
    return found


async def _check_topics(settings: Settings, backend: Backend) -> list[Health]:
    bridge, found = settings.bridge, []
    for name in dict.fromkeys([*bridge.topics, *([bridge.default_topic] if bridge.default_topic else [])]):
        if await _exists(backend, name):
            found.append(Health(f"topic {name}", True, "exists"))
        elif bridge.create_topics:
            found.append(Health(f"topic {name}", True, "will be created at the start"))
        else:
            found.append(Health(f"topic {name}", False, "does not exist", "create it in RocketMQ, or set bridge.create_topics = true"))
    groups = [*settings.naming.groups, *(group for account in settings.accounts for group in account.groups)]
    for name in map(event_topic, groups):
        if await _exists(backend, name):
            found.append(Health(f"event topic {name}", True, "exists"))
        else:
            found.append(Health(f"event topic {name}", True, "does not exist: no lifecycle events; create it to have them"))
    return found


async def _exists(backend: Backend, topic: str) -> bool:
    with trio.fail_after(SECONDS):
        return await backend.topic(topic) is not None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
