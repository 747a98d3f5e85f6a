"""The stores under test, and short ways to make their values. Nothing here knows how a store is built, but for the table at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

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
from gateway.store.sqlite import SqliteStore

Limits = dict[str, int]


class Place:
    """Where a store's data lie: every `open` finds what the one before left."""

    def __init__(self, make: Callable[[Limits], Store]) -> None:
        self._make = make

    @asynccontextmanager
    async def open(self, **limits: int) -> AsyncIterator[Store]:
        store = self._make(limits)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: store.run(task_status=task_status))
            yield store
            nursery.cancel_scope.cancel()


PLACES: dict[str, Callable[[Path], Place]] = {
    "sqlite": lambda folder: Place(lambda limits: SqliteStore(folder / "store.db", synchronous="normal", **limits)),
}


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


def claim_of(client_id: str, now: int = 1000, *, node: str = "n1", persistent: bool = True, will: Will | None = None) -> Claim:
    channel = new_id()
    return Claim(client_id, node, channel, "10.0.0.1:1883", persistent, will, now, (new_id(), new_id()))


async def connect(store: Store, client_id: str, now: int = 1000, **fields: Any) -> Claimed:
    return await store.claim(claim_of(client_id, now, **fields))


async def leave(store: Store, client_id: str, epoch: int, now: int = 2000, *, polite: bool = True, node: str = "n1") -> bool:
    return await store.release(Release(client_id, epoch, node, polite, "closed", now, (new_id(), new_id())))


async def outbox(store: Store) -> list[OutboxItem]:
    return await store.outbox(0, 1_000_000)


def kinds(items: list[OutboxItem]) -> list[str]:
    return [item.event.type if item.event else "will" for item in items]


def waiting(client_id: str, key: str, **fields: Any) -> Waiting:
    """fields: topic, payload, stored_at of its message; qos, packet_id, phase, position, source, retain."""
    message = OfflineMessage(key, fields.pop("topic", "parent/sub"), fields.pop("payload", key.encode()), fields.pop("stored_at", 1000))
    return Waiting(client_id, message, fields.pop("qos", 1), **fields)


def moved(entry: Waiting, phase: Phase, packet_id: int) -> Waiting:
    return Waiting(entry.client_id, entry.message, entry.qos, packet_id, phase, entry.position, entry.source, entry.retain)


def queue(id: int = 0) -> Queue:
    return Queue("parent", "broker-a", id)


async def collect(stream: AsyncIterator[list[Any]]) -> list[Any]:
    return [row async for chunk in stream for row in chunk]
