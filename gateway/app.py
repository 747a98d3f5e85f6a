"""The composition root: settings become objects, objects run in nested nurseries, and the nursery tree is the shutdown order
(design section 3.7)."""

from __future__ import annotations

import contextlib
import gc
import resource
import signal
from collections.abc import Iterator
from typing import NamedTuple

import trio

from backend_adapters.local import LocalBackend
from backend_adapters.offsets import Unresolved
from backend_adapters.rocketmq_remoting.client import RocketMQ
from gateway import api, observe
from gateway.ports import Backend, BackendError, Health, Store, StoreError
from gateway.runtime.node import Node
from gateway.runtime.views import Views
from gateway.settings import Settings
from gateway.store.sqlite import SqliteStore
from gateway.transports import tcp

DRAIN_SECONDS = 5.0
ACCEPTS_AMONG_WORKERS = 8  # in one go: a burst is for all of them


class StartError(Exception):
    """The gateway can't start or go on. The text names the thing and the cure."""


def build_store(settings: Settings) -> Store:
    """The store that the settings name, not opened yet."""
    place, limits = settings.embedded_store(), settings.limits
    bounds = {
        "offline_count": limits.offline_count,
        "offline_retention_s": limits.offline_seconds,
        "session_expiry_s": limits.session_seconds,
        "retained_count": limits.retained_count,
        "outbox_count": limits.outbox_count,
    }
    if place is None:
        from gateway.store.redis.store import RedisStore  # an embedded gateway has no use for its library

        return RedisStore(settings.store.url_with_password(), instance=settings.gateway.instance, **bounds)
    return SqliteStore(place.path, synchronous=place.synchronous, **bounds)


async def report_store(settings: Settings) -> list[Health]:
    """What an operator should know of a shared store; nothing is written to it. The caller has the deadline."""
    from gateway.store.redis.report import report

    return await report(settings.store.url_with_password())


def build_backend(settings: Settings) -> Backend:
    """The backend that the settings name, not connected yet."""
    place, limits = settings.embedded_backend(), settings.limits
    unresolved = Unresolved(limits.unresolved_count, limits.unresolved_bytes)
    if place is not None:
        return LocalBackend(
            place.path,
            synchronous=place.synchronous,
            backlog_messages=limits.backlog_count,
            backlog_bytes=limits.backlog_bytes,
            retention_seconds=limits.embedded_retention_seconds,
            retention_bytes=limits.embedded_retention_bytes,
            unresolved=unresolved,
        )
    bridge = settings.bridge
    return RocketMQ.open(
        settings.backend.url,
        settings.backend.access_key,
        settings.backend.secret_key.get_secret_value(),
        instance=settings.gateway.instance,
        backlog=limits.backlog_count,
        backlog_bytes=limits.backlog_bytes,
        batch_messages=limits.batch_count,
        batch_bytes=limits.batch_bytes,
        unresolved=unresolved,
        declared_tags=frozenset((bridge.uplink_tag, bridge.p2p_tag, bridge.downlink_tag)),
    )


class Ending(NamedTuple):
    """How a gateway is told to end. stop: in order; before it listens, at once. hurry: connections are not drained any longer."""

    stop: trio.Event
    hurry: trio.Event

    @classmethod
    def never(cls) -> Ending:
        """Not told yet."""
        return cls(trio.Event(), trio.Event())

    async def on_signals(self, *numbers: signal.Signals, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The first of these signals stops, the second hurries; further ones change nothing: the end has its deadlines."""
        with trio.open_signal_receiver(*numbers) as signals:
            task_status.started()
            async for number in signals:
                observe.log.info("signal", name=signal.Signals(number).name)
                (self.hurry if self.stop.is_set() else self.stop).set()


class Sockets(NamedTuple):
    """What a gateway listens on. http: None when it is off, or not bound yet. at_once: connections to accept in one go."""

    mqtt: list[tcp.Socket]
    http: tcp.Socket | None = None
    at_once: int = tcp.ACCEPTS_ALONE


async def serve(
    settings: Settings,
    *,
    ending: Ending | None = None,
    sockets: Sockets | None = None,
    task_status: trio.TaskStatus[Views | None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a gateway until `ending` says so (None: SIGINT or SIGTERM). sockets: inherited ones; they are closed. Started
    with the node's views, or with None when it was told to end before it listened. Raises StartError."""
    settings.gateway.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _one_error():
        sockets = sockets or Sockets(tcp.bind(settings.mqtt.tcp, settings.mqtt.backlog))
        try:
            async with trio.open_nursery() as nursery:
                if ending is None:
                    ending = Ending.never()
                    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]  # ignored: by nohup
                    await nursery.start(ending.on_signals, signal.SIGINT, signal.SIGTERM, *hangup)
                await _until_ending(settings, sockets, ending, task_status)
                nursery.cancel_scope.cancel()
        finally:
            for listener in sockets.mqtt:
                listener.close()


