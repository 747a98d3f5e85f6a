"""Filters are found by their shapes, and a cache of them is as true as the index."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from gateway.mqtt import topics
from gateway.ports import Cluster, Listed, Look, Wide
from gateway.ports.cluster import Entry
from gateway.runtime.cluster.directory import Directory, filters_of

LEVEL = st.sampled_from(["a", "b", "", "$x"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=4).map("/".join).filter(bool)
FILTER = (
    st.tuples(st.lists(LEVEL | st.just("+"), max_size=4), st.booleans())
    .map(lambda each: "/".join([*each[0], *(["#"] if each[1] else [])]))
    .filter(bool)
)


def shape_of(filter: str) -> str:
    return "/".join(level if level in "+#" and level else "=" for level in filter.split("/"))


@given(TOPIC, st.lists(FILTER))
def test_the_filters_that_match_are_found_by_their_shapes(topic: str, filters: list[str]) -> None:
    shapes = {tuple(shape_of(filter).split("/")) for filter in filters}
    made = set(filters_of(topic, shapes))
    assert {filter for filter in filters if topics.matches(filter, topic)} == made & set(filters)


class Index:
    """As a `Cluster` answers `look`, of one parent."""

    def __init__(self) -> None:
        self.listed: dict[str, Listed] = {}
        self.log: list[str] = []
        self.looks = 0

    def set(self, filter: str, clients: Iterable[str]) -> None:
        self.log.append(filter)
        self.listed.pop(filter, None)
        if found := {client_id: Entry(client_id, "") for client_id in clients}:
            self.listed[filter] = Listed(found)

    async def look(self, parent: str, since: int, filters: Iterable[str]) -> Look:
        self.looks += 1
        changed = self.log[since:] if len(self.log) - since < 5 else None
        listed = {filter: self.listed[filter] for filter in filters if filter in self.listed}
        return Look(len(self.log), changed, sorted({shape_of(each) for each in self.listed}), Wide(True, 1), listed)


CHANGE = st.tuples(FILTER, st.sets(st.sampled_from("xyz")))


@given(st.lists(st.lists(CHANGE, max_size=8) | TOPIC))
async def test_the_cache_says_what_the_index_says(steps: list[Any]) -> None:
    index = Index()
    directory = Directory(cast(Cluster, index))
    for step in steps:
        if isinstance(step, list):
            for filter, clients in step:
                index.set(filter, clients)
            continue
        listed = await directory.find("p", [step])
        found = {client_id for each in listed[step] for client_id in each.sessions}
        assert found == {client for filter, each in index.listed.items() if topics.matches(filter, step) for client in each.sessions}


async def test_what_is_known_is_not_asked_again() -> None:
    index = Index()
    directory = Directory(cast(Cluster, index))
    index.set("a/+", "x")
    await directory.find("p", ["a/1", "a/2"])
    before = index.looks
    await directory.find("p", ["a/1", "a/2"])
    assert index.looks == before + 1, "one look finds that nothing has changed"


async def test_a_node_that_is_alone_looks_for_what_it_has_changed_itself() -> None:
    index = Index()
    directory = Directory(cast(Cluster, index))
    index.set("a/+", "x")
    await directory.find("p", ["a/1"], alone=True)
    before = index.looks
    await directory.find("p", ["a/1"], alone=True)
    assert index.looks == before
    index.set("a/1", "y")
    directory.outdate("p")
    found = await directory.find("p", ["a/1"], alone=True)
    assert {client_id for each in found["a/1"] for client_id in each.sessions} == {"x", "y"}


async def test_what_one_batch_has_found_outlives_the_looks_of_others() -> None:
    index = Index()
    directory = Directory(cast(Cluster, index))
    index.set("a/1", "x")
    found = await directory.find("p", ["a/1"])
    index.set("a/1", "y")
    await directory.find("p", ["b"])
    assert list(found["a/1"][0].sessions) == ["x"]
