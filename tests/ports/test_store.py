"""What every store does: the registry and the outbox. The rest: test_store_sessions, test_store_messages, test_store_model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from gateway.ports import Message, Owned, Properties, Release, Retained, StoreError, Subscription, Will
from tests.ports.stores import (
    Place,
    claim_of,
    connect,
    done,
    drain,
    kinds,
    leave,
    neighbours,
    new_id,
    outbox,
    release_of,
    shards,
    take,
    will,
)


async def test_a_claim_appends_its_connect_event(place: Place) -> None:
    async with place.open() as store:
        claim = claim_of("a", 1000)
        claimed = await take(store, claim)
        (item,) = await outbox(store)
    assert not claimed.present
    assert item.client_id == "a"
    assert item.will is None
    assert item.event is not None
    assert item.event == (claim.event_ids[0], "a", "connect", 1000, 1, claim.channel_id, "10.0.0.1:1883", "", "n1")


async def test_a_taken_over_owner_leaves_its_event_and_will_before_the_connect(place: Place) -> None:
    async with place.open() as store:
        first = claim_of("a", 1000, will=will("first"))
        older = await take(store, first)
        second = claim_of("a", 3000, node="n2")
        newer = await take(store, second)
        items = await outbox(store)
    assert newer.epoch > older.epoch
    assert kinds(items) == ["connect", "tcpclean", "will", "connect"]
    gone = items[1].event
    assert gone is not None
    assert (gone.id, gone.channel_id, gone.reason, gone.node) == (second.event_ids[1], first.channel_id, "taken_over", "n1")
    assert items[2].will is not None
    assert items[2].will.message.body == b"first"
    assert [item.position for item in items] == sorted({item.position for item in items})


async def test_a_released_owner_is_not_taken_over(place: Place) -> None:
    async with place.open() as store:
        claimed = await connect(store, "a", will=will())
        assert await leave(store, "a", claimed.epoch)
        await connect(store, "a", 5000)
        assert kinds(await outbox(store)) == ["connect", "disconnect", "tcpclean", "connect"]


@pytest.mark.parametrize("persistent", [True, False])
async def test_a_polite_release_discards_the_will(place: Place, persistent: bool) -> None:
    async with place.open() as store:
        claimed = await connect(store, "a", will=will(), persistent=persistent)
        release = Release("a", claimed.epoch, "", "n1", True, "bye", 2000, (new_id(), new_id()))
        assert await store.release(release) is True
        items = await outbox(store)
    assert kinds(items) == ["connect", "disconnect", "tcpclean"]
    events = [item.event for item in items if item.event]
    assert [event.id for event in events[1:]] == list(release.event_ids)
    assert [event.reason for event in events[1:]] == ["bye", "bye"]
    assert len({event.channel_id for event in events}) == 1


async def test_an_impolite_release_publishes_the_will(place: Place) -> None:
    async with place.open() as store:
        claimed = await connect(store, "a", will=will("last words"))
        assert await leave(store, "a", claimed.epoch, polite=False)
        items = await outbox(store)
    assert kinds(items) == ["connect", "tcpclean", "will"]
    assert items[2].will is not None
    assert items[2].will.message.body == b"last words"


async def test_only_the_owner_releases_and_only_once(place: Place) -> None:
    async with place.open() as store:
        older = await connect(store, "a", will=will())
        newer = await connect(store, "a", node="n2")
        before = await outbox(store)
        assert await leave(store, "a", older.epoch, polite=False) is False
        assert await leave(store, "nobody", newer.epoch) is False
        assert kinds(await outbox(store)) == kinds(before)
        assert await leave(store, "a", newer.epoch, polite=False) is True
        assert await leave(store, "a", newer.epoch, polite=False) is False
        assert kinds(await outbox(store)) == ["connect", "tcpclean", "will", "connect", "tcpclean"]


async def test_event_times_grow_whatever_the_clock_and_the_session_do(place: Place) -> None:
    async with place.open() as store:
        claimed = await connect(store, "a", 10_000, persistent=False)
        await leave(store, "a", claimed.epoch, 9_000)  # the clock stepped back; the session is deleted
    async with place.open() as store:
        await connect(store, "a", 5_000, persistent=False)
        await connect(store, "a", 5_000, node="n2")
        await store.abandoned("n2", 4_000, new_id)
        await connect(store, "a", 20_000)
        events = [item.event for item in await outbox(store) if item.event]
    assert [event.time for event in events] == [10_000, 10_001, 10_002, 10_003, 10_004, 10_005, 10_006, 20_000]
    assert [event.seq for event in events] == list(range(1, 9))


async def test_a_gentle_claim_asks_first(place: Place) -> None:
    async with place.open() as store:
        claim = claim_of("a", will=will())
        owner = await take(store, claim)
        before = await outbox(store)
        for persistent in (True, False):
            assert await store.claim(claim_of("a", node="n2", gentle=True, persistent=persistent)) == Owned("n1", claim.channel_id)
        assert await outbox(store) == before
        assert await done(store.subscribe, "a", owner.epoch, [Subscription("p", 1, 1)]) is True  # still the owner
        await connect(store, "a", gentle=True)  # this node's own connection needs no asking
        assert kinds(await outbox(store)) == ["connect", "tcpclean", "will", "connect"]
        again = await connect(store, "a", node="n2")
        assert await leave(store, "a", again.epoch, node="n2")
        assert (await connect(store, "a", gentle=True)).present  # nobody's
        await connect(store, "never seen", gentle=True)


async def test_a_release_without_an_epoch_goes_by_the_channel(place: Place) -> None:
    async with place.open() as store:
        older, newer = claim_of("a"), claim_of("a", node="n2", will=will())
        await store.claim(older)
        await store.claim(newer)
        assert await store.release(release_of("a", 0, channel_id=older.channel_id)) is False
        assert await store.release(release_of("a", 0, channel_id="unknown")) is False
        assert await store.release(release_of("nobody", 0, channel_id=newer.channel_id)) is False
        assert await store.release(release_of("a", 0, channel_id=newer.channel_id, polite=False, node="n2")) is True
        assert await store.release(release_of("a", 0, channel_id=newer.channel_id, polite=False, node="n2")) is False
        assert kinds(await outbox(store)) == ["connect", "tcpclean", "connect", "tcpclean", "will"]


async def test_a_claim_tells_what_filters_it_deleted(place: Place) -> None:
    async with place.open() as store:
        epoch = (await connect(store, "a")).epoch
        await done(store.subscribe, "a", epoch, [Subscription("p/#", 1, 1), Subscription("q", 0, 1)])
        kept = await connect(store, "a")
        assert (kept.dropped, sorted(kept.subscriptions)) == ([], [Subscription("p/#", 1, 1), Subscription("q", 0, 1)])
        gone = await connect(store, "a", persistent=False)
        assert (gone.present, sorted(gone.dropped), gone.subscriptions) == (False, ["p/#", "q"], [])
        assert (await connect(store, "a")).dropped == []


async def test_the_session_present_flag(place: Place) -> None:
    async with place.open() as store:
        assert not (await connect(store, "a", persistent=False)).present
        assert not (await connect(store, "a", persistent=True)).present  # after a clean session
        assert (await connect(store, "a", persistent=True)).present  # taken over
        claimed = await connect(store, "a", persistent=True)
        await leave(store, "a", claimed.epoch)
    async with place.open() as store:
        assert (await connect(store, "a", persistent=True)).present
        assert not (await connect(store, "a", persistent=False)).present
        assert not (await connect(store, "a", persistent=True)).present


async def test_epochs_grow_over_restarts_and_deleted_sessions(place: Place) -> None:
    epochs = []
    for persistent in (True, False, False, True):
        async with place.open() as store:
            claimed = await connect(store, "a", persistent=persistent)
            epochs.append(claimed.epoch)
            await leave(store, "a", claimed.epoch)
    assert epochs == sorted(set(epochs))


async def test_many_connections_of_a_lost_node(place: Place) -> None:
    async with place.open() as store:
        async with trio.open_nursery() as nursery:
            for n in range(1500):
                nursery.start_soon(lambda n=n: connect(store, f"client{n}", node=f"n{n % 3}"))  # type: ignore[misc]
        await drain(store)
        assert await store.abandoned("n0", 5000, new_id) == 500
        items = await drain(store)
        assert {item.client_id for item in items} == {f"client{n}" for n in range(0, 1500, 3)}
        assert len(items) == len({item.event.id for item in items if item.event}) == 500
        assert await store.abandoned("n0", 5000, new_id) == 0


async def test_an_abandoned_node_loses_what_it_owned(place: Place) -> None:
    async with place.open() as store:
        clean = await connect(store, "clean", persistent=False, will=will("clean's"))
        kept = await connect(store, "kept", will=will("kept's"))
        await connect(store, "other", node="n2")
        await done(store.subscribe, "kept", kept.epoch, [Subscription("parent/#", 1, 1)])
        await done(store.subscribe, "clean", clean.epoch, [Subscription("parent/#", 1, 1)])
    async with place.open() as store:  # the node's next life
        await drain(store)
        assert await store.abandoned("n1", 5000, new_id) == 2
        items = await outbox(store)
        assert await store.abandoned("n1", 5000, new_id) == 0
        assert await leave(store, "kept", kept.epoch) is False
        assert await store.present(["clean", "kept", "other"]) == {"kept", "other"}
        again = await connect(store, "kept")
    by_client = {name: [item for item in items if item.client_id == name] for name in ("clean", "kept", "other")}
    assert kinds(by_client["clean"]) == kinds(by_client["kept"]) == ["tcpclean", "will"]
    assert not by_client["other"]
    event = by_client["kept"][0].event
    assert event is not None
    assert (event.reason, event.node, event.time) == ("node_lost", "n1", 5000)
    assert again.present
    assert again.subscriptions == [Subscription("parent/#", 1, 1)]


async def test_the_outbox_gives_items_by_position_and_forgets_removed_ones(place: Place) -> None:
    async with place.open() as store:
        names = neighbours(store, 6)
        shard = store.shard_of(names[0])
        for name in names[:5]:
            await connect(store, name)
        items = await store.outbox(shard, 0, 3)
        assert [item.client_id for item in items] == names[:3]
        assert [item.client_id for item in await store.outbox(shard, items[-1].position, 10)] == names[3:5]
        await done(store.outbox_remove, shard, [items[0].position, items[2].position])
        await done(store.outbox_remove, shard, [items[0].position])
        assert store.stats().outbox == 3
        newest = (await outbox(store))[-1].position
        await drain(store)
        assert store.stats().outbox == 0
    async with place.open() as store:
        await connect(store, names[5])
        (item,) = await outbox(store)
        assert item.position > newest


async def test_each_client_has_its_shard(place: Place) -> None:
    async with place.open() as store:
        names = [f"client{n}" for n in range(300)]
        for name in names:
            await connect(store, name)
        full = await store.outbox_waiting(shards(store))
        assert full == {store.shard_of(name) for name in names}
        assert await store.outbox_waiting([]) == set()
        for shard in full:
            assert {store.shard_of(item.client_id) for item in await store.outbox(shard, 0, 1000)} == {shard}
        emptied = store.shard_of(names[0])
        await done(store.outbox_remove, emptied, [item.position for item in await store.outbox(emptied, 0, 1000)])
        if store.shards > 1:
            assert await store.outbox_waiting(shards(store)) == full - {emptied}
            assert await store.outbox_waiting([emptied]) == set()
        await drain(store)
        with trio.fail_after(10):
            while await store.outbox_waiting(shards(store)):
                await trio.sleep(0.01)


async def test_the_outbox_wakes_its_reader(place: Place) -> None:
    async with place.open() as store:
        woken: list[int] = []
        store.on_outbox(woken.append)
        await done(store.retain, "t", None)
        assert not woken
        claimed = await connect(store, "a")
        assert woken == [store.shard_of("a")]  # no later than the answer
        assert kinds(await outbox(store)) == ["connect"]
        assert await leave(store, "a", claimed.epoch)
        assert woken == [store.shard_of("a")] * 2
        assert not await leave(store, "a", claimed.epoch)
        await connect(store, "b")
        await store.abandoned("n1", 5000, new_id)
        assert set(woken[2:]) == {store.shard_of("b")}


async def test_a_full_outbox_refuses_claims_and_nothing_else(place: Place) -> None:
    async with place.open(outbox_count=3) as store:
        first = await connect(store, "a", will=will())
        await connect(store, "b")
        with pytest.raises(StoreError, match="outbox"):
            await connect(store, "a", node="n2")  # needs room for three
        await connect(store, "c")
        with pytest.raises(StoreError, match="outbox"):
            await connect(store, "d")
        assert await store.present(["a", "b", "c", "d"]) == {"a", "b", "c"}
        assert await leave(store, "a", first.epoch, polite=False)  # still the owner, and a release always has room
        items = await outbox(store)
        assert kinds([item for item in items if item.client_id == "a"]) == ["connect", "tcpclean", "will"]
        assert len(items) == 5
        await drain(store)
        await connect(store, "d")


@pytest.mark.parametrize(
    "retained",
    [
        None,
        Retained("parent/w", b"\0bye\xff", 1, "AB", 77),
        Retained("parent/ü", b"another", 2, "AB", 77),
        Retained("parent/w", b"", 0, "AB", 77),
    ],
)
async def test_a_will_comes_back_as_it_was(place: Place, retained: Retained | None) -> None:
    properties = Properties({"mqttSecondTopic": '/w"\\', "": "x", "ünï": "\0\u2028"})
    message = Message("parent", b"\0bye\xff", "MQTT2MQ", properties, "key", "AB", ordered=True)
    async with place.open() as store:
        await connect(store, "a", will=Will(message, retained))
    async with place.open() as store:
        await connect(store, "a")
        found = (await outbox(store))[2].will
    assert found is not None
    for name in Message.__slots__:
        assert getattr(found.message, name) == getattr(message, name), name
    assert found.retained == retained


async def test_a_claim_replaces_the_will(place: Place) -> None:
    async with place.open() as store:
        claimed = await connect(store, "a", will=will("old"))
        await leave(store, "a", claimed.epoch)
        claimed = await connect(store, "a")
        await leave(store, "a", claimed.epoch, polite=False)
        assert "will" not in kinds(await outbox(store))


async def test_operations_of_one_client_keep_their_order(place: Place) -> None:
    """Asked in one breath: a claim, a subscription with its epoch, and a claim that shows it."""
    async with place.open() as store:
        claimed = await connect(store, "a")
        order: list[str] = []

        def note(filter: str) -> Callable[[object], None]:
            return lambda _: order.append(filter)

        async with trio.open_nursery() as nursery:
            for n in range(50):
                filter = f"parent/{n}"
                store.subscribe("a", claimed.epoch, [Subscription(filter, 1, n)], note(filter))
            store.unsubscribe("a", claimed.epoch, ["parent/7"], note("gone"))
            nursery.start_soon(connect, store, "a")
        again = await connect(store, "a")
    assert order == [f"parent/{n}" for n in range(50)] + ["gone"]
    assert {subscription.filter for subscription in again.subscriptions} == {f"parent/{n}" for n in range(50) if n != 7}


async def test_many_claims_at_once(place: Place) -> None:
    async with place.open() as store:
        async with trio.open_nursery() as nursery:
            for n in range(2000):
                nursery.start_soon(connect, store, f"client{n % 1000}")
        items = await outbox(store)
        assert store.stats().sessions == 1000
    assert len(items) == 3000
    seen: dict[str, int] = {}
    for item in items:
        assert item.event is not None
        assert item.event.seq == seen.get(item.client_id, 0) + 1
        seen[item.client_id] = item.event.seq


async def test_health_and_metrics(place: Place) -> None:
    async with place.open() as store:
        await connect(store, "a")
        for health in await store.health():
            assert health.ok, health
        assert store.metrics()
        assert store.stats() == (1, 0, 0, 0, 1)


async def test_a_closed_store_answers_with_errors(place: Place) -> None:
    async with place.open() as store:
        await connect(store, "a")
    with pytest.raises(StoreError):
        await connect(store, "a")
    with pytest.raises(StoreError):
        await done(store.retain, "t", None)
    assert not (await store.health())[0].ok


async def test_what_was_submitted_is_finished_at_the_end(place: Place) -> None:
    results: list[object] = []
    async with place.open() as store:
        for n in range(3000):
            store.retain(f"t{n:04}", Retained(f"t{n:04}", b"x", 1, "ID", 1), results.append)
    assert results == [True] * 3000
    async with place.open() as store:
        assert store.stats().retained == 3000
