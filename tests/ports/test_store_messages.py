"""What every store does: offline messages, remembered keys, retained messages, expiry (contract sections 6 and 11)."""

from __future__ import annotations

import pytest

from gateway import observe
from gateway.ports import Phase, Put, Retained, Store, Subscription, Waiting
from tests.ports.stores import (
    Place,
    claim_of,
    collect,
    connect,
    done,
    leave,
    moved,
    outbox,
    put,
    queue,
    shards,
    take,
    waiting,
)

DAY = 24 * 3600 * 1000


async def keys(store: Store, client_id: str) -> list[str]:
    return [entry.message.id for entry in await store.offline_get(client_id, 10_000)]


async def test_messages_wait_in_their_order(place: Place) -> None:
    async with place.open() as store:
        await connect(store, "a")
        await connect(store, "b")
        first = [waiting("a", "M1", payload=b"\0", retain=True), waiting("b", "M1", payload=b"\0"), waiting("a", "M2", payload=b"")]
        positions = await put(store, first)
        assert all(positions)
        assert positions[0] < positions[2]
        for entry, position in zip(first, positions, strict=True):
            entry.position = position
        later = await put(store, [waiting("a", "M3", qos=2, source=(queue(3), 99))])
        assert later[0] > positions[2]
    async with place.open() as store:
        found = await store.offline_get("a", 10)
        assert found[:2] == [first[0], first[2]]
        assert (found[2].message.id, found[2].qos, found[2].source) == ("M3", 2, (queue(3), 99))
        assert await store.offline_get("b", 10) == [first[1]]
        assert await store.offline_get("unknown", 10) == []
        assert store.stats().offline == 4
        assert (await connect(store, "a")).backlog == 3


async def test_pages_from_both_ends(place: Place) -> None:
    async with place.open() as store:
        await connect(store, "a")
        positions = await put(store, [waiting("a", f"M{n}") for n in range(6)])
        page = await store.offline_get("a", 2)
        assert [entry.message.id for entry in page] == ["M0", "M1"]
        page = await store.offline_get("a", 2, after=page[-1].position)
        assert [entry.message.id for entry in page] == ["M2", "M3"]
        page = await store.offline_get("a", 3, newest=True)
        assert [entry.message.id for entry in page] == ["M5", "M4", "M3"]
        page = await store.offline_get("a", 3, newest=True, after=positions[3])
        assert [entry.message.id for entry in page] == ["M5", "M4"]


async def test_a_message_is_put_once(place: Place) -> None:
    async with place.open() as store:
        await connect(store, "a")
        await connect(store, "b")
        entries = [waiting("a", "M1"), waiting("a", "M1"), waiting("a", "M1", topic="other"), waiting("b", "M1", topic="other")]
        positions = await put(store, entries)
        assert [bool(position) for position in positions] == [True, False, False, True]
        assert await put(store, [waiting("a", "M1"), waiting("a", "M1", topic="other")]) == [0, 0]
        assert store.stats().offline == 2
        assert [entry.message.topic for entry in await store.offline_get("b", 9)] == ["other"]
        await done(store.offline_remove, "a", [positions[0]])
        assert await put(store, [waiting("a", "M1")]) != [0]  # QoS 1: not remembered


async def test_a_body_stays_while_somebody_waits_for_it(place: Place) -> None:
    async with place.open() as store:
        names = ["a", "b", "c", "d"]
        for name in names:
            await connect(store, name)
        positions = await put(store, [waiting(name, "M1", payload=b"shared") for name in names])
        await done(store.offline_remove, "a", [positions[0]])
        await connect(store, "b", persistent=False)
        for name in ("c", "d"):
            assert [entry.message.payload for entry in await store.offline_get(name, 10)] == [b"shared"]
        assert await put(store, [waiting("a", "M1", payload=b"shared")]) != [0]
        for name, position in (("c", positions[2]), ("d", positions[3])):
            await done(store.offline_remove, name, [position])
        assert [entry.message.payload for entry in await store.offline_get("a", 10)] == [b"shared"]


