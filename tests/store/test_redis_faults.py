"""The Redis store when its server dies, hangs, is full, refuses it, or comes late: what is told, what is kept, what goes on by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis as client
import trio

from deploy.services import Redis
from gateway import observe
from gateway.ports import Claimed, Store, StoreError, Subscription
from gateway.store.redis import wire
from gateway.store.redis.store import RedisStore
from tests.ports.stores import Place, claim_of, connect, done, kinds, leave, outbox, waiting, will


def place_of(url: str) -> Place:
    return Place(lambda limits: RedisStore(url, instance="t", **limits))


async def until(condition: Callable[[], Any]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


async def eventually(store: Store, client_id: str, **fields: Any) -> Claimed:
    with trio.fail_after(20):
        while True:
            try:
                return await connect(store, client_id, **fields)
            except StoreError:
                await trio.sleep(0.05)


async def test_a_server_killed_under_load_keeps_what_it_confirmed(redis: Redis) -> None:
    async with place_of(redis.url).open() as store:
        confirmed: list[str] = []
        failed: list[str] = []
        told: set[str] = set()

        async def claims(first: int) -> None:
            for n in range(first, first + 200):
                try:
                    claimed = await connect(store, f"c{n}", persistent=n % 2 == 0, will=will())
                    await done(store.subscribe, f"c{n}", claimed.epoch, [Subscription("p/#", 1, 1)])
                    confirmed.append(f"c{n}")
                except StoreError as error:
                    failed.append(f"c{n}")
                    told.add(str(error))

        async with trio.open_nursery() as nursery:
            for first in range(0, 4000, 200):
                nursery.start_soon(claims, first)
            await until(lambda: len(confirmed) > 1000)
            await trio.to_thread.run_sync(redis.kill)
            await until(lambda: failed)
            assert not (await store.health())[0].ok
            await trio.to_thread.run_sync(redis.start)
        await eventually(store, "another")
        events: dict[str, list[str]] = {}
        for item in await outbox(store):
            events.setdefault(item.client_id, []).extend(kinds([item]))
        rows = {name async for chunk in store.subscriptions() for name, _ in chunk}
        assert failed
        assert all(redis.address in text for text in told)
        assert set(confirmed) <= rows
        for name in confirmed:
            assert events[name] == ["connect"]
        for name in failed:  # all of a step, or nothing
            assert events.get(name, ["connect"]) == ["connect"]
        for name in failed[-20:]:  # a claim that was made though nobody heard of it is taken over
            await connect(store, name)
        counted = store.stats()
    async with place_of(redis.url).open() as store:
        assert store.stats() == counted  # the counters lie with the rows


async def test_a_frozen_server_is_told_apart_from_a_dead_one(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "ANSWER_SECONDS", 0.5)
    before = observe.counters()["store_failed"]
    async with place_of(redis.url).open() as store:
        claim = claim_of("a")
        await store.claim(claim)
        redis.pause()
        try:
            with pytest.raises(StoreError, match=r"did not answer in time, the outcome is unknown"):
                await connect(store, "a", 9000)
        finally:
            redis.resume()
        assert observe.counters()["store_failed"] > before
        again = await eventually(store, "a", now=9001)
        assert again.present
        events = [item.event for item in await outbox(store) if item.event]
        # the claim without an answer was made, or not: never half of it
        assert [event.type for event in events] in (["connect"] + ["tcpclean", "connect"] * n for n in (1, 2))
        assert [event.seq for event in events] == list(range(1, len(events) + 1))


async def test_a_store_closes_while_its_server_hangs(redis: Redis) -> None:
    place = place_of(redis.url)
    results: list[object] = []
    try:
        with trio.fail_after(30):
            async with place.open() as store:
                await connect(store, "a")
                redis.pause()
                store.retain("t", None, results.append)
    finally:
        redis.resume()
    assert [type(result).__mro__[-4] for result in results] == [StoreError]


async def test_a_server_that_is_down_at_the_start_is_waited_for(tmp_path: Path) -> None:
    server = Redis.at(tmp_path / "late")
    store = RedisStore(server.url, instance="t")
    before = observe.counters()["store_failed"]
    try:
        async with trio.open_nursery() as nursery:
            opened = trio.Event()

            async def run() -> None:
                await nursery.start(store.run)
                opened.set()

            nursery.start_soon(run)
            await until(lambda: observe.counters()["store_failed"] > before + 1)
            (health,) = await store.health()
            assert not health.ok
            assert not opened.is_set()
            await trio.to_thread.run_sync(server.start)
            with trio.fail_after(20):
                await opened.wait()
            assert (await connect(store, "a")).epoch
            nursery.cancel_scope.cancel()
    finally:
        server.kill()


async def test_a_replica_is_waited_for_until_it_is_the_master(redis: Redis, tmp_path: Path) -> None:
    host, port = redis.address.split(":")
    replica = Redis.started(tmp_path / "replica", {"replicaof": f"{host} {port}"})
    store = RedisStore(replica.url, instance="t")
    before = observe.counters()["store_failed"]
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nursery.start, store.run)
            await until(lambda: observe.counters()["store_failed"] > before)
            assert "replica" in (await store.health())[0].detail
            with client.Redis.from_url(replica.url) as other:
                other.replicaof("NO", "ONE")
            await eventually(store, "a")
            with client.Redis.from_url(replica.url) as other:
                other.replicaof(host, port)
            with pytest.raises(StoreError, match=r"replica and takes no writes; set store\.url"):
                await connect(store, "a")
            with client.Redis.from_url(replica.url) as other:
                other.replicaof("NO", "ONE")
            await eventually(store, "a")
            nursery.cancel_scope.cancel()
    finally:
        replica.kill()


async def test_passwords(redis: Redis) -> None:
    with client.Redis.from_url(redis.url) as admin:
        admin.config_set("requirepass", "right-secret")
    for given, matching in (("", "wants a password"), (":wrong-secret@", "refuses"), ("someone:wrong-secret@", "refuses")):
        with pytest.RaisesGroup(pytest.RaisesExc(StoreError, match=matching)) as refusal:
            async with place_of(f"redis://{given}{redis.address}").open():
                pass
        (error,) = refusal.value.exceptions
        assert "store.url" in str(error)
        assert "secret" not in f"{error!r} {error} {error.__cause__!r} {error.__context__!r}"
    async with place_of(f"redis://:right-secret@{redis.address}").open() as store:
        await connect(store, "a")
        assert "secret" not in repr((await store.health())[0])
        with client.Redis.from_url(f"redis://:right-secret@{redis.address}") as admin:
            admin.acl_setuser(
                "few", enabled=True, passwords="+few-secret", keys="t{*", commands=["+@all", "-config", "-@dangerous", "+info"]
            )
    async with place_of(f"redis://few:few-secret@{redis.address}").open() as store:
        assert (await connect(store, "a")).present
        (health,) = await store.health()
        assert health.ok
        assert "can't be read" in health.detail
        with client.Redis.from_url(f"redis://:right-secret@{redis.address}") as admin:
            admin.acl_setuser("few", commands=["-zadd"])
        with pytest.raises(StoreError, match="may not do this; set the user name"):
            await connect(store, "b")


async def test_a_full_memory_refuses_what_adds_and_lets_the_rest_go_on(redis: Redis) -> None:
    async with place_of(redis.url).open() as store:
        claimed = await connect(store, "a")
        with client.Redis.from_url(redis.url) as admin:
            admin.config_set("maxmemory-policy", "noeviction")
            admin.config_set("maxmemory", "1mb")
            with pytest.raises(StoreError, match="memory is full; raise maxmemory"):
                await connect(store, "b")
            with pytest.raises(StoreError, match="memory is full"):
                await done(store.offline_put, [waiting("a", "M1")])
            assert await store.present(["a", "b"]) == {"a"}
            assert kinds(await outbox(store)) == ["connect"]
            admin.config_set("maxmemory", "0")
        assert await leave(store, "a", claimed.epoch)
        await connect(store, "b")


async def test_what_eviction_would_do_is_told(redis: Redis) -> None:
    with client.Redis.from_url(redis.url) as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
    async with place_of(redis.url).open() as store:
        (health,) = await store.health()
    assert health.ok
    assert "ATTENTION" in health.detail
    assert "set maxmemory-policy noeviction" in health.detail
