"""What the cluster's part of the Redis store leaves when a node dies between two of its steps, and what one does that was frozen there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import redis

from gateway.ports import StoreError
from gateway.ports.cluster import Listed, Parcel
from gateway.store.redis import index, members
from gateway.store.redis.cluster import RedisCluster
from gateway.store.redis.engine import Job, Steps
from gateway.store.redis.keys import Keys
from tests.kit.services import shared_redis
from tests.ports.clusters import fleet, new_instance, opened, session
from tests.ports.stores import done, erase

pytestmark = pytest.mark.services


@pytest.fixture
def instance() -> Iterator[str]:
    name = new_instance()
    yield name
    erase(shared_redis().url, name)


@asynccontextmanager
async def two(instance: str) -> AsyncIterator[tuple[RedisCluster, RedisCluster]]:
    url = shared_redis().url
    async with opened(url, instance) as one, opened(url, instance) as other:
        yield one, other


def keys_of(instance: str) -> set[str]:
    with redis.Redis.from_url(shared_redis().url) as client:
        return {key.decode().removeprefix(instance) for key in client.scan_iter(f"{instance}{{*", count=1000)}


def ttl(instance: str, key: str) -> int:
    with redis.Redis.from_url(shared_redis().url) as client:
        return int(client.ttl(instance + key))


def cut(job: Job[Any], rounds: int) -> Job[bool]:
    """The first rounds of a job; True when they were all."""

    def steps() -> Steps[bool]:
        inner = job()
        results: Any = None
        for _ in range(rounds):
            try:
                calls = inner.send(results)
            except StopIteration:
                return True
            results = yield calls
        try:
            inner.send(results)
        except StopIteration:
            return True
        inner.close()
        return False

    return steps


async def at_each_round(prepare: Callable[[int], Any], check: Callable[[Any, bool], Any]) -> int:
    """Die after each round in turn. prepare: does that many rounds and tells whether these were all. How many there are."""
    rounds = 0
    while True:
        state, complete = await prepare(rounds)
        await check(state, complete)
        if complete:
            return rounds
        rounds += 1


async def test_a_join_that_dies_leaves_nothing_that_stays(instance: str) -> None:
    async with two(instance) as (one, _):
        keys = Keys(instance)

        async def prepare(rounds: int) -> tuple[int, bool]:
            return rounds, await one._writer.ask(cut(partial(members.join, keys, "gw"), rounds))

        async def check(rounds: int, complete: bool) -> None:
            names = {member.node for member in await one.members()}
            assert bool(names) == complete
            for node in names:
                assert await done(one.send, node, [Parcel({})]) is True  # visible, so open
            assert all(ttl(instance, key) > 0 for key in keys_of(instance) if key.startswith("{n:") and key.endswith(":open"))

        assert await at_each_round(prepare, check) == 3


async def test_a_lost_node_whose_inbox_stayed_open_is_closed_by_the_next_heir(instance: str) -> None:
    async with two(instance) as (one, other):
        keys = Keys(instance)
        node, first, second = await one.join("dead"), await one.join("b"), await other.join("c")
        assert not await one._writer.ask(cut(partial(members.declare_lost, keys, node, 0, first), 1))  # marked, not closed; then it dies
        assert await done(other.send, node, [Parcel({"n": 1})]) is True
        assert not await other.declare_lost(node, 0, second)
        assert await other.declare_lost(first, 0, second)
        assert await other.declare_lost(node, 0, second)
        assert await done(one.send, node, [Parcel({"n": 2})]) is False
        assert [each.parcel.head["n"] for each in await other.inbox(node, "", 10)] == [1]


async def test_an_heir_whose_answer_was_lost_closes_the_inbox_when_it_asks_again(instance: str) -> None:
    async with two(instance) as (one, _):
        node, heir = await one.join("dead"), await one.join("b")
        await one._writer.ask(cut(partial(members.declare_lost, Keys(instance), node, 0, heir), 1))
        assert await one.declare_lost(node, 0, heir)
        assert await done(one.send, node, [Parcel({})]) is False


def whole_leave(keys: Keys, node: str) -> Steps[None]:
    """As `RedisCluster.leave`, in one job."""
    yield from members.close_inbox(keys, node)
    yield from index.drop_pulling(keys, node)
    while (yield from index.drop_filters(keys, node)):
        pass
    yield from members.remove(keys, node)


async def test_a_leave_that_dies_anywhere_is_finished_by_the_next_one(instance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "CALL_MOST", 2)  # several rounds for few filters
    async with two(instance) as (one, other):
        keys = Keys(instance)

        async def prepare(rounds: int) -> tuple[str, bool]:
            node = await one.join("dead")
            for parent in ("p", "q"):
                entries = [(f"{parent}/{n}/#", fleet(node)) for n in range(3)]
                await done(one.index, parent, [*entries, (f"{parent}/0/#", session("stays"))], [])
                await done(one.pulled, parent, node, 1)
            await done(one.send, node, [Parcel({})])
            return node, await one._writer.ask(cut(lambda: whole_leave(keys, node), rounds))

        async def check(node: str, complete: bool) -> None:
            seen = node in {member.node for member in await other.members()}
            assert seen or not [key for key in keys_of(instance) if node in key], "nobody would know what is left"
            assert complete <= (not seen)
            for _ in range(2):
                await other.leave(node)
                assert not [key for key in keys_of(instance) if node in key]
                assert await other.members() == []
                for parent in ("p", "q"):
                    filters = [f"{parent}/{n}/#" for n in range(3)]
                    look = await other.look(parent, 0, filters)
                    assert look.listed == {filters[0]: Listed({"stays": session("stays")})}
                    assert look.shapes == ["=/=/#"]
                    assert await other.pulling(parent) == {}

        assert await at_each_round(prepare, check) > 8


async def test_a_node_that_dies_while_it_begins_to_listen_is_struck_out(instance: str) -> None:
    async with two(instance) as (one, other):
        keys = Keys(instance)

        async def prepare(rounds: int) -> tuple[str, bool]:
            node = await one.join("dead")
            await done(one.index, "p", [("p/old", fleet(node))], [])
            job = partial(index.change, keys, "p", [("p/new", fleet(node))], [("p/old", fleet(node))])
            complete = await one._writer.ask(cut(job, rounds))
            await one._writer.ask(cut(partial(index.pulled, keys, "p", node, 1), rounds))
            return node, complete

        async def check(node: str, _: bool) -> None:
            assert await other.declare_lost(node, 0, "heir")
            await other.leave(node)
            look = await other.look("p", 0, ["p/old", "p/new"])
            assert (look.listed, look.shapes) == ({}, [])
            assert await other.pulling("p") == {}
            assert not [key for key in keys_of(instance) if node in key]

        assert await at_each_round(prepare, check) == 4


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("what", ["change", "pulled"])
async def test_a_node_that_was_frozen_and_is_gone_takes_back_what_it_writes(instance: str, what: str, rounds: int) -> None:
    async with two(instance) as (one, other):
        keys = Keys(instance)
        node = await one.join("frozen")
        steps: Steps[Any] = index.change(keys, "p", [("p/a", fleet(node))], []) if what == "change" else index.pulled(keys, "p", node, 1)
        results: Any = None
        for _ in range(rounds):
            results = await one._writer.ask(partial(_one_round, steps.send(results)))
        assert await other.declare_lost(node, 0, "heir")
        await other.leave(node)
        with pytest.raises(StoreError, match="declared lost"):
            await one._writer.ask(partial(_rest, steps, results))
        look = await other.look("p", 0, ["p/a"])
        assert look.listed == {}
        assert not look.shapes
        assert await other.pulling("p") == {}
        assert not [key for key in keys_of(instance) if node in key]


def _one_round(calls: list[Any]) -> Steps[Any]:
    return (yield calls)


def _rest(steps: Steps[Any], results: Any) -> Steps[None]:
    while True:
        results = yield steps.send(results)
