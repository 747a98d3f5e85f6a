"""A state machine drives each store and the model beside it, with restarts in between, and compares all that can be read."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from gateway.ports import Claim, Claimed, Event, Phase, Release, Retained, Store, StoreError, Subscription, Waiting
from tests.ports.store_model import Model
from tests.ports.stores import PLACES, STORES, Place, collect, done, new_id, outbox, queue, waiting, will

R = TypeVar("R")

CLIENTS = st.sampled_from(["a", "b", "c"])
NODES = st.sampled_from(["n1", "n2"])
FILTERS = st.sampled_from(["p/#", "p/+", "q"])
TOPICS = st.sampled_from(["p", "p/a", "p/b", "q/a"])
PACKET_IDS = st.integers(1, 3)
KEYS = st.sampled_from(["K1", "K2", "K3", "K4", "K5"])
STEPS = st.integers(-20, 40)
LIMITS = {"offline_count": 6, "offline_retention_s": 1, "session_expiry_s": 1, "retained_count": 3, "outbox_count": 25}


class Life:
    """A store that runs on a trio thread of its own, for callers without an event loop; it can be closed and opened again."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._requests, requests = trio.open_memory_channel[Callable[[], Awaitable[None]]](10)
        self._stack = AsyncExitStack()
        await self._open()
        self._ready.set()
        async for request in requests:
            await request()
        await self._stack.aclose()

    async def _open(self) -> None:
        self.store: Store = await self._stack.enter_async_context(self._place.open(**LIMITS))

    def call(self, operation: Callable[..., Awaitable[R]], *args: Any) -> R:
        results: list[Any] = []
        answered = threading.Event()

        async def request() -> None:
            try:
                results.append(await operation(*args))
            except StoreError as error:
                results.append(error)
            answered.set()

        trio.from_thread.run_sync(self._requests.send_nowait, request, trio_token=self._token)
        assert answered.wait(30)
        if isinstance(results[0], StoreError):
            raise results[0]
        result: R = results[0]
        return result

    def restart(self) -> None:
        async def again() -> None:
            await self._stack.aclose()
            await self._open()

        self.call(again)

    def close(self) -> None:
        trio.from_thread.run_sync(self._requests.close, trio_token=self._token)
        self._thread.join(30)
        assert not self._thread.is_alive()


