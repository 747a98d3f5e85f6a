"""Nodes of one instance, each with connections of its own, on a real Redis. Nothing here knows how the port is built, but for `opened`."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import redis
import trio

from deploy import services
from gateway.ports.cluster import Cluster, Entry
from gateway.store.pump import Pump
from gateway.store.redis.cluster import RedisCluster
from gateway.store.redis.engine import Line, Lockstep
from gateway.store.redis.keys import Keys
from gateway.store.redis.servers import parse, servers_of

R = TypeVar("R")
Nodes = tuple[Cluster, Cluster]

_numbers = itertools.count(1)


def new_instance() -> str:
    """A name of its own in a Redis that others use."""
    return f"test-cluster-{os.getpid()}-{next(_numbers)}"


@contextmanager
def sharded() -> Iterator[str]:
    """The URL of a Redis Cluster of one server: it refuses whatever touches two slots at once."""
    home = services.ROOT / "tests" / f"redis-cluster-{os.getpid()}-{next(_numbers)}"
    server = services.Redis.started(home, {"cluster-enabled": "yes", "appendfsync": "no"})
    try:
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            end = time.monotonic() + 20
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                assert time.monotonic() < end
                time.sleep(0.02)
        yield f"redis+cluster://{server.address}"
    finally:
        server.kill()
        shutil.rmtree(home, ignore_errors=True)


async def _fail(fault: BaseException) -> None:
    raise fault


@asynccontextmanager
async def opened(url: str, instance: str) -> AsyncIterator[RedisCluster]:
    """One node's view."""
    async with trio.open_nursery() as nursery:

        def died(fault: BaseException) -> None:
            nursery.start_soon(_fail, fault)

        pumps = [
            Pump(f"{instance} {kind}", Lockstep(servers_of(parse(url))), after=lambda: None, died=died)
            for kind in ("writer", "reader", "waiter")
        ]
        try:
            for pump in pumps:
                await pump.start()
            yield RedisCluster(Keys(instance), *map(Line, pumps))
        finally:
            for pump in pumps:
                await pump.stop()


async def eventually(condition: Callable[[], Awaitable[R]], seconds: float = 10) -> R:
    """What `condition` answers as soon as it is true."""
    with trio.fail_after(seconds):
        while not (answer := await condition()):
            await trio.sleep(0.01)
        return answer


def session(client_id: str, node: str = "", qos: int = 1, since: int = 1000) -> Entry:
    return Entry(client_id, node, qos, since)


def fleet(node: str) -> Entry:
    """A node some of whose clean sessions listen."""
    return Entry("", node)
