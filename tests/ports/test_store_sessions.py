"""What every store does: subscriptions, QoS 2 packet ids of the device, presence, marks."""

from __future__ import annotations

from typing import Any

from gateway.ports import Phase, Subscription
from tests.ports.stores import Place, collect, connect, done, leave, put, queue, shards, waiting


async def test_subscriptions_are_added_replaced_and_removed(place: Place) -> None:
    async with place.open() as store:
        epoch = (await connect(store, "a")).epoch
        await done(store.subscribe, "a", epoch, [Subscription("p/#", 1, 10), Subscription("p/ü/+", 0, 10)])
        await done(store.subscribe, "a", epoch, [Subscription("p/#", 2, 20), Subscription("q", 1, 20), Subscription("q", 0, 21)])
        assert store.stats().subscriptions == 3
        await done(store.unsubscribe, "a", epoch, ["p/ü/+", "never/made"])
        assert store.stats().subscriptions == 2
        await leave(store, "a", epoch)
    async with place.open() as store:
        claimed = await connect(store, "a")
        assert store.stats().subscriptions == 2
    assert sorted(claimed.subscriptions) == [Subscription("p/#", 2, 20), Subscription("q", 0, 21)]


async def test_all_subscriptions_are_streamed_in_chunks(place: Place) -> None:
    async with place.open() as store:
        wanted = set()
        for name in ("a", "b", "c"):
            epoch = (await connect(store, name)).epoch
            made = [Subscription(f"p/{n}", n % 3, n) for n in range(900)]
            await done(store.subscribe, name, epoch, made)
            wanted |= {(name, subscription) for subscription in made}
        chunks = [chunk async for chunk in store.subscriptions()]
        rows = [row for chunk in chunks for row in chunk]
        assert len(rows) == 2700
        assert set(rows) == wanted
        assert max(map(len, chunks)) <= 1000


async def test_the_stream_goes_on_while_it_changes(place: Place) -> None:
    async with place.open() as store:
        epoch = (await connect(store, "a")).epoch
        await done(store.subscribe, "a", epoch, [Subscription(f"p/{n:04}", 1, n) for n in range(1500)])
        seen = []
        async for chunk in store.subscriptions():
            seen += chunk
            await done(store.unsubscribe, "a", epoch, ["p/0000"])
        assert len(seen) >= 1499


async def test_a_clean_claim_deletes_everything_stored(place: Place) -> None:
    async with place.open() as store:
        epoch = (await connect(store, "a")).epoch
        await done(store.subscribe, "a", epoch, [Subscription("p/#", 1, 1)])
        await done(store.inbound_put, "a", epoch, 7, "KEY")
        one, _ = await put(store, [waiting("a", "M1", qos=2, source=(queue(), 5)), waiting("a", "M2")])
        await done(store.offline_remove, "a", [one])
        assert not (await connect(store, "a", persistent=False)).present
        assert store.stats() == (0, 0, 0, 0, 3)
        assert await collect(store.subscriptions()) == []
        assert await collect(store.remembered(shards(store))) == []
        for present in (False, True):
            claimed = await connect(store, "a")
            assert (claimed.present, claimed.subscriptions, claimed.inbound, claimed.inflight, claimed.backlog) == (present, [], {}, [], 0)
        assert await put(store, [waiting("a", "M1")]) != [0]  # its key is not remembered any more


async def test_a_clean_session_is_gone_after_its_release(place: Place) -> None:
    async with place.open() as store:
        epoch = (await connect(store, "a", persistent=False)).epoch
        await done(store.subscribe, "a", epoch, [Subscription("p/#", 1, 1)])
        await done(store.inbound_put, "a", epoch, 7, "KEY")
        assert await store.present(["a"]) == set()
        await leave(store, "a", epoch)
        assert await collect(store.subscriptions()) == []
        assert await done(store.subscribe, "a", epoch, [Subscription("p/#", 1, 1)]) is None
        assert store.stats().subscriptions == 0


