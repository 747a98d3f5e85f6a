"""A state machine drives the index of one parent through two nodes; readers that follow the log must know what a model of dicts knows."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from gateway.ports.cluster import Cluster, Entry, Listed, Look, Wide
from gateway.store.redis import index
from tests.kit.services import shared_redis
from tests.ports.clusters import fleet, new_instance, opened, session
from tests.ports.stores import done, erase

R = TypeVar("R")
pytestmark = pytest.mark.services

FILTERS = ["p/a", "p/b", "p/+", "p/#", "#", "p/a/#"]
# a session with its values, or the number of a node
Listener = tuple[str, int] | int
LISTENERS = st.one_of(st.tuples(st.sampled_from(["s", "t"]), st.integers(0, 2)), st.integers(0, 1))
CHANGES = st.lists(st.tuples(st.sampled_from(FILTERS), LISTENERS), max_size=4)
OPERATIONS = st.lists(st.tuples(st.integers(0, 1), CHANGES, CHANGES), min_size=1, max_size=4)
ASKED = st.sets(st.sampled_from(FILTERS))

_parents = (f"parent-{n}" for n in itertools.count())


class Fleet:
    """Two nodes of one instance on a trio thread of their own, for callers without an event loop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._requests, requests = trio.open_memory_channel[Callable[[], Awaitable[None]]](10)
        instance = new_instance()
        async with AsyncExitStack() as stack:
            self.clusters: list[Cluster] = [await stack.enter_async_context(opened(self._url, instance)) for _ in range(2)]
            self._ready.set()
            async for request in requests:
                await request()
        erase(self._url, instance)

    def call(self, operation: Callable[..., Awaitable[R]], *args: Any) -> R:
        results: list[R] = []
        answered = threading.Event()

        async def request() -> None:
            results.append(await operation(*args))
            answered.set()

        trio.from_thread.run_sync(self._requests.send_nowait, request, trio_token=self._token)
        assert answered.wait(30)
        return results[0]

    def close(self) -> None:
        trio.from_thread.run_sync(self._requests.close, trio_token=self._token)
        self._thread.join(30)
        assert not self._thread.is_alive()


class Reader:
    """What a node knows of a parent: true when it has just looked."""

    def __init__(self) -> None:
        self.version = 0
        self.wide = Wide(False, 0)
        self.shapes: list[str] = []
        self.listed: dict[str, Listed] = {}

    def learn(self, look: Look, asked: set[str]) -> None:
        assert look.version >= self.version
        assert look.wide.version >= self.wide.version
        for filter in list(self.listed) if look.changed is None else look.changed:
            self.listed.pop(filter, None)
        if look.shapes is not None:
            self.shapes = look.shapes
        assert set(look.listed) <= asked
        for filter in asked:
            self.listed[filter] = look.listed.get(filter, Listed())
        self.version, self.wide = look.version, look.wide


