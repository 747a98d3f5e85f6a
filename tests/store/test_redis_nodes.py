"""Two nodes on one Redis: who owns a session, what each knows of the other, the clock that they share, and what is left in the end."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis as client
import trio

from gateway.ports import Owned, StoreError, Subscription
from gateway.store.redis import clock
from gateway.store.redis import store as stores
from tests.kit.services import shared_redis
from tests.ports.stores import (
    Place,
    claim_of,
    connect,
    done,
    drain,
    erase,
    kinds,
    leave,
    new_id,
    outbox,
    put,
    redis_place,
    shards,
    waiting,
    will,
)

pytestmark = pytest.mark.services


@pytest.fixture
def place() -> Iterator[Place]:
    place = redis_place(shared_redis().url)
    yield place
    place.erase()


@pytest.fixture
def server() -> Iterator[client.Redis]:
    with client.Redis.from_url(shared_redis().url, decode_responses=True) as server:
        yield server


async def test_a_session_goes_from_node_to_node(place: Place) -> None:
    async with place.open() as one, place.open() as two:
        woken: list[int] = []
        two.on_outbox(woken.append)
        first = claim_of("a", will=will())
        await one.claim(first)
        assert await two.claim(claim_of("a", node="n2", gentle=True)) == Owned("n1", first.channel_id)
        assert not woken  # the shard's drainer looks by itself
        claimed = await connect(two, "a", node="n2")
        assert claimed.present
        assert await leave(one, "a", claimed.epoch - 1) is False
        assert kinds(await outbox(one)) == ["connect", "tcpclean", "will", "connect"]
        assert woken == [two.shard_of("a")]


async def test_a_lost_nodes_operations_are_fenced_off(place: Place) -> None:
    """It was frozen, not dead: when it wakes, its epochs are of the past."""
    async with place.open() as frozen, place.open() as heir:
        epoch = (await connect(frozen, "a", will=will())).epoch
        (position,) = await put(frozen, [waiting("a", "M1")])
        assert await heir.abandoned("n1", 5000, new_id) == 1
        assert await done(frozen.subscribe, "a", epoch, [Subscription("p", 1, 1)]) is None
        assert await done(frozen.inbound_put, "a", epoch, 1, "KEY") is None
        assert await put(frozen, [waiting("a", "M1", position=position, packet_id=1, epoch=epoch)]) == [0]
        assert await leave(frozen, "a", epoch) is False
        claimed = await connect(heir, "a", node="n2")
        assert (claimed.present, claimed.subscriptions, claimed.backlog) == (True, [], 1)
        assert kinds(await outbox(heir)) == ["connect", "tcpclean", "will", "connect"]


async def test_both_nodes_abandon_the_same_node(place: Place) -> None:
    async with place.open() as one, place.open() as two:
        for n in range(500):
            await connect(one, f"client{n}", node="lost")
        counts = []

        async def abandon(store: object) -> None:
            counts.append(await store.abandoned("lost", 5000, new_id))  # type: ignore[attr-defined]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(abandon, one)
            nursery.start_soon(abandon, two)
        assert sum(counts) == 500
        assert len(await outbox(one)) == 1000


async def test_what_the_other_node_changed_is_known_a_little_later(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "REFRESH_SECONDS", 0.05)
    async with place.open(outbox_count=50) as one, place.open(outbox_count=50) as two:
        for n in range(40):
            epoch = (await connect(one, f"client{n}")).epoch
            await done(one.subscribe, f"client{n}", epoch, [Subscription("p", 1, 1)])
        assert one.stats()[:2] == (40, 40)
        with trio.fail_after(10):
            while two.stats() != one.stats():
                await trio.sleep(0.01)
            for n in range(10):
                await connect(two, f"more{n}")
            with pytest.raises(StoreError, match="the outbox holds 50 events of 50"):
                await connect(two, "one too many")
            await drain(one)
            while two.stats().outbox:
                await trio.sleep(0.01)
        await connect(two, "there is room")


async def test_the_clock_is_that_of_redis(place: Place, server: client.Redis) -> None:
    async with place.open() as one, place.open() as two:
        for store in (one, two):
            seconds, micros = server.time()
            assert abs(store.clock() - (seconds * 1000 + micros / 1000)) < 500
        readings = []
        end = trio.current_time() + 0.1
        while trio.current_time() < end:
            readings.append(one.clock())
        assert readings == sorted(readings)
        assert 50 < readings[-1] - readings[0] < 1000


def test_a_clock_never_goes_back() -> None:
    own = clock.Clock()
    assert abs(own.now() - time.time() * 1000) < 1000  # nothing read yet
    at = time.monotonic() * 1000
    own.take(at, at, 5_000_000)
    before = own.now()
    assert 5_000_000 <= before < 5_010_000
    own.take(at, at + 1, 4_000_000)  # Redis's clock was set back
    assert own.now() == before
    own.take(at, at + 1, 6_000_000)
    assert 5_999_000 <= own.now() < 6_010_000
    own.take(at, at + 1 + 10 * clock.GOOD_MS, 7_000_000)  # it took long: between two times far apart
    assert own.now() < 6_010_000
    late = at + clock.OLD_MS * 2
    own.take(late, late + 10 * clock.GOOD_MS, 8_000_000 + clock.OLD_MS * 2)  # better than none
    assert own.now() > 7_900_000


async def test_an_online_message_costs_no_command(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "REFRESH_SECONDS", 0.05)
    async with place.open() as store:
        await connect(store, "a")
        before = store.metrics()
        with trio.fail_after(10):
            while store.metrics()["store_reads"] == before["store_reads"]:  # the refresh goes on, and reads only
                await trio.sleep(0.01)
        monkeypatch.setattr(stores, "REFRESH_SECONDS", 1000)
        await trio.sleep(0.2)
        before = store.metrics()
        assert await store.present(["a"])
        after = store.metrics()
        assert after["store_commands"] - before["store_commands"] == 1
        assert after["store_round_trips"] - before["store_round_trips"] == 1
        assert after["store_operations"] == before["store_operations"]


async def test_nothing_is_left_of_clients_that_are_gone(place: Place, server: client.Redis) -> None:
    async with place.open(session_expiry_s=60) as store:
        instance = store._at.keys.instance  # type: ignore[attr-defined]
        for n in range(30):
            name, persistent = f"client{n}", n % 2 == 0
            epoch = (await connect(store, name, persistent=persistent, will=will())).epoch
            await done(store.subscribe, name, epoch, [Subscription("p", 1, 1)])
            await done(store.inbound_put, name, epoch, 1, "KEY")
            await put(store, [waiting(name, "M1"), waiting(name, "M2", packet_id=1)])
            await leave(store, name, epoch, polite=n % 3 == 0)
        await drain(store)
        keys = set(server.scan_iter(f"{instance}{{*", count=1000))
        assert sum(":c:" in key for key in keys) == 30
        expired = await store.expire(10**9, shards(store))
        assert len(expired.sessions) == 15
        assert store.stats() == (0, 0, 0, 0, 0)
        left = set(server.scan_iter(f"{instance}{{*", count=1000))
        owners = {key.partition("}:")[2].partition(":")[0] for key in left}
        assert owners <= {"counts"}, left  # one small row of each shard that was ever used
    erase(shared_redis().url, instance)
    assert not list(server.scan_iter(f"{instance}*", count=1000))
