"""The port `Store` on Redis: jobs go to three pumps, and their answers come back on the trio thread."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

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
from gateway.store import packed
from gateway.store.pump import Pump
from gateway.store.redis import clock, expiry, instance, marks, offline, outbox, registry, report, sessions
from gateway.store.redis import retained as retention
from gateway.store.redis.cluster import RedisCluster
from gateway.store.redis.engine import Command, Line, Lockstep, Steps, checked
from gateway.store.redis.errors import Failure
from gateway.store.redis.instance import Instance, Limits
from gateway.store.redis.keys import SHARDS, shard_of
from gateway.store.redis.servers import parse, servers_of

CHUNK = 1000  # rows of one step of a stream
SHARDS_AT_ONCE = 32  # of a stream over all shards
REFRESH_SECONDS = 2.0
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # seconds between tries at the start
HEALTH_SECONDS = 3.0
RECENT_SECONDS = 10.0  # a failure that young is shown though Redis answers again
_DAY = 24 * 3600


class RedisStore:
    """url: see `servers.py`. instance: the prefix of all keys. offline_count, retained_count, outbox_count: entries of the instance, held
    to within what other nodes added in the last seconds. session_expiry_s: 0 = never.

    Beyond the port's words: `stats()` is exact for what this node changed and seconds old for the others; its `sessions` counts persistent
    ones. Operations of one client are ordered among each other; other reads see what was confirmed before they were called. Arguments are
    copied at the call. A `done` without a result of its own gets True. How much a confirmed operation survives is Redis's `appendfsync`.
    """

    shards = SHARDS

    def __init__(
        self,
        url: str,
        *,
        instance: str = "default",
        offline_count: int = 1_000_000,
        offline_retention_s: int = 3 * _DAY,
        session_expiry_s: int = 30 * _DAY,
        retained_count: int = 100_000,
        outbox_count: int = 100_000,
    ) -> None:
        address = parse(url)
        self.name = address.shown()
        limits = Limits(offline_count, offline_retention_s * 1000, session_expiry_s * 1000, retained_count, outbox_count)
        self._at = Instance(instance, limits)
        self._clock = clock.Clock()
        self._at.now = self._clock.now
        self._at.now = self._clock.now
        self._dead = trio.Event()
        self._death: BaseException | None = None
        self._writing, self._reading, self._listening = (Lockstep(servers_of(address)) for _ in range(3))
        self._writer = self._line("redis-writer", self._writing, self._batch_written)
        self._reader = self._line("redis-reader", self._reading, self._batch_read)
        self._inbox_line = self._line("redis-inbox", self._listening, lambda: None)
        self._wakes: list[Callable[[int], None]] = []
        self._overflowed = self._lost = 0
        self._failure: Failure | None = None  # the last one
        self._failed_at = -math.inf  # trio's clock
        self._open = False
        self.cluster: Cluster | None = RedisCluster(self._at.keys, self._writer, self._reader, self._inbox_line)

    def _line(self, name: str, engine: Lockstep, after: Callable[[], None]) -> Line:
        return Line(Pump(name, engine, after=after, died=self._died))

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """As `Store.run`. A Redis that is away at the start is waited for; one that refuses this gateway is a StoreError."""
        lines = (self._writer, self._reader, self._inbox_line)
        try:
            for line in lines:
                await line.pump.start()
            await self._reach()
            self._open = True
            task_status.started()
            while not self._dead.is_set():
                with trio.move_on_after(REFRESH_SECONDS):
                    await self._dead.wait()
                    break
                await self._refresh()
            assert self._death is not None
            raise self._death
        finally:
            self._open = False
            with trio.CancelScope(shield=True):  # every wait inside has its own deadline
                async with trio.open_nursery() as nursery:  # together: a Redis that hangs costs the deadline once
                    for line in lines:
                        nursery.start_soon(line.pump.stop)

    async def _reach(self) -> None:
        pause = FIRST_PAUSE
        while (failure := await self._refresh()) is not None:
            if self._death is not None:
                raise self._death
            if not isinstance(failure, Failure) or failure.fatal:
                raise failure
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _refresh(self) -> StoreError | None:
        """The clock, and every shard's counts as all nodes left them."""
        try:
            self._clock.take(*await self._reader.ask(partial(clock.read, self._at)))
            await self._writer.ask(partial(_count, self._at))
        except StoreError as error:
            return error
        return None

    def _died(self, error: BaseException) -> None:
        self._death = error
        self._dead.set()

    def _batch_written(self) -> None:
        self._note(self._writing)
        counts = self._at.counts
        if counts.overflowed > self._overflowed:
            observe.note(observe.Fact.OFFLINE_OVERFLOW, counts.overflowed - self._overflowed)
            self._overflowed = counts.overflowed
        if (lost := self._at.places.lost) > self._lost:
            observe.note(observe.Fact.MESSAGE_DROPPED, lost - self._lost, reason="body_missing")
            self._lost = lost
        if counts.appended:
            shards = {counts.appended.popleft() for _ in range(len(counts.appended))}
            for shard in shards:
                for wake in self._wakes:
                    wake(shard)

    def _batch_read(self) -> None:
        self._note(self._reading)

    def _note(self, engine: Lockstep) -> None:
        if (failure := engine.failing) is not None:
            self._failure, self._failed_at = failure, trio.current_time()
            observe.note(observe.Fact.STORE_FAILED, store=self.name, error=str(failure))

    def shard_of(self, client_id: str) -> int:
        return shard_of(client_id)

    def clock(self) -> int:
        """As `Store.clock`; Redis's, read every 2 s, and never going back."""
        return self._clock.now()

    # -- the registry

    async def claim(self, claim: Claim) -> Claimed | Owned:
        job = partial(registry.claim, self._at, claim, packed.pack_will(claim.will) or b"")
        return await self._writer.ask(job, order=(claim.client_id,))

    async def release(self, release: Release) -> bool:
        return await self._writer.ask(partial(registry.release, self._at, release), order=(release.client_id,))

    async def abandoned(self, node: str, now: int, new_id: Callable[[], str]) -> int:
        """As `Store.abandoned`, client by client."""
        released = 0
        while owned := await self._writer.ask(partial(registry.owned_by, self._at, node)):
            for start in range(0, len(owned), CHUNK):
                clients = [(client, new_id()) for client in owned[start : start + CHUNK]]
                job = partial(registry.abandon, self._at, node, now, clients)
                released += await self._writer.ask(job, order=[client for client, _ in clients])
        return released

    # -- the outbox

    async def outbox(self, shard: int, after: int, limit: int) -> list[OutboxItem]:
        return await self._reader.ask(partial(outbox.read, self._at, shard, after, limit))

    def outbox_remove(self, shard: int, positions: Sequence[int], done: Done) -> None:
        self._writer.submit(partial(outbox.remove, self._at, shard, tuple(positions)), done)

    def on_outbox(self, wake: Callable[[int], None]) -> None:
        self._wakes.append(wake)

    async def outbox_waiting(self, shards: Collection[int]) -> set[int]:
        return await self._reader.ask(partial(outbox.waiting, self._at, tuple(shards)))

    # -- persistent sessions

    def subscribe(self, client_id: str, epoch: int, subscriptions: Sequence[Subscription], done: Done) -> None:
        job = partial(sessions.subscribe, self._at, client_id, epoch, tuple(subscriptions))
        self._writer.submit(job, done, order=(client_id,))

    def unsubscribe(self, client_id: str, epoch: int, filters: Sequence[str], done: Done) -> None:
        self._writer.submit(partial(sessions.unsubscribe, self._at, client_id, epoch, tuple(filters)), done, order=(client_id,))

    async def subscriptions(self) -> AsyncIterator[list[tuple[str, Subscription]]]:
        for first in range(0, SHARDS, SHARDS_AT_ONCE):
            cursors = dict.fromkeys(range(first, min(first + SHARDS_AT_ONCE, SHARDS)), b"0")
            seen: set[str] = set()
            while cursors:
                found = await self._reader.ask(partial(sessions.subscribed, self._at, tuple(cursors), cursors))
                clients = [client for client in dict.fromkeys(found) if client not in seen]
                seen.update(clients)
                for start in range(0, len(clients), CHUNK):
                    rows = await self._reader.ask(partial(sessions.subscriptions_of, self._at, clients[start : start + CHUNK]))
                    for place in range(0, len(rows), CHUNK):
                        yield rows[place : place + CHUNK]

    async def present(self, client_ids: Iterable[str]) -> set[str]:
        return await self._reader.ask(partial(sessions.present, self._at, list(client_ids)))

    def inbound_put(self, client_id: str, epoch: int, packet_id: int, unique_key: str, done: Done) -> None:
        self._inbound("inbound_put", client_id, epoch, (packet_id, unique_key), done)

    def inbound_stored(self, client_id: str, epoch: int, packet_ids: Sequence[int], done: Done) -> None:
        self._inbound("inbound_stored", client_id, epoch, tuple(packet_ids), done)

    def inbound_remove(self, client_id: str, epoch: int, packet_id: int, done: Done) -> None:
        self._inbound("inbound_remove", client_id, epoch, (packet_id,), done)

    def _inbound(self, script: str, client_id: str, epoch: int, args: tuple[int | str, ...], done: Done) -> None:
        self._writer.submit(partial(sessions.inbound, self._at, script, client_id, epoch, *args), done, order=(client_id,))

    # -- messages that wait for a session

    def offline_put(self, waiting: Sequence[Waiting], done: Done) -> None:
        entries = offline.entries(waiting)
        order = {entry.client_id for entry in entries}
        self._writer.submit(partial(offline.put, self._at, entries), done, order=order)  # queues change in its first round

    async def offline_get(self, client_id: str, limit: int, *, newest: bool = False, after: int = 0) -> list[Waiting]:
        job = partial(offline.get, self._at, client_id, limit, newest, after)
        return await self._writer.ask(job, order=(client_id,))

    def offline_remove(self, client_id: str, positions: Sequence[int], done: Done) -> None:
        job = partial(offline.remove, self._at, client_id, tuple(positions))
        self._writer.submit(job, done, order=(client_id,))

    async def remembered(self, shards: Collection[int]) -> AsyncIterator[list[tuple[str, str, Queue, int]]]:
        async for chunk in offline.remembered(self._at, self._reader, tuple(shards)):
            yield chunk

    def forget(self, keys: Sequence[tuple[str, str]], done: Done) -> None:
        keys = tuple(keys)
        self._writer.submit(partial(offline.forget, self._at, keys), done, order={client_id for client_id, _ in keys})

    # -- retained messages and marks

    def retain(self, topic: str, retained: Retained | None, done: Done) -> None:
        self._writer.submit(partial(retention.retain, self._at, topic, retained), done, order=(f"retained {topic}",))

    async def retained(self, prefix: str, matches: Callable[[str], bool], limit: int = 100_000) -> list[Retained]:
        return await retention.find(self._at, self._reader, prefix, matches, limit)

    async def mark(self, name: str) -> str | None:
        return await self._reader.ask(partial(marks.mark, self._at, name))

    async def set_mark(self, name: str, value: str) -> None:
        await self._writer.ask(partial(marks.set_mark, self._at, name, value))

    # -- the rest

    async def expire(self, now: int, shards: Collection[int]) -> Expired:
        return await expiry.expire(self._at, self._writer, now, tuple(shards))

    async def health(self) -> list[Health]:
        """Never raises; takes 3 s at most."""
        if trio.current_time() - self._failed_at < RECENT_SECONDS and self._failure is not None:
            return [Health(self.name, False, str(self._failure), self._failure.cure)]
        found: list[Health] = []
        try:
            with trio.move_on_after(HEALTH_SECONDS):
                found = [report.summary(*one) for one in await self._reader.ask(partial(report.read, self._reading.servers))]
        except StoreError as error:
            return [Health(self.name, False, str(error), getattr(error, "cure", "start the gateway again"))]
        return found or [Health(self.name, False, f"no answer within {HEALTH_SECONDS:.0f} s", "see whether Redis runs and how busy it is")]

    def stats(self) -> StoreStats:
        counts = self._at.counts
        total = counts.total
        return StoreStats(
            total(instance.SESSIONS), total(instance.SUBSCRIPTIONS), total(instance.OFFLINE), counts.retained, total(instance.OUTBOX)
        )

    def metrics(self) -> dict[str, float]:
        """store_round_trips and store_commands: waits for Redis, and commands sent, of all pumps."""
        stats, writer, reader = self.stats(), self._writer.pump, self._reader.pump
        engines = (self._writing, self._reading, self._listening)
        return {
            "store_queue_depth": writer.depth,
            "store_queue_peak": writer.peak,
            "store_queue_refused": writer.refused,
            "store_batches": writer.batches,
            "store_operations": writer.jobs,
            "store_operations_failed": self._writing.failures,
            "store_commands_written": self._writing.commands,
            "store_reads": reader.jobs,
            "store_reads_depth": reader.depth,
            "store_round_trips": sum(engine.round_trips for engine in engines),
            "store_commands": sum(engine.commands for engine in engines),
            "store_sessions": stats.sessions,
            "store_subscriptions": stats.subscriptions,
            "store_offline": stats.offline,
            "store_remembered": self._at.counts.total(instance.REMEMBERED),
            "store_retained": stats.retained,
            "store_outbox": stats.outbox,
        }


def _count(at: Instance) -> Steps[None]:
    retained = yield from retention.count(at)
    replies = yield [Command(("HMGET", at.keys.counts(shard), *instance.FIELDS)) for shard in range(SHARDS)]
    for shard, reply in enumerate(checked(replies)):
        at.counts.take(shard, reply)
    at.counts.retained = retained


if TYPE_CHECKING:
    _conforms: type[Store] = RedisStore
