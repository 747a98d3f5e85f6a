"""`ports.Store` on one SQLite file, for a single node (docs/decisions/0002-sqlite-store.md).

Every write goes through one thread that makes one transaction of what was collected. Reads that may be asked of the last committed state
have a connection and a thread of their own.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import trio

from gateway import observe
from gateway.ports import (
    Claim,
    Claimed,
    Cluster,
    Done,
    Expired,
    Health,
    OutboxItem,
    Owned,
    Queue,
    Release,
    Retained,
    Store,
    StoreError,
    StoreStats,
    Subscription,
    Waiting,
)
from gateway.store.pump import Pump
from gateway.store.sqlite import expiry, offline, outbox, registry, sessions
from gateway.store.sqlite import retained as retention
from gateway.store.sqlite.database import Database, Failure
from gateway.store.sqlite.lock import Lock
from gateway.store.sqlite.tables import Limits, Tables

CHUNK = 1000  # rows of one step of a stream
HEALTH_SECONDS = 3.0
FRESH_SECONDS = 5.0  # a write that young says enough about the disk
RECENT_SECONDS = 10.0  # a failure that young is shown though a later, smaller write found room
_DAY = 24 * 3600


class SqliteStore:
    """path: the file; it and its folder are made when missing. synchronous: "full" (a confirmed operation survives a power cut) or "normal"
    (it survives the process, not always a power cut). offline_count, retained_count, outbox_count: entries. session_expiry_s: 0 = never.

    Beyond the port's words: `stats().sessions` counts persistent sessions. `offline_get`, `claim`, `release` and all operations with `done`
    are ordered among each other; the other reads see what was confirmed before they were called. Arguments are copied at the call.
    A `done` without a result of its own gets True. `expire` counts as offline what was over the retention.
    """

    shards = 1
    cluster: Cluster | None = None

    def __init__(
        self,
        path: str | Path,
        *,
        synchronous: str = "full",
        offline_count: int = 1_000_000,
        offline_retention_s: int = 3 * _DAY,
        session_expiry_s: int = 30 * _DAY,
        retained_count: int = 100_000,
        outbox_count: int = 100_000,
    ) -> None:
        if synchronous not in ("full", "normal"):
            raise StoreError(f'store.url: synchronous={synchronous} is unknown; use "full" or "normal"')
        self.path = Path(path)
        limits = Limits(offline_count, offline_retention_s * 1000, session_expiry_s * 1000, retained_count, outbox_count)
        self._lock = Lock(self.path)
        self._written = Database(self.path, limits, writer=True, synchronous=synchronous.upper())
        self._dead = trio.Event()
        self._death: BaseException | None = None
        self._writer: Pump[Tables] = Pump("store-writer", self._written, after=self._batch_written, died=self._died)
        self._reader: Pump[Tables] = Pump("store-reader", Database(self.path, limits, writer=False), after=lambda: None, died=self._died)
        self._wakes: list[Callable[[int], None]] = []
        self._seen = self._written.committed
        self._good_at = self._failed_at = -math.inf  # trio's clock
        self._failure: Failure | None = None  # the last one

    @classmethod
    def from_url(cls, url: str, **limits: int) -> SqliteStore:
        """url: `sqlite:PATH` or `sqlite:PATH?synchronous=normal`. Raises StoreError."""
        scheme, _, rest = url.partition(":")
        path, _, query = rest.partition("?")
        options = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
        synchronous = options.pop("synchronous", "full")
        if scheme != "sqlite" or not path or options:
            raise StoreError(f"store.url: {url} is not of the form sqlite:PATH or sqlite:PATH?synchronous=normal")
        return cls(path, synchronous=synchronous, **limits)

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """As `Store.run`."""
        self._lock.take()
        try:
            await self._writer.start()
            await self._reader.start()
            self._seen = self._written.committed
            task_status.started()
            await self._dead.wait()
            assert self._death is not None
            raise self._death
        finally:
            await self._reader.stop()
            await self._writer.stop()
            self._lock.release()

    def _died(self, error: BaseException) -> None:
        self._death = error
        self._dead.set()

    def _batch_written(self) -> None:
        seen, now = self._seen, self._written.committed
        self._seen = now
        if (failure := self._written.failing) is not None:
            self._failure, self._failed_at = failure, trio.current_time()
            observe.note(observe.Fact.STORE_FAILED, store=str(self.path), error=str(failure))
        else:
            self._good_at = trio.current_time()
        if now.overflowed > seen.overflowed:
            observe.note(observe.Fact.OFFLINE_OVERFLOW, n=now.overflowed - seen.overflowed)
        if now.appended > seen.appended:
            for wake in self._wakes:
                wake(0)

    def shard_of(self, client_id: str) -> int:
        """One for all."""
        return 0

    def clock(self) -> int:
        """This machine's."""
        return time.time_ns() // 1_000_000

    # -- the registry

    async def claim(self, claim: Claim) -> Claimed | Owned:
        result = await self._writer.ask(partial(registry.claim, claim=claim))
        assert not isinstance(result, StoreError)
        return result

    async def release(self, release: Release) -> bool:
        return await self._writer.ask(partial(registry.release, release=release))

    async def abandoned(self, node: str, now: int, new_id: Callable[[], str]) -> int:
        """As `Store.abandoned`; one transaction. `new_id` is called on the trio thread."""
        released = 0
        while owned := await self._writer.ask(partial(registry.owned_by, node=node)):
            ids: list[str] = []
            while len(ids) < owned:
                ids += [new_id() for _ in range(min(CHUNK, owned - len(ids)))]
                await trio.lowlevel.checkpoint()
            released += await self._writer.ask(partial(registry.abandon, node=node, now=now, ids=ids))
        return released

    # -- the outbox

    async def outbox(self, shard: int, after: int, limit: int) -> list[OutboxItem]:
        return await self._reader.ask(partial(outbox.read, after=after, limit=limit))

    def outbox_remove(self, shard: int, positions: Sequence[int], done: Done) -> None:
        positions = tuple(positions)
        self._writer.submit(lambda tables: outbox.remove(tables, positions), done)

    def on_outbox(self, wake: Callable[[int], None]) -> None:
        self._wakes.append(wake)

    async def outbox_waiting(self, shards: Collection[int]) -> set[int]:
        return set(shards) if self._written.committed.outbox else set()

    # -- persistent sessions

    def subscribe(self, client_id: str, epoch: int, subscriptions: Sequence[Subscription], done: Done) -> None:
        subscriptions = tuple(subscriptions)
        self._writer.submit(lambda tables: sessions.subscribe(tables, client_id, epoch, subscriptions), done)

    def unsubscribe(self, client_id: str, epoch: int, filters: Sequence[str], done: Done) -> None:
        filters = tuple(filters)
        self._writer.submit(lambda tables: sessions.unsubscribe(tables, client_id, epoch, filters), done)

    async def subscriptions(self) -> AsyncIterator[list[tuple[str, Subscription]]]:
        place = sessions.BEGIN
        while True:
            place, chunk = await self._reader.ask(partial(sessions.subscriptions_after, place=place, limit=CHUNK))
            if not chunk:
                return
            yield chunk

    async def present(self, client_ids: Iterable[str]) -> set[str]:
        return await self._reader.ask(partial(sessions.present, client_ids=list(client_ids)))

    def inbound_put(self, client_id: str, epoch: int, packet_id: int, unique_key: str, done: Done) -> None:
        self._writer.submit(lambda tables: sessions.inbound_put(tables, client_id, epoch, packet_id, unique_key), done)

    def inbound_stored(self, client_id: str, epoch: int, packet_ids: Sequence[int], done: Done) -> None:
        packet_ids = tuple(packet_ids)
        self._writer.submit(lambda tables: sessions.inbound_stored(tables, client_id, epoch, packet_ids), done)

    def inbound_remove(self, client_id: str, epoch: int, packet_id: int, done: Done) -> None:
        self._writer.submit(lambda tables: sessions.inbound_remove(tables, client_id, epoch, packet_id), done)

    # -- messages that wait for a session

    def offline_put(self, waiting: Sequence[Waiting], done: Done) -> None:
        entries = offline.entries(waiting)
        self._writer.submit(lambda tables: offline.put(tables, entries), done)

    async def offline_get(self, client_id: str, limit: int, *, newest: bool = False, after: int = 0) -> list[Waiting]:
        return await self._writer.ask(lambda tables: offline.get(tables, client_id, limit, newest, after))

    def offline_remove(self, client_id: str, positions: Sequence[int], done: Done) -> None:
        positions = tuple(positions)
        self._writer.submit(lambda tables: offline.remove(tables, client_id, positions), done)

    async def remembered(self, shards: Collection[int]) -> AsyncIterator[list[tuple[str, str, Queue, int]]]:
        place = ("", -1)
        while True:
            place, chunk = await self._reader.ask(partial(offline.remembered_after, place=place, limit=CHUNK))
            if not chunk:
                return
            yield chunk

    def forget(self, keys: Sequence[tuple[str, str]], done: Done) -> None:
        keys = tuple(keys)
        self._writer.submit(lambda tables: offline.forget(tables, keys), done)

    # -- retained messages and marks

    def retain(self, topic: str, retained: Retained | None, done: Done) -> None:
        self._writer.submit(lambda tables: retention.retain(tables, topic, retained), done)

    async def retained(self, prefix: str, matches: Callable[[str], bool], limit: int = 100_000) -> list[Retained]:
        """As `Store.retained`. `matches` is called on the trio thread; payloads are read of what matches only."""
        found: list[Retained] = []
        start, inclusive, more = prefix, True, True
        while more and len(found) < limit:
            topics, more = await self._reader.ask(
                partial(retention.topics_from, prefix=prefix, start=start, inclusive=inclusive, limit=CHUNK)
            )
            if topics:
                start, inclusive = topics[-1], False
            if wanted := [topic for topic in topics if matches(topic)]:
                found += await self._reader.ask(partial(retention.messages, topics=wanted[: limit - len(found)]))
        return found

    async def mark(self, name: str) -> str | None:
        return await self._reader.ask(partial(retention.mark, name=name))

    async def set_mark(self, name: str, value: str) -> None:
        await self._writer.ask(partial(retention.set_mark, name=name, value=value))

    # -- the rest

    async def expire(self, now: int, shards: Collection[int]) -> Expired:
        """As `Store.expire`, in steps between which other operations get their turn."""
        messages, more = 0, True
        while more:
            removed, more = await self._writer.ask(partial(expiry.messages, now=now))
            messages += removed
        names: dict[str, list[str]] = {}
        more = True
        while more:
            gone, more = await self._writer.ask(partial(expiry.sessions, now=now))
            names.update(gone)
        while await self._writer.ask(partial(expiry.clocks, now=now)):
            pass
        await self._writer.ask(expiry.pages)
        return Expired(names, messages)

    async def health(self) -> list[Health]:
        """Never raises; tries a write unless one went well or failed a moment ago; takes 3 s at most."""
        now = trio.current_time()
        failure: Any = self._failure if now - self._failed_at < RECENT_SECONDS else None
        if failure is None and (not self._writer.open or now - self._good_at > FRESH_SECONDS):
            failure = await self._probe()
        name = f"sqlite:{self.path}"
        if isinstance(failure, StoreError):
            return [Health(name, False, str(failure), getattr(failure, "cure", "check the disk and the log"))]
        return [Health(name, True, "writes are committed")]

    async def _probe(self) -> Any:
        answered = trio.Event()
        results: list[Any] = []

        def done(result: Any) -> None:
            results.append(result)
            answered.set()

        self._writer.submit(_touch, done)
        with trio.move_on_after(HEALTH_SECONDS):
            await answered.wait()
        return results[0] if results else StoreError(f"store {self.path}: no write was done in {HEALTH_SECONDS:.0f} s")

    def stats(self) -> StoreStats:
        counts = self._written.committed
        return StoreStats(counts.sessions, counts.subscriptions, counts.offline, counts.retained, counts.outbox)

    def metrics(self) -> dict[str, float]:
        counts, writer, reader = self._written.committed, self._writer, self._reader
        return {
            "store_queue_depth": writer.depth,
            "store_queue_peak": writer.peak,
            "store_queue_refused": writer.refused,
            "store_batches": writer.batches,
            "store_operations": writer.jobs,
            "store_operations_failed": self._written.failures,
            "store_reads": reader.jobs,
            "store_reads_depth": reader.depth,
            "store_sessions": counts.sessions,
            "store_subscriptions": counts.subscriptions,
            "store_offline": counts.offline,
            "store_remembered": counts.remembered,
            "store_retained": counts.retained,
            "store_outbox": counts.outbox,
        }


def _touch(tables: Tables) -> None:
    # a value that changes, so that there is something to commit
    tables.next()


if TYPE_CHECKING:
    _conforms: type[Store] = SqliteStore