async def test_entries_of_missing_sessions_are_dropped(place: Place) -> None:
    async with place.open() as store:
        await connect(store, "a")
        epoch = (await connect(store, "left")).epoch
        await leave(store, "left", epoch)
        await connect(store, "clean", persistent=False)
        entries = [waiting("unknown", "M1"), waiting("a", "M1"), waiting("clean", "M1"), waiting("left", "M1")]
        positions = await put(store, entries)
        assert [bool(position) for position in positions] == [False, True, False, True]
        assert store.stats().offline == 2
        assert await put(store, []) == []


async def test_a_put_tells_who_has_the_session(place: Place) -> None:
    async with place.open() as store:
        await connect(store, "online", node="n7")
        await leave(store, "offline", (await connect(store, "offline")).epoch)
        await connect(store, "clean", persistent=False)
        names = ["online", "offline", "clean", "unknown"]
        found = await done(store.offline_put, [waiting(name, "M1") for name in names])
        assert [one.owner for one in found] == ["n7", "", None, None]
        assert [bool(one.position) for one in found] == [True, True, False, False]
        again = await done(store.offline_put, [waiting(name, "M1") for name in names])
        assert again == [Put(0, "n7"), Put(0, ""), Put(0, None), Put(0, None)]
        moved_on = await done(store.offline_put, [waiting("online", "M1", position=found[0].position, phase=Phase.SENT, packet_id=3)])
        assert moved_on == [Put(found[0].position, "n7")]


async def test_what_an_older_connection_had_sent_was_never_sent(place: Place) -> None:
    """A late store of a connection that has been taken over: its packet ids mean nothing to the new one."""
    async with place.open() as store:
        old = (await connect(store, "a")).epoch
        (known,) = await put(store, [waiting("a", "M1", phase=Phase.SENT, packet_id=1, epoch=old)])
        new = (await connect(store, "a", node="n2")).epoch
        assert await put(store, [waiting("a", "M1", position=known, phase=Phase.RELEASED, packet_id=1, qos=2, epoch=old)]) == [0]
        (late, mine) = await put(
            store,
            [
                waiting("a", "M2", phase=Phase.SENT, packet_id=2, epoch=old),
                waiting("a", "M3", phase=Phase.SENT, packet_id=3, epoch=new),
            ],
        )
        assert late
        assert [entry.position for entry in await store.offline_get("a", 9)] == [late]
        inflight = (await connect(store, "a")).inflight
        assert [(entry.position, entry.phase, entry.packet_id) for entry in inflight] == [(known, Phase.SENT, 1), (mine, Phase.SENT, 3)]


@pytest.mark.parametrize("alone", [True, False])
async def test_a_body_need_not_be_shared(place: Place, alone: bool) -> None:
    """`alone` is a guess: it changes nothing that can be seen, whether right or wrong."""
    async with place.open() as store:
        await connect(store, "a")
        await connect(store, "b")
        (one,) = await put(store, [waiting("a", "M1", alone=alone)])
        (two,) = await put(store, [waiting("b", "M1", alone=not alone)])
        assert await put(store, [waiting("a", "M1", alone=not alone)]) == [0]
        await done(store.offline_remove, "a", [one])
        (found,) = await store.offline_get("b", 9)
        assert (found.position, found.message) == (two, waiting("b", "M1").message)


async def test_what_was_sent_is_inflight_in_the_order_of_sending(place: Place) -> None:
    async with place.open() as store:
        await connect(store, "a")
        await put(store, [waiting("a", f"M{n}", qos=2) for n in range(5)])
        newest = await store.offline_get("a", 3, newest=True)
        sent = [moved(entry, Phase.SENT, 10 + n) for n, entry in enumerate(newest)]
        assert await put(store, sent) == [entry.position for entry in sent]
        assert await keys(store, "a") == ["M0", "M1"]
        assert store.stats().offline == 5
        assert await put(store, [sent[0]]) == [sent[0].position]  # sent again as it was: keeps its place
        claimed = await connect(store, "a")
        assert [entry.message.id for entry in claimed.inflight] == ["M4", "M3", "M2"]
        assert [entry.packet_id for entry in claimed.inflight] == [10, 11, 12]
        assert claimed.backlog == 2
        released = [moved(entry, Phase.RELEASED, entry.packet_id) for entry in (sent[1], sent[0])]
        for entry in released:
            await put(store, [entry])
    async with place.open() as store:
        claimed = await connect(store, "a")
    assert [entry for entry in claimed.inflight if entry.phase is Phase.RELEASED] == released  # as their PUBREL went
    assert [entry.message.id for entry in claimed.inflight if entry.phase is Phase.SENT] == ["M2"]


