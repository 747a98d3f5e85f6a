"""How the cluster's part of the Redis store lies in Redis: bounds, what keys are left, what a look costs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import redis

from gateway.ports.cluster import Parcel
from gateway.store.redis import inbox, index
from gateway.store.redis.engine import Lockstep, Steps
from tests.kit.services import shared_redis
from tests.ports.clusters import fleet, new_instance, opened, session
from tests.ports.stores import done, erase

pytestmark = pytest.mark.services


@pytest.fixture
def instance() -> Iterator[str]:
    name = new_instance()
    yield name
    erase(shared_redis().url, name)


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    with redis.Redis.from_url(shared_redis().url) as client:
        yield client


def engine_of(line: object) -> Lockstep:
    engine = line.pump._engine  # type: ignore[attr-defined]
    assert isinstance(engine, Lockstep)
    return engine


async def test_an_inbox_is_bounded_in_bytes_and_counts_them_exactly(
    instance: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "BYTES_MOST", 10_000)
    async with opened(shared_redis().url, instance) as cluster:
        node = await cluster.join("a")

        def counted() -> int:
            return int(client.get(f"{instance}{{n:{node}}}:open") or -1)

        sizes = [2 + size for size in (5000, 2000, 0)]  # {} and the body
        assert await done(cluster.send, node, [Parcel({}, bytes(size - 2)) for size in sizes]) is True
        assert counted() == sum(sizes)
        assert await done(cluster.send, node, [Parcel({}, bytes(10_000 - sum(sizes) - 1))]) is False
        assert await done(cluster.send, node, [Parcel({}, bytes(10_000 - sum(sizes) - 2))]) is True
        assert counted() == 10_000
        arrived = await cluster.inbox(node, "", 10)
        for _ in range(2):  # the second time nothing is there any more
            await done(cluster.inbox_remove, node, [arrived[0].position, arrived[2].position])
            assert counted() == 10_000 - sizes[0] - sizes[2]
        await done(cluster.inbox_remove, node, [each.position for each in arrived])
        assert counted() == 0


async def test_of_a_long_send_without_room_nothing_is_sent(instance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "BYTES_MOST", 3_000_000)
    async with opened(shared_redis().url, instance) as cluster:
        node = await cluster.join("a")
        parcels = [Parcel({}, bytes(1_000_000))] * 3
        assert len(inbox.chunks(inbox.packed(parcels))) == 3
        assert await done(cluster.send, node, parcels) is False
        await cluster.declare_lost(node, 0, "heir")
        assert await cluster.inbox(node, "", 10) == []


def test_a_send_is_cut_into_calls_that_hold_up_nobody() -> None:
    parcels = [inbox.Packed(b"{}", bytes(size)) for size in (10, 2 << 20, 10, 500_000, 500_000, 500_000)]
    assert [len(part) for part in inbox.chunks(parcels)] == [1, 1, 3, 1]
    assert [len(part) for part in inbox.chunks([inbox.Packed(b"{}", b"")] * 2001)] == [1000, 1000, 1]
    assert inbox.chunks([]) == [[]]


async def test_keys_of_a_node_expire_when_it_beats_no_more(instance: str, client: redis.Redis) -> None:
    async with opened(shared_redis().url, instance) as cluster:
        node = await cluster.join("a")
        await done(cluster.send, node, [Parcel({})])
        await done(cluster.index, "p", [("p/a", fleet(node))], [])
        await done(cluster.pulled, "p", node, 1)
        assert await cluster.beat(node, True)
        mine = {key.decode() for key in client.scan_iter(f"{instance}{{n:*", count=1000)}
        assert mine == {f"{instance}{{n:{node}}}:{name}" for name in ("open", "inbox", "filters", "parents")}
        assert all(client.ttl(key) > 24 * 3600 for key in mine)
        client.delete(f"{instance}{{n:{node}}}:open")
        assert not await cluster.beat(node, True)  # nobody could reach it


async def test_nothing_is_left_but_the_heads_of_parents(instance: str, client: redis.Redis) -> None:
    async with opened(shared_redis().url, instance) as cluster:
        for parent in ("p", "q"):
            node = await cluster.join("a")
            await done(cluster.send, node, [Parcel({})])
            await done(cluster.index, parent, [(f"{parent}/a", fleet(node)), (f"{parent}/b", session("s"))], [])
            await done(cluster.pulled, parent, node, 1)
            await done(cluster.index, parent, [], [(f"{parent}/b", session("s"))])
            await cluster.leave(node)
    left = {key.decode().removeprefix(instance) for key in client.scan_iter(f"{instance}{{*", count=1000)}
    assert left == {"{nodes}:incarnation", "{p:p}:head", "{p:q}:head", "{p:p}:log", "{p:q}:log"}
    assert all(0 < client.ttl(f"{instance}{{p:{parent}}}:log") <= index.LOG_SECONDS for parent in ("p", "q"))


async def test_a_look_that_finds_nothing_new_is_one_command(instance: str) -> None:
    async with opened(shared_redis().url, instance) as cluster:
        reading = engine_of(cluster._reader)
        await done(cluster.index, "p", [("p/a", session("a"))], [])
        version = (await cluster.look("p", 0, [])).version
        for filters in ([], ["p/a", "p/b", "p/c"]):
            commands, trips = reading.commands, reading.round_trips
            assert (await cluster.look("p", version, filters)).changed == []
            assert (reading.commands - commands, reading.round_trips - trips) == (1, 1)
        await done(cluster.index, "p", [("p/b", session("a"))], [])
        trips = reading.round_trips
        assert (await cluster.look("p", version, ["p/b"])).changed == ["p/b"]
        assert reading.round_trips == trips + 1


async def test_sessions_that_subscribe_together_take_one_round_trip(instance: str) -> None:
    async with opened(shared_redis().url, instance) as cluster:
        node = await cluster.join("gw")
        writing = engine_of(cluster._writer)
        trips = writing.round_trips
        answers: list[object] = []
        for n in range(100):
            cluster.index("p", [(f"p/{n}/#", session(f"s{n}"))], [], answers.append)
        await done(cluster.index, "p", [], [])
        assert len(answers) == 100
        assert writing.round_trips - trips <= 2  # the first job starts alone
        trips = writing.round_trips
        for n in range(100):
            cluster.index("p", [(f"p/{n}/+", fleet(node))], [], answers.append)
        await done(cluster.index, "p", [("p", fleet(node))], [])
        assert len(answers) == 200
        assert writing.round_trips - trips <= 6


async def test_who_knew_more_than_a_redis_that_lost_its_data_is_told_to_forget(instance: str) -> None:
    async with opened(shared_redis().url, instance) as cluster:
        await done(cluster.index, "p", [(f"p/{n}", session("a")) for n in range(100)], [])
        known = await cluster.look("p", 0, [])
        erase(shared_redis().url, instance)
        lost = await cluster.look("p", known.version, [])
        assert (lost.changed, lost.shapes, lost.wide.on) == (None, [], False)
        assert lost.version < known.version
        wide = await done(cluster.index, "p", [("p/x/y", session("a"))], [])
        again = await cluster.look("p", known.version, ["p/x/y"])
        assert (again.changed, again.shapes, list(again.listed)) == (None, ["=/=/="], ["p/x/y"])
        assert again.version > known.version
        assert wide.version > known.wide.version


def one_round(calls: list[Any]) -> Steps[Any]:
    return (yield calls)


async def test_a_look_in_several_calls_is_as_old_as_the_oldest(instance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "CALL_MOST", 1)
    async with opened(shared_redis().url, instance) as cluster:
        await done(cluster.index, "p", [("p/a", session("a"))], [])
        first = await cluster.look("p", 0, [])
        steps = index.look(cluster._keys, "p", first.version, ["p/a", "p/b"])
        early, late = next(steps)
        replies = await cluster._reader.ask(partial(one_round, [early]))
        await done(cluster.index, "p", [("p/a", session("b")), ("p/b", session("b"))], [])
        replies += await cluster._reader.ask(partial(one_round, [late]))
        for both in (replies, replies[::-1]):  # in whichever order they were executed
            steps = index.look(cluster._keys, "p", first.version, ["p/a", "p/b"])
            next(steps)
            with pytest.raises(StopIteration) as end:
                steps.send(both)
            assert (end.value.value.version, end.value.value.changed) == (first.version, [])


async def test_a_parent_that_was_narrow_and_wide_again_meanwhile_stays_wide(instance: str) -> None:
    async with opened(shared_redis().url, instance) as cluster:
        wide = await done(cluster.index, "p", [("p/a", session("a"))], [])
        await done(cluster.index, "p", [], [("p/a", session("a"))])
        steps = index.narrow(cluster._keys, "p", wide.version)
        calls = steps.send(await cluster._writer.ask(partial(one_round, next(steps))))  # it saw the version that it was asked for
        await cluster.narrow("p", wide.version)
        again = await done(cluster.index, "p", [("p/a", session("a"))], [("p/b", session("a"))])
        await done(cluster.index, "p", [], [("p/a", session("a"))])
        with pytest.raises(StopIteration) as end:
            steps.send(await cluster._writer.ask(partial(one_round, calls)))
        assert end.value.value == again


@pytest.mark.parametrize(
    ("filter", "shape"),
    [
        ("cmd/7/#", "=/=/#"),
        ("#", "#"),
        ("+", "+"),
        ("a", "="),
        ("/", "=/="),
        ("a//+/", "=/=/+/="),
        ("+/a/+/#", "+/=/+/#"),
        ("a+/#b", "=/="),
    ],
)
def test_the_shape_of_a_filter(filter: str, shape: str) -> None:
    assert index.shape_of(filter) == shape