async def test_an_older_epoch_changes_nothing(place: Place) -> None:
    async with place.open() as store:
        old = (await connect(store, "a")).epoch
        await done(store.subscribe, "a", old, [Subscription("p/#", 1, 1)])
        await done(store.inbound_put, "a", old, 1, "KEY1")
        new = (await connect(store, "a", node="n2")).epoch
        operations: list[tuple[Any, ...]] = [
            (store.subscribe, [Subscription("q", 1, 1), Subscription("p/#", 0, 9)]),
            (store.unsubscribe, ["p/#"]),
            (store.inbound_put, 2, "KEY2"),
            (store.inbound_stored, [1]),
            (store.inbound_remove, 1),
        ]
        for operation, *args in operations:
            assert await done(operation, "a", old, *args) is None
            assert await done(operation, "a", new + 1, *args) is None
            assert await done(operation, "nobody", new, *args) is None
        claimed = await connect(store, "a")
    assert claimed.subscriptions == [Subscription("p/#", 1, 1)]
    assert claimed.inbound == {1: ("KEY1", False)}


async def test_the_newest_epoch_counts_between_two_connections_too(place: Place) -> None:
    """The backend's answer to a PUBLISH may come when its connection is gone."""
    async with place.open() as store:
        epoch = (await connect(store, "a")).epoch
        await done(store.inbound_put, "a", epoch, 1, "KEY")
        await leave(store, "a", epoch, polite=False)
        assert await done(store.inbound_stored, "a", epoch, [1]) is not None
        assert (await connect(store, "a")).inbound == {1: ("KEY", True)}


async def test_inbound_packet_ids(place: Place) -> None:
    async with place.open() as store:
        epoch = (await connect(store, "a")).epoch
        for packet_id in (65535, 1, 2, 3):
            assert await done(store.inbound_put, "a", epoch, packet_id, f"K{packet_id}") is True
        await done(store.inbound_stored, "a", epoch, [65535, 2, 9])
        await done(store.inbound_remove, "a", epoch, 1)
        await done(store.inbound_put, "a", epoch, 2, "another")  # the id in use again, for another message
    async with place.open() as store:
        claimed = await connect(store, "a")
    assert claimed.inbound == {65535: ("K65535", True), 2: ("another", False), 3: ("K3", False)}


async def test_present(place: Place) -> None:
    async with place.open() as store:
        for n in range(1200):
            store.retain(f"noise{n}", None, lambda _: None)
        await connect(store, "on@@@line")
        epoch = (await connect(store, "off'line")).epoch
        await leave(store, "off'line", epoch)
        await connect(store, "clean", persistent=False)
        asked = ["on@@@line", "off'line", "clean", "unknown", *(f"x{n}" for n in range(2000))]
        assert await store.present(asked) == {"on@@@line", "off'line"}
        assert await store.present([]) == set()
        assert store.stats().sessions == 2


async def test_a_session_comes_back_whole(place: Place) -> None:
    async with place.open() as store:
        epoch = (await connect(store, "a")).epoch
        await done(store.subscribe, "a", epoch, [Subscription("p/#", 1, 1)])
        await done(store.inbound_put, "a", epoch, 7, "KEY")
        sent = waiting("a", "M1", packet_id=3, phase=Phase.SENT, retain=True, payload=b"\0\xff", topic="ü/x")
        sent.position, *_ = await put(store, [sent, waiting("a", "M2"), waiting("a", "M3")])
    async with place.open() as store:
        claimed = await connect(store, "a")
    assert claimed.present
    assert claimed.subscriptions == [Subscription("p/#", 1, 1)]
    assert claimed.inbound == {7: ("KEY", False)}
    assert claimed.inflight == [sent]
    assert claimed.backlog == 2


async def test_marks(place: Place) -> None:
    async with place.open() as store:
        assert await store.mark("bridged/parent") is None
        await store.set_mark("bridged/parent", "1")
        await store.set_mark("other", "ü")
        await store.set_mark("bridged/parent", "2")
        assert await store.mark("bridged/parent") == "2"
    async with place.open() as store:
        assert (await store.mark("bridged/parent"), await store.mark("other"), await store.mark("bridged")) == ("2", "ü", None)
