"""The port `Cluster`: members and inboxes, on one Redis and on a Redis Cluster, as two nodes see them."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from gateway.ports.cluster import Arrived, Cluster, Parcel
from tests.ports.clusters import Nodes, eventually
from tests.ports.stores import done

pytestmark = pytest.mark.services


def named(text: str) -> Parcel:
    return Parcel({"name": text}, text.encode())


def names(arrived: list[Arrived]) -> list[Any]:
    return [each.parcel.head["name"] for each in arrived]


async def beats_of(cluster: Cluster, node: str) -> int:
    return next(member.beats for member in await cluster.members() if member.node == node)


async def lose(cluster: Cluster, node: str, heir: str) -> bool:
    return await cluster.declare_lost(node, await beats_of(cluster, node), heir)


# ---------------------------------------------------------------- membership


async def test_each_start_is_a_new_incarnation_that_all_see(nodes: Nodes) -> None:
    one, other = nodes
    assert await other.members() == []
    joined = [await one.join("gw-1"), await other.join("gw-2"), await one.join("gw-1")]
    assert len(set(joined)) == 3
    assert [node.rpartition("/")[0] for node in joined] == ["gw-1", "gw-2", "gw-1"]
    for cluster in nodes:
        assert sorted(member.node for member in await cluster.members()) == sorted(joined)
    assert not any(member.lost or member.heir for member in await one.members())


async def test_a_name_is_never_given_again(nodes: Nodes) -> None:
    one, _ = nodes
    before = await one.join("gw")
    await one.leave(before)
    assert await one.join("gw") != before


async def test_a_beat_raises_the_lease(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("gw")
    before = await beats_of(other, node)
    assert await one.beat(node, True)
    assert await beats_of(other, node) > before
    assert not await one.beat("gw/0", True)


async def test_a_member_serves_when_it_says_so(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("gw")

    async def serving() -> bool:
        return next(member.serving for member in await other.members() if member.node == node)

    assert not await serving()
    assert await one.beat(node, False)
    assert not await serving()
    assert await one.beat(node, True)
    assert await serving()


async def test_a_node_that_beats_is_not_lost(nodes: Nodes) -> None:
    one, other = nodes
    node, heir = await one.join("a"), await other.join("b")
    seen = await beats_of(other, node)
    assert await one.beat(node, True)
    assert not await other.declare_lost(node, seen, heir)
    assert await one.beat(node, True)
    assert await done(other.send, node, [named("still here")]) is True


async def test_a_lost_node_gets_nothing_and_beats_no_more(nodes: Nodes) -> None:
    one, other = nodes
    node, heir = await one.join("a"), await other.join("b")
    assert await done(other.send, node, [named("before")]) is True
    assert await lose(other, node, heir)
    member = next(member for member in await one.members() if member.node == node)
    assert (member.lost, member.heir) == (True, heir)
    assert await done(one.send, node, [named("after")]) is False
    assert not await one.beat(node, True)
    with trio.fail_after(0.9):  # closed: nothing to wait for
        assert names(await other.inbox(node, "", 10)) == ["before"]
        assert await other.inbox(node, (await other.inbox(node, "", 10))[-1].position, 10) == []


async def test_of_two_heirs_one_is_first(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("dead")
    heirs = [await one.join("b"), await other.join("c")]
    answers: list[bool] = []

    async def declare(cluster: Cluster, heir: str) -> None:
        answers.append(await cluster.declare_lost(node, 0, heir))

    async with trio.open_nursery() as nursery:
        for cluster, heir in zip(nodes, heirs, strict=True):
            nursery.start_soon(declare, cluster, heir)
    assert sorted(answers) == [False, True]


async def test_an_heir_may_say_it_again_and_others_only_when_it_is_gone(nodes: Nodes) -> None:
    one, other = nodes
    node, first, second, third = [await one.join(name) for name in ("dead", "b", "c", "d")]
    assert await lose(one, node, first)
    assert await lose(one, node, first)
    assert not await lose(other, node, second)
    assert await lose(other, first, second)  # the heir dies too
    assert await lose(other, node, second)
    await other.leave(second)
    assert await lose(one, node, third)
    assert next(member.heir for member in await one.members() if member.node == node) == third


async def test_who_left_is_gone_with_its_inbox(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("a")
    await done(other.send, node, [named("unread")])
    await one.leave(node)
    assert await other.members() == []
    assert await other.inbox(node, "", 10) == []
    assert await done(other.send, node, [named("late")]) is False
    assert not await one.beat(node, True)
    assert not await other.declare_lost(node, 0, "x")
    await other.leave(node)  # again, by somebody else


# ---------------------------------------------------------------- inboxes


async def test_parcels_arrive_whole_and_in_order(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("a")
    body = bytes(range(256)) * 3
    assert await done(other.send, node, [Parcel({"n": 1, "to": ["ä", None, 1.5]}, body), Parcel({})]) is True
    assert await done(one.send, node, [named("third")]) is True
    arrived = await one.inbox(node, "", 10)
    assert [each.parcel for each in arrived] == [Parcel({"n": 1, "to": ["ä", None, 1.5]}, body), Parcel({}, b""), named("third")]
    positions = [each.position for each in arrived]
    assert positions == sorted(set(positions))
    assert [each.parcel for each in await one.inbox(node, positions[0], 1)] == [Parcel({})]
    assert await one.inbox(node, positions[1], 10) == arrived[2:]


async def test_what_is_removed_does_not_come_again(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("a")
    await done(other.send, node, [named(text) for text in "abcd"])
    arrived = await one.inbox(node, "", 10)
    await done(one.inbox_remove, node, [arrived[0].position, arrived[2].position])
    await done(one.inbox_remove, node, [arrived[2].position])  # once more
    assert names(await one.inbox(node, "", 10)) == ["b", "d"]
    assert names(await other.inbox(node, arrived[1].position, 10)) == ["d"]


async def test_who_waits_is_woken_at_once(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("a")
    waited: list[float] = []
    after = ""
    for text in "abcdefghij":
        sent_at = 0.0

        async def send(text: str = text) -> None:
            nonlocal sent_at
            await trio.sleep(0.05)  # so that it waits already; it is woken or reads at once otherwise
            sent_at = trio.current_time()
            await done(other.send, node, [named(text)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            (arrived,) = await one.inbox(node, after, 10)
            waited.append(trio.current_time() - sent_at)
        assert names([arrived]) == [text]
        after = arrived.position
    assert min(waited) < 0.05


async def test_an_empty_inbox_is_waited_for(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("a")
    for cluster in (one, other):
        began = trio.current_time()
        assert await cluster.inbox(node, "", 10) == []
        assert 0.8 < trio.current_time() - began < 5


async def test_waiting_delays_nothing_else(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.inbox, node, "", 10)
        await trio.sleep(0.05)
        began = trio.current_time()
        for _ in range(5):
            assert await one.beat(node, True)
            assert await done(one.send, await other.join("b"), [named("x")]) is True
            await one.look("p", 0, [])
        assert trio.current_time() - began < 0.8
        nursery.cancel_scope.cancel()


async def test_long_sends_keep_the_order_of_submission(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("a")
    answers: list[Any] = []
    for big in range(3):
        other.send(node, [Parcel({"name": f"{big} {n}"}, bytes(100_000)) for n in range(25)], answers.append)
        other.send(node, [named(f"{big} last")], answers.append)

    async def all_answered() -> bool:
        return len(answers) == 6

    await eventually(all_answered)
    assert answers == [True] * 6
    expected = [name for big in range(3) for name in (*(f"{big} {n}" for n in range(25)), f"{big} last")]
    assert names(await one.inbox(node, "", 1000)) == expected


async def test_an_inbox_holds_a_hundred_thousand_parcels(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("a")
    assert await done(other.send, node, [Parcel({"name": n}) for n in range(99_999)]) is True
    assert await done(other.send, node, [Parcel({"name": "two"}), Parcel({"name": "too many"})]) is False
    assert await done(other.send, node, [Parcel({"name": "last"})]) is True
    assert await done(other.send, node, [Parcel({"name": "one too many"})]) is False
    (first,) = await one.inbox(node, "", 1)
    await done(one.inbox_remove, node, [first.position])
    assert await done(other.send, node, [Parcel({"name": "fits again"})]) is True


async def test_nobody_sends_to_a_node_that_is_not_there(nodes: Nodes) -> None:
    one, _ = nodes
    assert await done(one.send, "nobody/1", [named("x")]) is False
    assert await one.inbox("nobody/1", "", 10) == []