class IndexMachine(RuleBasedStateMachine):
    fleet: Fleet

    @initialize()
    def begin(self) -> None:
        self.parent = next(_parents)
        self.nodes = [self.fleet.call(cluster.join, "gw") for cluster in self.fleet.clusters]
        self.readers = [Reader(), Reader()]
        self.model: dict[str, Listed] = {filter: Listed() for filter in FILTERS}
        self.wide = False

    def teardown(self) -> None:
        if hasattr(self, "nodes"):
            for node in self.nodes:
                self.fleet.call(self.fleet.clusters[0].leave, node)

    def entry(self, listener: Listener) -> Entry:
        if isinstance(listener, int):
            return fleet(self.nodes[listener])
        return session(listener[0], f"gw/{listener[1]}", listener[1], listener[1])

    # -- what happens

    @rule(operations=OPERATIONS, looks=st.lists(st.tuples(st.integers(0, 1), ASKED), max_size=3))
    def change(self, operations: list[tuple[int, Any, Any]], looks: list[tuple[int, set[str]]]) -> None:
        """Nobody waits for anybody; entries belong to the node that changes them, as they do in a gateway."""
        changes = []
        for by, add, remove in operations:
            add, remove = ([(f, self.entry(each)) for f, each in those if self.owner(each) == by] for those in (add, remove))
            add = list({(filter, index.member_of(entry)): (filter, entry) for filter, entry in add}.values())
            changes.append((by, add, remove))
            self.apply(add, remove)
        self.fleet.call(self.change_and_look, changes, looks)

    @staticmethod
    def owner(listener: Listener) -> int:
        return listener if isinstance(listener, int) else ("s", "t").index(listener[0])

    def apply(self, add: list[tuple[str, Entry]], remove: list[tuple[str, Entry]]) -> None:
        for filter, entry in remove:
            listed = self.model[filter]
            if entry.client_id:
                listed.sessions.pop(entry.client_id, None)
            else:
                listed.nodes.discard(entry.node)
        for filter, entry in add:
            if entry.client_id:
                self.model[filter].sessions[entry.client_id] = entry
            else:
                self.model[filter].nodes.add(entry.node)
            self.wide = True

    async def change_and_look(self, changes: list[tuple[int, Any, Any]], looks: list[tuple[int, set[str]]]) -> None:
        async with trio.open_nursery() as nursery:
            for by, add, remove in changes:
                nursery.start_soon(done, self.submitted(by, add, remove))
                await trio.lowlevel.checkpoint()
            for by, asked in looks:
                nursery.start_soon(self.learn, by, asked)

    def submitted(self, by: int, add: Any, remove: Any) -> Callable[[Any], None]:
        """Submitted now, whenever its task begins."""
        results: list[Any] = []
        waiting: list[Callable[[Any], None]] = []

        def finished(result: Any) -> None:
            results.append(result)
            for each in waiting:
                each(result)

        def when_done(callback: Callable[[Any], None]) -> None:
            if results:
                callback(results[0])
            else:
                waiting.append(callback)

        self.fleet.clusters[by].index(self.parent, add, remove, finished)
        return when_done

    async def learn(self, by: int, asked: set[str]) -> None:
        reader = self.readers[by]
        look = await self.fleet.clusters[by].look(self.parent, reader.version, asked)
        if look.version >= reader.version:  # another look of this reader may have told more meanwhile
            reader.learn(look, asked)

    @rule(by=st.integers(0, 1), newer=st.booleans())
    def narrow(self, by: int, newer: bool) -> None:
        cluster = self.fleet.clusters[by]
        wide = self.fleet.call(cluster.look, self.parent, 0, []).wide
        after = self.fleet.call(cluster.narrow, self.parent, wide.version + newer)
        if self.wide and not newer and not any(each.sessions or each.nodes for each in self.model.values()):
            self.wide = False
            assert after.version > wide.version
        else:
            assert after == wide
        assert after.on == self.wide

    @rule(which=st.integers(0, 1), by=st.integers(0, 1))
    def leave(self, which: int, by: int) -> None:
        cluster, node = self.fleet.clusters[by], self.nodes[which]
        self.fleet.call(cluster.leave, node)
        for listed in self.model.values():
            listed.nodes.discard(node)
        self.nodes[which] = self.fleet.call(self.fleet.clusters[which].join, "gw")

    # -- what must be

    @rule(by=st.integers(0, 1), asked=ASKED)
    def look(self, by: int, asked: set[str]) -> None:
        reader = self.readers[by]
        self.fleet.call(self.learn, by, asked)
        assert reader.listed == {filter: self.model[filter] for filter in reader.listed}
        shapes = {index.shape_of(filter) for filter, listed in self.model.items() if listed.sessions or listed.nodes}
        assert sorted(reader.shapes) == sorted(shapes)
        assert reader.wide.on == self.wide


@pytest.fixture
def two_nodes() -> Iterator[Fleet]:
    nodes = Fleet(shared_redis().url)
    yield nodes
    nodes.close()


def test_readers_know_what_the_model_knows(two_nodes: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "LOG_MOST", 8)  # readers fall behind now and then
    monkeypatch.setattr(index, "CALL_MOST", 3)
    machine = type("Machine", (IndexMachine,), {"fleet": two_nodes})
    modest = settings(max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=modest)
