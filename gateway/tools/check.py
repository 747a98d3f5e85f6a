"""Every server and address that the settings name: does it answer, and what to do when it does not."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import httpx
import trio

from gateway.api.control import socket_path
from gateway.ports import Backend, BackendError, Health, Store, StoreError
from gateway.rules.presence import event_topic
from gateway.settings import Settings, address, doubts
from gateway.tools.brokers import judge
from gateway.tools.identity import reachable

SECONDS = 15.0  # for one server
CONNECT_SECONDS = 6.0  # twice what `Backend.health` may take


async def check(
    settings: Settings,
    build_store: Callable[[Settings], Store],
    build_backend: Callable[[Settings], Backend],
    report_store: Callable[[Settings], Awaitable[list[Health]]],
) -> AsyncGenerator[Health, None]:
    """Each finding when it is there. While a gateway runs on the same data directory, its own findings, since it holds the files."""
    if await _runs_here(settings):
        for health in await _of_running(settings):
            yield health
        return
    yield _can_listen("mqtt.tcp", settings.mqtt.tcp)
    for text in _http_places(settings):
        yield _can_listen("http.listen", text)
    for doubt in doubts(settings):
        yield Health(doubt.key, True, f"ATTENTION: {doubt.problem}", doubt.cure)
    shared = settings.store.shared
    for health in await (_check_shared_store(settings, report_store) if shared else _check_store(settings, build_store)):
        yield health
    for health in await _check_backend(settings, build_backend):
        yield health


def _http_places(settings: Settings) -> list[str]:
    """Where the workers' HTTP sides listen."""
    host, _, port = settings.http.listen.rpartition(":")
    return [f"{host}:{int(port) + index if port != '0' else 0}" for index in range(settings.gateway.workers)] if port else []


async def _runs_here(settings: Settings) -> bool:
    alone = socket_path(settings)
    for path in (alone, alone.parent / "worker-1" / alone.name):
        try:
            stream = await trio.open_unix_socket(str(path))
        except OSError:
            continue
        await stream.aclose()
        return True
    return False


async def _of_running(settings: Settings) -> list[Health]:
    runs = Health("gateway", True, f"runs, with data in {settings.gateway.data_dir}")
    if not settings.http.listen:
        return [runs, Health("http.listen", True, "off: the running gateway can not be asked for more")]
    places = _http_places(settings)
    found = [runs]
    for number, place in enumerate(places, 1):
        found += await _of_node(f"worker {number}: " if len(places) > 1 else "", place)
    return found


async def _of_node(prefix: str, listen: str) -> list[Health]:
    host, port = reachable(listen)
    url = f"http://[{host}]:{port}/readyz" if ":" in host else f"http://{host}:{port}/readyz"
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=SECONDS) as client:
            servers: list[dict[str, Any]] = (await client.get(url)).json()["servers"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return [Health(f"{prefix}http.listen", False, f"{url} does not answer ({error})", "see the gateway's log")]
    return [Health(prefix + server["name"], server["ok"], server["detail"], server["cure"]) for server in servers]


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


async def _check_shared_store(settings: Settings, report_store: Callable[[Settings], Awaitable[list[Health]]]) -> list[Health]:
    with trio.move_on_after(SECONDS):
        return await report_store(settings)
    return [Health("store", False, f"no answer within {SECONDS:.0f} s", "see store.url")]


async def _check_store(settings: Settings, build_store: Callable[[Settings], Store]) -> list[Health]:
    place = settings.embedded_store()
    assert place is not None
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
                found += await _check_brokers(backend)
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


async def _check_brokers(backend: Backend) -> list[Health]:
    """What a RocketMQ's brokers keep; nothing for a backend without them."""
    ask: Callable[[], Awaitable[dict[str, dict[str, str]]]] | None = getattr(backend, "settings_of_brokers", None)
    if ask is None:
        return []
    with trio.move_on_after(SECONDS):
        return [judge(f"broker {name} keeps", told) for name, told in (await ask()).items()]
    return [Health("brokers", False, f"their settings do not come within {SECONDS:.0f} s", "see backend.url")]


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
