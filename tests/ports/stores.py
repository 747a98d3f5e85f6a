"""The stores under test, and short ways to make their values. Nothing here knows how a store is built, but for the table at the end."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import trio

from gateway.ports import (
    Claim,
    Claimed,
    Message,
    OfflineMessage,
    OutboxItem,
    Phase,
    Properties,
    Queue,
    Release,
    Retained,
    Store,
    StoreError,
    Waiting,
    Will,
)
from gateway.store.redis.store import RedisStore
from gateway.store.sqlite import SqliteStore
from tests.kit.services import shared_redis

Limits = dict[str, int]


class Place:
    """Where a store's data lie: every `open` finds what the one before left. erase: remove all of it."""

    def __init__(self, make: Callable[[Limits], Store], erase: Callable[[], None] = lambda: None) -> None:
        self._make = make
        self.erase = erase

    @asynccontextmanager
    async def open(self, **limits: int) -> AsyncIterator[Store]:
        store = self._make(limits)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: store.run(task_status=task_status))
            yield store
            nursery.cancel_scope.cancel()


def redis_place(url: str) -> Place:
    """An instance of its own in a Redis that others use."""
    instance = f"test-{os.getpid()}-{secrets.token_hex(4)}"
    return Place(lambda limits: RedisStore(url, instance=instance, **limits), lambda: erase(url, instance))


def erase(url: str, instance: str) -> None:
    """Delete every key of an instance."""
    with redis.Redis.from_url(url) as client:
        keys = list(client.scan_iter(f"{instance}{{*", count=1000))
        for start in range(0, len(keys), 1000):
            client.unlink(*keys[start : start + 1000])


PLACES: dict[str, Callable[[Path], Place]] = {
    "redis": lambda folder: redis_place(shared_redis().url),
    "sqlite": lambda folder: Place(lambda limits: SqliteStore(folder / "store.db", synchronous="normal", **limits)),
}
STORES = [pytest.param("redis", marks=pytest.mark.services), "sqlite"]


async def done(operation: Callable[..., None], *args: Any) -> Any:
    """Call an operation with a `done` callback and wait for its result. Raises StoreError."""
    event = trio.Event()
    results: list[Any] = []

    def finished(result: Any) -> None:
        results.append(result)
        event.set()

    operation(*args, finished)
    with trio.fail_after(30):
        await event.wait()
    assert len(results) == 1
    if isinstance(results[0], StoreError):
        raise results[0]
    return results[0]


class Ids:
    """UNIQ_KEYs that never repeat."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self) -> str:
        self._last += 1
        return f"{self._last:032X}"


new_id = Ids()


def will(text: str = "bye", retained: Retained | None = None) -> Will:
    return Will(Message("parent", text.encode(), "MQTT2MQ", Properties(mqttSecondTopic="/w"), "GID_a@@@1", new_id()), retained)


def claim_of(
    client_id: str, now: int = 1000, *, node: str = "n1", persistent: bool = True, will: Will | None = None, gentle: bool = False
) -> Claim:
    return Claim(client_id, node, new_id(), "10.0.0.1:1883", persistent, will, now, (new_id(), new_id()), gentle)


async def take(store: Store, claim: Claim) -> Claimed:
    claimed = await store.claim(claim)
    assert isinstance(claimed, Claimed)
    return claimed


async def connect(store: Store, client_id: str, now: int = 1000, **fields: Any) -> Claimed:
    return await take(store, claim_of(client_id, now, **fields))


def release_of(client_id: str, epoch: int, now: int = 2000, *, channel_id: str = "", polite: bool = True, node: str = "n1") -> Release:
    return Release(client_id, epoch, channel_id, node, polite, "closed", now, (new_id(), new_id()))


async def leave(store: Store, client_id: str, epoch: int, now: int = 2000, *, polite: bool = True, node: str = "n1") -> bool:
    return await store.release(release_of(client_id, epoch, now, polite=polite, node=node))


async def outbox(store: Store) -> list[OutboxItem]:
    """Of all shards; in order for each client."""
    return [item for shard in sorted(await store.outbox_waiting(range(store.shards))) for item in await store.outbox(shard, 0, 1_000_000)]


async def drain(store: Store) -> list[OutboxItem]:
    """Take all items out of the outbox."""
    taken = []
    for shard in sorted(await store.outbox_waiting(range(store.shards))):
        items = await store.outbox(shard, 0, 1_000_000)
        await done(store.outbox_remove, shard, [item.position for item in items])
        taken += items
    return taken


def neighbours(store: Store, n: int) -> list[str]:
    """n client ids of one shard."""
    shard = store.shard_of("a")
    return list(itertools.islice((name for name in map("a{}".format, itertools.count()) if store.shard_of(name) == shard), n))


def shards(store: Store) -> range:
    return range(store.shards)


def kinds(items: list[OutboxItem]) -> list[str]:
    return [item.event.type if item.event else "will" for item in items]


def waiting(client_id: str, key: str, **fields: Any) -> Waiting:
    """fields: topic, payload, stored_at of its message; qos, packet_id, phase, position, source, retain, epoch, alone."""
    message = OfflineMessage(key, fields.pop("topic", "parent/sub"), fields.pop("payload", key.encode()), fields.pop("stored_at", 1000))
    return Waiting(client_id, message, fields.pop("qos", 1), **fields)


def moved(entry: Waiting, phase: Phase, packet_id: int) -> Waiting:
    return replace(entry, packet_id=packet_id, phase=phase)


async def put(store: Store, waiting: Sequence[Waiting]) -> list[int]:
    """Their positions, 0 for those that were not put."""
    return [one.position for one in await done(store.offline_put, waiting)]


def queue(id: int = 0) -> Queue:
    return Queue("parent", "broker-a", id)


async def collect(stream: AsyncIterator[list[Any]]) -> list[Any]:
    return [row async for chunk in stream for row in chunk]