class StoreMachine(RuleBasedStateMachine):
    make: Callable[[Path], Place]

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.home = type(self).make(Path(self.folder.name))
        self.life = Life(self.home)
        self.model = Model(1000, 1000, LIMITS["offline_count"], LIMITS["retained_count"], LIMITS["outbox_count"])
        self.now = 10_000
        self.used: list[tuple[str, int]] = []  # (client, epoch), oldest first
        self.channels: list[tuple[str, str]] = []
        self.places: list[tuple[str, int]] = []  # (client, position) ever given
        for client in ("a", "b"):
            self.claim_one(client, "n1", True, False)

    def teardown(self) -> None:
        if hasattr(self, "life"):
            self.life.close()
            self.home.erase()
            self.folder.cleanup()

    @property
    def store(self) -> Store:
        return self.life.store

    # -- the registry

    @rule(
        client=CLIENTS,
        node=NODES,
        persistent=st.sampled_from([True, True, True, False]),
        step=STEPS,
        with_will=st.booleans(),
        gentle=st.booleans(),
    )
    def claim(self, client: str, node: str, persistent: bool, step: int, with_will: bool, gentle: bool) -> None:
        self.now += step
        self.claim_one(client, node, persistent, with_will, gentle)

    def claim_one(self, client: str, node: str, persistent: bool, with_will: bool, gentle: bool = False) -> None:
        ids = (new_id(), new_id())
        claim = Claim(client, node, new_id(), "1.2.3.4:5", persistent, will() if with_will else None, self.now, ids, gentle)
        older = self.model.sessions.get(client)
        if gentle and older is not None and older.node not in (None, node):
            assert self.life.call(self.store.claim, claim) == (older.node, older.channel_id)
            return
        if self.model.outbox_full(claim):
            with pytest.raises(StoreError):
                self.life.call(self.store.claim, claim)
            return
        claimed = self.life.call(self.store.claim, claim)
        assert isinstance(claimed, Claimed)
        had = set(older.subscriptions) if older is not None else set()
        assert all(claimed.epoch > epoch for name, epoch in self.used if name == client)
        self.used.append((client, claimed.epoch))
        self.channels.append((client, claim.channel_id))
        assert claimed.present == self.model.claim(claim, claimed.epoch)
        assert set(claimed.dropped) == (set() if claimed.present else had)
        session = self.model.sessions[client]
        assert sorted(claimed.subscriptions) == sorted(session.subscriptions.values())
        assert claimed.inbound == session.inbound
        assert claimed.inflight == self.model.inflight(client)
        assert claimed.backlog == sum(entry.phase is Phase.WAITING for entry in session.queue)

    @precondition(lambda self: self.used)
    @rule(data=st.data(), polite=st.booleans(), step=STEPS, by_channel=st.booleans())
    def release(self, data: st.DataObject, polite: bool, step: int, by_channel: bool) -> None:
        self.now += step
        client, epoch = self.owner(data)
        channel = ""
        if by_channel:
            client, channel = data.draw(st.sampled_from(self.channels[-4:]))
            epoch = 0
        release = Release(client, epoch, channel, "n1", polite, "closed", self.now, (new_id(), new_id()))
        assert self.life.call(self.store.release, release) is self.model.release(release)

    @rule(node=NODES)
    def abandoned(self, node: str) -> None:
        owned = self.model.owned(node)
        before = len(self.model.outbox)
        assert self.life.call(self.store.abandoned, node, self.now, new_id) == len(owned)
        items = self.life.call(outbox, self.store)
        assert len(items) >= before
        ids = {item.client_id: item.event.id for item in items if item.event and item.event.type == "tcpclean"}  # the last of each
        for client in owned:
            self.model.leave(client, self.model.sessions[client], ids[client], self.now, "node_lost", node, True)
            self.used = [(name, epoch) for name, epoch in self.used if name != client]
            self.model.abandoned_by(client)

    def owner(self, data: st.DataObject) -> tuple[str, int]:
        """Mostly one of the newest."""
        return data.draw(st.sampled_from(self.used[-4:]))

    @rule(n=st.integers(1, 12), client=CLIENTS)
    def drain(self, n: int, client: str) -> None:
        shard = self.store.shard_of(client)
        items = self.life.call(self.store.outbox, shard, 0, n)
        self.life.call(done, self.store.outbox_remove, shard, [item.position for item in items])
        there = [item for item in self.model.outbox if self.store.shard_of(self.model.client_of(item)) == shard]
        for item in there[:n]:
            self.model.outbox.remove(item)

    # -- sessions

    @precondition(lambda self: self.used)
    @rule(data=st.data(), filters=st.lists(FILTERS, max_size=2), qos=st.integers(0, 2), add=st.booleans())
    def subscribe(self, data: st.DataObject, filters: list[str], qos: int, add: bool) -> None:
        client, epoch = self.owner(data)
        session = self.model.owner(client, epoch)
        subscriptions = [Subscription(filter, qos, self.now) for filter in filters]
        if add:
            result = self.life.call(done, self.store.subscribe, client, epoch, subscriptions)
        else:
            result = self.life.call(done, self.store.unsubscribe, client, epoch, filters)
        assert (result is None) == (session is None)
        for subscription in subscriptions:
            if session is None:
                break
            if add:
                session.subscriptions[subscription.filter] = subscription
            else:
                session.subscriptions.pop(subscription.filter, None)

    @precondition(lambda self: self.used)
    @rule(data=st.data(), packet_id=PACKET_IDS, key=KEYS, what=st.sampled_from(["put", "stored", "remove"]))
    def inbound(self, data: st.DataObject, packet_id: int, key: str, what: str) -> None:
        client, epoch = self.owner(data)
        session = self.model.owner(client, epoch)
        if what == "put":
            result = self.life.call(done, self.store.inbound_put, client, epoch, packet_id, key)
        elif what == "stored":
            result = self.life.call(done, self.store.inbound_stored, client, epoch, [packet_id])
        else:
            result = self.life.call(done, self.store.inbound_remove, client, epoch, packet_id)
        assert (result is None) == (session is None)
        if session is None:
            return
        if what == "put":
            session.inbound[packet_id] = (key, False)
        elif what == "remove":
            session.inbound.pop(packet_id, None)
        elif packet_id in session.inbound:
            session.inbound[packet_id] = (session.inbound[packet_id][0], True)

    # -- messages that wait

    @rule(
        data=st.data(),
        alone=st.booleans(),
        entries=st.lists(st.tuples(CLIENTS, KEYS, st.sampled_from(["p", "p", "p/a"]), st.booleans(), st.booleans()), max_size=4),
    )
    def put(self, data: st.DataObject, alone: bool, entries: list[tuple[str, str, str, bool, bool]]) -> None:
        made: list[Waiting] = []
        for client, key, topic, sent, exactly in entries:
            source = (queue(), 7) if exactly else None
            phase, packet_id = (Phase.SENT, 9) if sent else (Phase.WAITING, 0)
            # all bodies of one (id, topic) are equal, as those of one message are
            stored_at = next((e.message.stored_at for e in self.model.all_waiting() if e.message.id == key), self.now)
            entry = waiting(client, key, topic=topic, stored_at=stored_at, qos=1 + exactly, phase=phase, packet_id=packet_id, source=source)
            entry.epoch = data.draw(st.sampled_from([0, *(epoch for name, epoch in self.used[-4:] if name == client)]))
            entry.alone = alone
            made.append(entry)
        found = self.life.call(done, self.store.offline_put, made)
        assert len(found) == len(made)
        for entry, (position, owner) in zip(made, found, strict=True):
            session = self.model.accepts(entry.client_id)
            assert owner == (None if session is None else session.node or "")
            if entry.epoch not in (0, self.model.epochs.get(entry.client_id)):
                entry.phase, entry.packet_id = Phase.WAITING, 0
            known = self.model.sent_so(entry) if session is not None and entry.epoch else 0
            if known:
                assert position == known, "the answer to an earlier call was lost"
                continue
            entry.epoch, entry.alone = 0, False  # said once, not kept
            expected = session is not None and not self.model.waits(entry.client_id, entry.message.id)
            assert bool(position) == expected
            if session is not None and expected:
                assert all(position > given for name, given in self.places if name == entry.client_id)
                entry.position = position
                self.places.append((entry.client_id, position))
                session.queue.append(entry)
                if entry.phase is not Phase.WAITING:
                    session.sent.append(position)
        while len(self.model.all_waiting()) > self.model.offline_count:
            self.model.drop(min(self.model.all_waiting(), key=lambda entry: self.places.index((entry.client_id, entry.position))))

    @precondition(lambda self: self.places)
    @rule(data=st.data(), phase=st.sampled_from(Phase), packet_id=PACKET_IDS)
    def advance(self, data: st.DataObject, phase: Phase, packet_id: int) -> None:
        client, position = self.place(data)
        entry = self.model.entry(client, position)
        packet_id = packet_id if phase is not Phase.WAITING else 0
        epoch = data.draw(st.sampled_from([0, *(epoch for name, epoch in self.used[-4:] if name == client)]))
        update = waiting(client, "K1", position=position, phase=phase, packet_id=packet_id, epoch=epoch)
        mine = entry is not None and epoch in (0, self.model.epochs.get(client))
        ((changed, _),) = self.life.call(done, self.store.offline_put, [update])
        assert changed == (position if mine else 0)
        if entry is not None and mine:
            self.model.advance(entry, phase, packet_id)

    def place(self, data: st.DataObject) -> tuple[str, int]:
        """Of what waits, as a rule."""
        there = [(entry.client_id, entry.position) for entry in self.model.all_waiting()]
        return data.draw(st.sampled_from(there * 3 + self.places[-4:]))

    @precondition(lambda self: self.places)
    @rule(data=st.data(), n=st.integers(1, 3), mistaken=st.none() | CLIENTS)
    def acknowledge(self, data: st.DataObject, n: int, mistaken: str | None) -> None:
        client, first = self.place(data)
        positions = [first, *(self.place(data)[1] for _ in range(n - 1))]
        client = mistaken or client
        self.life.call(done, self.store.offline_remove, client, positions)
        for position in positions:
            if (entry := self.model.entry(client, position)) is not None:
                self.model.drop(entry)
                if entry.source is not None:
                    self.model.sessions[client].remembered[entry.message.id] = entry.source

    @rule(keys=st.lists(st.tuples(CLIENTS, KEYS), max_size=3))
    def forget(self, keys: list[tuple[str, str]]) -> None:
        self.life.call(done, self.store.forget, keys)
        for client, key in keys:
            if client in self.model.sessions:
                self.model.sessions[client].remembered.pop(key, None)

    # -- the rest

    @rule(topic=TOPICS, payload=st.binary(max_size=3), keep=st.booleans())
    def retain(self, topic: str, payload: bytes, keep: bool) -> None:
        retained = Retained(topic, payload, 1, new_id(), self.now) if keep else None
        result = self.life.call(done, self.store.retain, topic, retained)
        refused = keep and topic not in self.model.retained and len(self.model.retained) >= self.model.retained_count
        assert result is not refused
        if retained is None:
            self.model.retained.pop(topic, None)
        elif not refused:
            self.model.retained[topic] = retained

    @rule(name=st.sampled_from(["m1", "m2"]), value=st.text(st.characters(codec="utf-8"), max_size=3))
    def mark(self, name: str, value: str) -> None:
        self.life.call(self.store.set_mark, name, value)
        self.model.marks[name] = value

    @rule(step=st.sampled_from([0, 100, 300, 999, 1500]))
    def expire(self, step: int) -> None:
        self.now += step
        sessions, offline = self.life.call(self.store.expire, self.now, range(self.store.shards))
        gone, removed = self.model.expire(self.now)
        assert ({name: set(filters) for name, filters in sessions.items()}, offline) == (gone, removed)

    @rule()
    def restart(self) -> None:
        self.life.restart()

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "life"):
            return
        model, store, call = self.model, self.store, self.life.call
        items = call(outbox, store)
        for name in ("a", "b", "c"):
            there = [item.event or (name, item.will.message.id if item.will else "") for item in items if item.client_id == name]
            assert there == [
                item if isinstance(item, Event) else (name, item[1].message.id) for item in model.outbox if model.client_of(item) == name
            ]
        assert call(store.outbox_waiting, range(store.shards)) >= {store.shard_of(model.client_of(item)) for item in model.outbox}
        assert call(store.present, ["a", "b", "c"]) == {name for name, session in model.sessions.items() if session.persistent}
        rows = [(name, row) for name, session in model.sessions.items() for row in session.subscriptions.values()]
        assert sorted(call(collect, store.subscriptions())) == sorted(rows)
        known = [(name, key, *place) for name, session in model.sessions.items() for key, place in session.remembered.items()]
        assert sorted(call(collect, store.remembered(range(store.shards)))) == sorted(known)
        for name in ("a", "b", "c"):
            entries = model.sessions[name].queue if name in model.sessions else []
            assert call(store.offline_get, name, 100) == [entry for entry in entries if entry.phase is Phase.WAITING]
        assert call(store.retained, "", lambda _: True) == [model.retained[topic] for topic in sorted(model.retained)]
        assert {name: call(store.mark, name) for name in model.marks} == model.marks
        persistent = sum(session.persistent for session in model.sessions.values())
        assert store.stats() == (persistent, len(rows), len(model.all_waiting()), len(model.retained), len(model.outbox))


@pytest.mark.parametrize("name", STORES)
def test_the_store_behaves_as_its_model(name: str) -> None:
    machine = type("Machine", (StoreMachine,), {"make": staticmethod(PLACES[name])})
    modest = settings(max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=modest)