async def _until_ending(settings: Settings, sockets: Sockets, ending: Ending, task_status: trio.TaskStatus[Views | None]) -> None:
    views: Views | None = None
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as starting:

            async def give_up() -> None:
                await ending.stop.wait()
                starting.cancel()

            async def run(*, task_status: trio.TaskStatus[Views | None]) -> None:
                await _run(settings, sockets, ending, task_status)
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            views = await nursery.start(run)
        if starting.cancelled_caught:
            nursery.cancel_scope.cancel()
        task_status.started(views)


async def _run(settings: Settings, sockets: Sockets, ending: Ending, task_status: trio.TaskStatus[Views | None]) -> None:
    _raise_open_files()
    store, backend = build_store(settings), build_backend(settings)
    async with trio.open_nursery() as ports:
        await ports.start(store.run)
        await ports.start(backend.run)
        async with trio.open_nursery() as services:
            node = Node(settings, backend, store)
            await services.start(node.run)
            if settings.http.listen:
                await services.start(api.serve_http, settings, node.views, sockets.http)
            await services.start(api.serve_control, settings, backend)
            flusher = tcp.Flusher(settings.limits.send_timeout_seconds)
            await services.start(flusher.run)
            async with trio.open_nursery() as links:
                await _accept(settings, sockets, node, flusher, links, ending, task_status)
            observe.log.info("stopping")
            await node.drain(DRAIN_SECONDS)
            services.cancel_scope.cancel()
        ports.cancel_scope.cancel()
    observe.log.info("stopped")


async def _accept(
    settings: Settings,
    sockets: Sockets,
    node: Node,
    flusher: tcp.Flusher,
    links: trio.Nursery,
    ending: Ending,
    task_status: trio.TaskStatus[Views | None],
) -> None:
    """Take devices in until the gateway is to stop; then the links have the grace period to end."""

    async def handle(transport: tcp.TcpTransport) -> None:
        try:
            await node.serve(transport)
            await transport.aclose()
        finally:
            transport.free()

    listeners = sockets.mqtt
    async with trio.open_nursery() as accepting:
        for listener in listeners:
            accepting.start_soon(tcp.accept, listener, flusher, handle, links, sockets.at_once)
        gc.collect()
        gc.freeze()  # what lives as long as the process is never looked at again
        gc.set_threshold(50_000, 20, 50)
        for listener in listeners:
            observe.log.info("listening", address=tcp.peer_name(listener.getsockname()))
        task_status.started(node.views)
        await ending.stop.wait()
        accepting.cancel_scope.cancel()
    for listener in listeners:
        listener.close()
    gateway = settings.gateway
    links.cancel_scope.deadline = trio.current_time() + gateway.drain_seconds + gateway.shutdown_grace_seconds
    await node.drain_links(gateway.drain_per_second, gateway.drain_seconds, ending.hurry)
    links.cancel_scope.deadline = trio.current_time() + gateway.shutdown_grace_seconds


def _raise_open_files() -> None:
    """A device is an open file: take as many as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Nurseries wrap: the operator gets the one error that he can mend."""
    try:
        yield
    except (StoreError, BackendError, tcp.TransportError, OSError) as error:
        raise StartError(str(error)) from error
    except BaseExceptionGroup as group:
        mendable = group.subgroup((StoreError, BackendError, tcp.TransportError, api.ListenError))
        if mendable is None or group.subgroup(AssertionError) is not None:
            raise
        leaf: BaseException = mendable
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        raise StartError(str(leaf)) from group