async def test_a_sent_entry_can_wait_again(place: Place) -> None:
    async with place.open() as store:
        await connect(store, "a")
        entry = waiting("a", "M1", packet_id=5, phase=Phase.SENT)
        (entry.position,) = await put(store, [entry])
        assert await keys(store, "a") == []
        await put(store, [moved(entry, Phase.WAITING, 0)])
        assert await keys(store, "a") == ["M1"]
        assert (await connect(store, "a")).inflight == []


async def test_an_entry_that_is_gone_or_another_clients_is_not_touched(place: Place) -> None:
    async with place.open() as store:
        await connect(store, "a")
        await connect(store, "b")
        (mine,) = await put(store, [waiting("a", "M0")])
        *_, foreign = await put(store, [waiting("b", f"M{n}") for n in range(4)])  # "a" has no such position
        assert await put(store, [waiting("a", "M3", position=foreign, phase=Phase.SENT, packet_id=1)]) == [0]
        await done(store.offline_remove, "a", [foreign])
        await done(store.offline_remove, "nobody", [mine])
        assert await keys(store, "b") == ["M0", "M1", "M2", "M3"]
        await done(store.offline_remove, "a", [mine])
        await done(store.offline_remove, "a", [mine])
        assert await put(store, [waiting("a", "M0", position=mine, phase=Phase.SENT)]) == [0]
        assert store.stats().offline == 4


async def test_positions_are_not_used_again(place: Place) -> None:
    async with place.open() as store:
        await connect(store, "a")
        (first,) = await put(store, [waiting("a", "M1")])
        await done(store.offline_remove, "a", [first])
    async with place.open() as store:
        (second,) = await put(store, [waiting("a", "M2")])
        assert second > first
        await done(store.offline_remove, "a", [first])
        assert await keys(store, "a") == ["M2"]


async def test_a_finished_qos2_delivery_is_remembered_until_forgotten(place: Place) -> None:
    async with place.open() as store:
        await connect(store, "a")
        await connect(store, "b")
        entries = [waiting("a", f"M{n}", qos=2, source=(queue(n), n)) for n in range(1500)] + [waiting("a", "Q1", qos=1)]
        positions = await put(store, entries)
        await done(store.offline_remove, "a", positions)
        assert store.stats().offline == 0
        assert await put(store, [waiting("a", "M7", qos=2, source=(queue(7), 7))]) == [0]
        assert await put(store, [waiting("b", "M7", qos=2, source=(queue(7), 7))]) != [0]
    async with place.open() as store:
        chunks = [chunk async for chunk in store.remembered(shards(store))]
        assert max(map(len, chunks)) <= 1000
        rows = [row for chunk in chunks for row in chunk]
        assert sorted(rows) == sorted(("a", f"M{n}", queue(n), n) for n in range(1500))
        assert await put(store, [waiting("a", "M8", topic="other", qos=1)]) == [0]
        await done(store.forget, [("a", f"M{n}") for n in range(1500) if n != 9] + [("b", "M9"), ("nobody", "M9")])
        assert await collect(store.remembered(shards(store))) == [("a", "M9", queue(9), 9)]
        assert await put(store, [waiting("a", "M7", qos=2)]) != [0]


