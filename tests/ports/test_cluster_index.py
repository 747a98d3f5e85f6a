"""The port `Cluster`: who listens below a parent topic, and where clients are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.ports import StoreError, Subscription
from gateway.ports.cluster import Cluster, Listed, Place, Wide
from tests.ports.clusters import Nodes, eventually, fleet, session
from tests.ports.stores import PLACES, claim_of, connect, done

pytestmark = pytest.mark.services


async def listed(cluster: Cluster, parent: str, *filters: str) -> dict[str, Listed]:
    return (await cluster.look(parent, 0, filters)).listed


async def shapes(cluster: Cluster, parent: str = "p") -> list[str]:
    found = (await cluster.look(parent, 0, [])).shapes
    assert found is not None
    return sorted(found)


async def test_a_parent_that_nobody_listens_to(nodes: Nodes) -> None:
    look = await nodes[0].look("p", 0, ["p/a"])
    assert (look.listed, look.wide.on) == ({}, False)
    assert not look.changed
    assert not look.shapes
    assert (await nodes[0].look("p", look.version, [])).version == look.version


async def test_sessions_and_nodes_are_listed_on_every_node(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("gw")
    lamp, door = session("GID_a@@@lämp", node, 1, 1_763_740_000_000), session("GID_a@@@door", "", 2, 5)
    await done(one.index, "p", [("p/+/x", lamp), ("p/+/x", fleet(node)), ("p/#", door)], [])
    found = await listed(other, "p", "p/+/x", "p/#", "p/y", "+/x")
    assert found == {
        "p/+/x": Listed({lamp.client_id: lamp}, {node}),
        "p/#": Listed({door.client_id: door}),
    }


async def test_parents_are_apart(nodes: Nodes) -> None:
    one, _ = nodes
    await done(one.index, "p", [("#", session("a"))], [])
    await done(one.index, "q", [("#", session("b"))], [])
    assert list((await listed(one, "p", "#"))["#"].sessions) == ["a"]
    assert list((await listed(one, "q", "#"))["#"].sessions) == ["b"]


async def test_an_entry_is_replaced_and_removed_by_its_name_alone(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("gw")
    await done(one.index, "p", [("p", session("a", "", 0, 1)), ("p", fleet(node))], [])
    await done(other.index, "p", [("p", session("a", "gw/9", 2, 3))], [])
    assert (await listed(one, "p", "p"))["p"] == Listed({"a": session("a", "gw/9", 2, 3)}, {node})
    await done(one.index, "p", [], [("p", session("a")), ("p", fleet(node))])
    assert await listed(one, "p", "p") == {}
    await done(one.index, "p", [("p", session("a", "", 0, 1))], [])
    await done(one.index, "p", [("p", session("a", "", 1, 1))], [])
    await done(one.index, "p", [], [("p", session("a"))])
    assert await shapes(one) == []


async def test_a_look_tells_what_changed_since_another(nodes: Nodes) -> None:
    one, other = nodes
    await done(one.index, "p", [("p/a", session("a")), ("p/b", session("a"))], [])
    first = await other.look("p", 0, [])
    await done(one.index, "p", [("p/b", session("b")), ("p/c", session("b"))], [("p/a", session("a"))])
    second = await other.look("p", first.version, [])
    assert second.version > first.version
    assert second.changed is not None
    assert sorted(second.changed) == ["p/a", "p/b", "p/c"]
    assert second.shapes is None  # `=/=` as before
    third = await other.look("p", second.version, ["p/a", "p/c"])
    assert (third.version, third.changed, third.shapes) == (second.version, [], None)
    assert third.listed == {"p/c": Listed({"b": session("b")})}


async def test_what_changes_nothing_is_no_change(nodes: Nodes) -> None:
    one, _ = nodes
    node = await one.join("gw")
    await done(one.index, "p", [("p/a", session("a")), ("p/a", fleet(node))], [])
    before = await one.look("p", 0, [])
    wide = await done(one.index, "p", [("p/a", session("a")), ("p/a", fleet(node))], [("p/a", session("b")), ("p/z", session("a"))])
    await done(one.index, "p", [], [])
    after = await one.look("p", before.version, [])
    assert (after.version, after.wide, after.changed, after.shapes) == (before.version, wide, [], None)


async def test_what_is_added_and_removed_at_once_is_added(nodes: Nodes) -> None:
    one, _ = nodes
    for _ in range(2):
        await done(one.index, "p", [("p/a", session("a"))], [("p/a", session("a")), ("p/b", session("a"))])
        assert await listed(one, "p", "p/a", "p/b") == {"p/a": Listed({"a": session("a")})}


async def test_shapes_are_those_of_filters_with_listeners(nodes: Nodes) -> None:
    one, other = nodes
    filters = ["p/1/#", "p/2/#", "p/+", "p", "+/1/#", "#", "p//+/", "/p"]
    await done(one.index, "p", [(filter, session("a")) for filter in filters], [])
    await done(one.index, "p", [("p/1/#", session("b"))], [])
    assert await shapes(other) == sorted(["=/=/#", "=/+", "=", "+/=/#", "#", "=/=/+/=", "=/="])
    before = (await other.look("p", 0, [])).version
    await done(one.index, "p", [], [("p/1/#", session("a")), ("p/2/#", session("a"))])
    assert (await other.look("p", before, [])).shapes is None  # p/1/# has a listener still
    await done(one.index, "p", [], [("p/1/#", session("b")), ("p/+", session("a"))])
    look = await other.look("p", before, [])
    assert look.shapes is not None
    assert sorted(look.shapes) == sorted(["=", "+/=/#", "#", "=/=/+/=", "=/="])


async def test_who_is_far_behind_forgets_everything(nodes: Nodes) -> None:
    one, other = nodes
    await done(one.index, "p", [("p/a", session("a"))], [])
    old = (await other.look("p", 0, [])).version
    await done(one.index, "p", [(f"p/{n}", session("a")) for n in range(10_000)], [])
    look = await other.look("p", old, ["p/9999"])
    assert look.changed is not None
    assert len(look.changed) == 10_000
    assert list(look.listed) == ["p/9999"]
    await done(one.index, "p", [("p/b/c", session("a"))], [])
    for filters in ([], ["p/b/c"]):
        look = await other.look("p", old, filters)
        assert look.changed is None
        assert look.shapes is not None
        assert sorted(look.shapes) == ["=/=", "=/=/="]
        assert list(look.listed) == filters


async def test_very_many_filters_at_once(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("gw")
    filters = [f"p/{n}/#" for n in range(2500)]
    await done(one.index, "p", [(filter, entry) for filter in filters for entry in (session("a"), fleet(node))], [])
    found = await listed(other, "p", *filters, "p/none/#")
    assert list(found) == filters
    assert all(each == Listed({"a": session("a")}, {node}) for each in found.values())
    await done(other.index, "p", [], [(filter, session("a")) for filter in filters])
    await one.leave(node)
    assert await listed(other, "p", *filters) == {}
    assert await shapes(other) == []


async def test_operations_take_effect_in_the_order_of_submission(nodes: Nodes) -> None:
    one, other = nodes
    node = await one.join("gw")
    answers: list[Any] = []
    for n in range(50):
        for entry in (session("a", "", 1, n), fleet(node)):
            one.index("p", [("p/a", entry)], [], answers.append)
            one.index("p", [("p/b", entry)], [("p/a", entry)], answers.append)
            one.index("p", [], [("p/b", entry)], answers.append)
    one.index("p", [("p/b", session("a", "", 1, 99)), ("p/b", fleet(node))], [], answers.append)

    async def answered() -> bool:
        return len(answers) == 301

    await eventually(answered)
    assert all(isinstance(answer, Wide) for answer in answers)
    assert await listed(other, "p", "p/a", "p/b") == {"p/b": Listed({"a": session("a", "", 1, 99)}, {node})}
    await one.leave(node)
    assert await listed(other, "p", "p/a", "p/b") == {"p/b": Listed({"a": session("a", "", 1, 99)})}


# ---------------------------------------------------------------- wide and narrow


async def test_the_first_listener_turns_a_parent_wide(nodes: Nodes) -> None:
    one, other = nodes
    first = await done(one.index, "p", [("p/a", session("a"))], [])
    assert first.on
    assert await done(other.index, "p", [("p/b", session("a"))], []) == first
    assert await done(one.index, "p", [], [("p/a", session("a")), ("p/b", session("a"))]) == first  # the last one gone: wide yet
    assert (await other.look("p", 0, [])).wide == first


async def test_a_parent_turns_narrow_only_when_nobody_listens(nodes: Nodes) -> None:
    one, other = nodes
    wide = await done(one.index, "p", [("p/a", session("a"))], [])
    assert await other.narrow("p", wide.version) == wide
    await done(one.index, "p", [], [("p/a", session("a"))])
    assert await other.narrow("p", wide.version - 1) == wide  # asked for another version
    narrow = await other.narrow("p", wide.version)
    assert (narrow.on, narrow.version > wide.version) == (False, True)
    assert (await one.look("p", (await one.look("p", 0, [])).version, [])).wide == narrow
    assert await one.narrow("p", narrow.version) == narrow
    again = await done(one.index, "p", [("p/a", session("a"))], [])
    assert (again.on, again.version > narrow.version) == (True, True)
    assert (await one.narrow("nobody", 0)).on is False


async def test_who_pulls_with_which_version(nodes: Nodes) -> None:
    one, other = nodes
    a, b = await one.join("a"), await other.join("b")
    assert await one.pulling("p") == {}
    await done(one.pulled, "p", a, 7)
    await done(other.pulled, "p", b, 7)
    await done(one.pulled, "p", a, 8)
    assert await other.pulling("p") == {a: 8, b: 7}
    assert await other.pulling("q") == {}


# ---------------------------------------------------------------- nodes that go


async def test_who_leaves_is_struck_out_everywhere(nodes: Nodes) -> None:
    one, other = nodes
    gone, stays = await one.join("a"), await other.join("b")
    for node, cluster in ((gone, one), (stays, other)):
        for parent in ("p", "q"):
            await done(cluster.index, parent, [(f"{parent}/x", fleet(node)), (f"{parent}/{node}", fleet(node))], [])
            await done(cluster.pulled, parent, node, 3)
    await done(one.index, "p", [("p/x", session("s", gone))], [])
    before = (await other.look("p", 0, [])).version
    await other.leave(gone)
    for parent, sessions in (("p", {"s": session("s", gone)}), ("q", {})):
        assert await listed(one, parent, f"{parent}/x", f"{parent}/{gone}") == {f"{parent}/x": Listed(sessions, {stays})}
        assert await one.pulling(parent) == {stays: 3}
    assert set((await other.look("p", before, [])).changed or []) == {"p/x", f"p/{gone}"}


async def test_a_node_that_was_declared_lost_writes_nothing_into_the_index(nodes: Nodes) -> None:
    one, other = nodes
    lost, heir = await one.join("a"), await other.join("b")
    await done(one.index, "p", [("p/x", fleet(lost))], [])
    assert await other.declare_lost(lost, 0, heir)
    with pytest.raises(StoreError, match="declared lost"):
        await done(one.index, "p", [("p/y", fleet(lost))], [])
    with pytest.raises(StoreError, match="declared lost"):
        await done(one.pulled, "p", lost, 1)
    await other.leave(lost)
    assert await listed(one, "p", "p/x", "p/y") == {}
    assert await one.pulling("p") == {}


# ---------------------------------------------------------------- where clients are


async def test_clients_are_located(tmp_path: Path) -> None:
    place = PLACES["redis"](tmp_path)
    try:
        async with place.open() as store:
            assert store.cluster is not None
            await connect(store, "kept", node="n1")
            await connect(store, "clean", node="n2", persistent=False)
            claimed = await connect(store, "away", node="n1")
            await done(store.subscribe, "away", claimed.epoch, [Subscription("p/a", 1, 1)])
            assert await store.abandoned("n1", 2000, lambda: claim_of("x").channel_id) == 2
            await connect(store, "kept", 3000, node="n3")
            found = await store.cluster.locate(["kept", "clean", "away", "nobody"])
            assert found == {"kept": Place("n3", True), "clean": Place("n2", False), "away": Place("", True)}
            assert await store.cluster.locate([]) == {}
    finally:
        place.erase()