async def test_past_the_limit_the_oldest_go_and_are_counted(place: Place) -> None:
    before = observe.counters()["offline_overflow"]
    async with place.open(offline_count=100) as store:
        for name in ("a", "b"):
            await connect(store, name)
        for n in range(150):
            await put(store, [waiting("ab"[n % 2], f"M{n}", stored_at=1000 + n)])
        assert abs(store.stats().offline - 100) <= 1
        left = await keys(store, "a") + await keys(store, "b")
        assert len(left) == store.stats().offline
        assert {f"M{n}" for n in range(51, 150)} <= set(left)
        removed = 150 - len(left)
    assert observe.counters()["offline_overflow"] - before == removed


async def test_messages_over_the_retention_expire(place: Place) -> None:
    async with place.open(offline_retention_s=60) as store:
        for name in ("a", "b"):
            await connect(store, name)
        old = [waiting("a", f"old{n}", stored_at=1000 + n) for n in range(1200)]
        old += [waiting("b", "old1", stored_at=1001), waiting("b", "sent", stored_at=1000, phase=Phase.SENT, packet_id=4)]
        await put(store, [*old, waiting("a", "young", stored_at=30_000)])
        assert (await store.expire(50_000, shards(store))).offline == 0
        assert await store.expire(65_000, shards(store)) == ({}, 1202)
        assert await keys(store, "a") == ["young"]
        assert (await connect(store, "b")).inflight == []
        assert store.stats().offline == 1
        assert await put(store, [waiting("a", "old1", stored_at=64_000)]) != [0]


async def test_sessions_without_a_connection_expire(place: Place) -> None:
    async with place.open(session_expiry_s=60, offline_retention_s=3600) as store:
        await connect(store, "online", 1000)
        for name, left in (("early", 2000), ("late", 50_000)):
            epoch = (await connect(store, name, 1000)).epoch
            await done(store.subscribe, name, epoch, [Subscription("p/#", 1, 1)])
            await leave(store, name, epoch, left)
        await put(store, [waiting("early", "M1", stored_at=60_000), waiting("late", "M1", stored_at=60_000)])
        assert (await store.expire(61_000, shards(store))).sessions == {}
        assert (await store.expire(63_000, shards(store))).sessions == {"early": ["p/#"]}
        assert await store.present(["online", "early", "late"]) == {"online", "late"}
        assert (store.stats().sessions, store.stats().offline) == (2, 1)
        assert not (await connect(store, "early", 64_000)).present
        claimed = await connect(store, "late", 64_000)  # back in time
        assert claimed.present
        assert (await store.expire(10 * DAY, shards(store))).sessions == {}


async def test_sessions_may_be_kept_for_ever(place: Place) -> None:
    async with place.open(session_expiry_s=0) as store:
        epoch = (await connect(store, "a", 1000)).epoch
        await leave(store, "a", epoch, 2000)
        assert (await store.expire(4000 * DAY, shards(store))).sessions == {}
        assert (await connect(store, "a", 4000 * DAY)).present


async def test_the_clock_of_a_client_outlives_its_session_for_the_session_expiry(place: Place) -> None:
    async with place.open(session_expiry_s=60) as store:
        epoch = (await connect(store, "a", 100_000, persistent=False)).epoch
        await leave(store, "a", epoch, 100_000)
        await store.expire(150_000, shards(store))
        again = await connect(store, "a", 5_000, persistent=False)  # the clock stepped back
        events = [item.event for item in await outbox(store) if item.event]
        assert [(event.time, event.seq) for event in events] == [(100_000, 1), (100_001, 2), (100_002, 3), (100_003, 4)]
        await leave(store, "a", again.epoch, 150_000)
        await store.expire(1_000_000, shards(store))
        assert (await connect(store, "a", 1_000_000)).epoch > again.epoch


async def test_retained_messages(place: Place) -> None:
    async with place.open() as store:
        one = Retained("p/a", b"\0\xff", 1, "ID1", 5)
        for retained in (Retained("p/a", b"older", 0, "ID0", 4), one, Retained("p/ü", b"", 2, "ID2", 6), Retained("q", b"x", 0, "ID3", 7)):
            assert await done(store.retain, retained.topic, retained) is True
        assert await done(store.retain, "q", None) is True
        assert await done(store.retain, "q", None) is True
        assert store.stats().retained == 2
    async with place.open() as store:
        assert await store.retained("", lambda _: True) == [one, Retained("p/ü", b"", 2, "ID2", 6)]
        assert await store.retained("p/a", lambda topic: topic == "p/a") == [one]
        assert await store.retained("q", lambda _: True) == []
        assert store.stats().retained == 2


async def test_retained_messages_are_found_by_prefix_and_match_and_sorted(place: Place) -> None:
    async with place.open() as store:
        topics = [f"p/{n:04}/x" for n in range(2500)] + ["p", "p0", "o/z", "p/\U0001f600", "p/\uffff"]
        for topic in topics:
            store.retain(topic, Retained(topic, b"", 0, "ID", 1), lambda _: None)
        await done(store.retain, "last", None)
        found = [retained.topic for retained in await store.retained("p/", lambda topic: topic[-1] != "7" and topic[5:6] != "7")]
        assert found == sorted(topic for topic in topics if topic.startswith("p/") and topic[5:6] != "7")
        some = await store.retained("p/", lambda topic: topic.endswith("9/x"), limit=120)
        assert [retained.topic for retained in some] == [f"p/{n:04}/x" for n in range(9, 1200, 10)]
        assert len(await store.retained("", lambda _: True)) == len(topics)


async def test_retained_messages_have_a_limit(place: Place) -> None:
    async with place.open(retained_count=2) as store:
        for topic, taken in (("a", True), ("b", True), ("c", False), ("a", True)):
            assert await done(store.retain, topic, Retained(topic, b"x", 0, "ID", 1)) is taken
        await done(store.retain, "b", None)
        assert await done(store.retain, "c", Retained("c", b"x", 0, "ID", 1)) is True
        assert [retained.topic for retained in await store.retained("", lambda _: True)] == ["a", "c"]


async def test_a_put_before_a_claim_is_seen_by_it(place: Place) -> None:
    async with place.open() as store:
        await connect(store, "a")
        results: list[list[Put]] = []
        store.offline_put([waiting("a", "M1")], results.append)
        claimed = await take(store, claim_of("a"))
        assert claimed.backlog == 1
        store.offline_put([waiting("a", "M2")], results.append)
        found: list[Waiting] = await store.offline_get("a", 10)
        assert [entry.position for entry in found] == [one.position for result in results for one in result]


async def test_arguments_belong_to_the_caller_again_at_once(place: Place) -> None:
    async with place.open() as store:
        epoch = (await connect(store, "a")).epoch
        store.retain("noise", None, lambda _: None)  # so that what follows has to wait
        entry = waiting("a", "M1")
        entries, subscriptions, results = [entry], [Subscription("p", 1, 1)], list[object]()
        store.offline_put(entries, results.append)
        store.subscribe("a", epoch, subscriptions, results.append)
        entry.phase, entry.packet_id, entry.position = Phase.SENT, 7, 99
        entries.clear()
        subscriptions.clear()
        claimed = await connect(store, "a")
    assert (claimed.backlog, len(claimed.inflight), len(claimed.subscriptions)) == (1, 0, 1)


async def test_a_put_that_is_repeated_since_its_answer_was_lost_finds_its_place(place: Place) -> None:
    async with place.open() as store:
        epoch = (await connect(store, "a")).epoch
        sent = waiting("a", "M1", qos=2, phase=Phase.SENT, packet_id=5, epoch=epoch)
        (position,) = await put(store, [sent])
        assert position
        assert await put(store, [sent, sent]) == [position, position]
        assert await put(store, [waiting("a", "M1", qos=2, phase=Phase.SENT, packet_id=6, epoch=epoch)]) == [0], "another delivery"
        assert await put(store, [waiting("a", "M1", qos=2)]) == [0]
        await done(store.offline_remove, "a", [position])
        assert await store.offline_get("a", 10) == []
        assert (await put(store, [waiting("a", "M1", payload=b"again")]))[0]
        assert [each.message.payload for each in await store.offline_get("a", 10)] == [b"again"], "no body of the first was left"
