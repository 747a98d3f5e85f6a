"""The tree of filters against a list of them, and what it costs."""

from __future__ import annotations

import tracemalloc
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.mqtt.topics import matches, split_parent
from gateway.mqtt.tree import Tree
from tests.mqtt import strategies

few = st.sampled_from(("", "a", "b", "$s"))  # few names, so that filters and topics meet
some_filters = strategies.filters(few)
topics = st.lists(few, min_size=1, max_size=4).map("/".join).filter(bool)
keys = st.integers(0, 3)


class AgainstModel(RuleBasedStateMachine):
    """Every step on the tree and on a dict by (filter, key)."""

    def __init__(self) -> None:
        super().__init__()
        self.tree: Tree[int, int] = Tree()
        self.model: dict[tuple[str, int], int] = {}

    @rule(filter=some_filters, key=keys, value=st.integers())
    def add(self, filter: str, key: int, value: int) -> None:
        assert self.tree.add(filter, key, value) is ((filter, key) not in self.model)
        self.model[filter, key] = value

    @rule(filter=some_filters, key=keys)
    def remove(self, filter: str, key: int) -> None:
        assert self.tree.remove(filter, key) is (self.model.pop((filter, key), None) is not None)

    @rule(data=st.data())
    def remove_one_that_is_there(self, data: st.DataObject) -> None:
        if self.model:
            filter, key = data.draw(st.sampled_from(sorted(self.model)))
            self.remove(filter, key)

    @rule(topic=topics)
    def match(self, topic: str) -> None:
        found = sorted(pair for leaf in self.tree.match(topic) for pair in leaf.items())
        assert found == sorted((key, value) for (filter, key), value in self.model.items() if matches(filter, topic))
        assert all(self.tree.match(topic))

    @rule(parent=few)
    def below(self, parent: str) -> None:
        expected = any(
            split_parent(filter)[0] == parent or (split_parent(filter)[0] in ("+", "#") and parent[:1] != "$") for filter, _ in self.model
        )
        assert self.tree.may_match_below(parent) is expected

    @invariant()
    def pairs(self) -> None:
        assert len(self.tree) == len(self.model)

    @invariant()
    def no_empty_nodes(self) -> None:
        if not self.model:
            assert self.tree._root.empty()
        assert not any(node.empty() for node in nodes(self.tree._root)[1:])


def nodes(node: Any) -> list[Any]:
    below = [node.child, node.plus, *(node.children or {}).values()]
    return [node, *(deeper for child in below if child is not None for deeper in nodes(child))]


AgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAgainstModel = AgainstModel.TestCase


@given(st.lists(st.tuples(some_filters, keys), max_size=20), topics)
def test_match_agrees_with_matches(pairs: list[tuple[str, int]], topic: str) -> None:
    tree: Tree[tuple[str, int], None] = Tree()
    for filter, key in pairs:
        tree.add(filter, (filter, key), None)
    found = sorted(pair for leaf in tree.match(topic) for pair in leaf)
    assert found == sorted({(filter, key) for filter, key in pairs if matches(filter, topic)})


def test_a_second_add_replaces_the_value() -> None:
    tree: Tree[str, int] = Tree()
    assert tree.add("a/+", "k", 1)
    assert not tree.add("a/+", "k", 2)
    assert tree.match("a/b") == [{"k": 2}]
    assert len(tree) == 1


def test_no_match_is_an_empty_list() -> None:
    tree: Tree[str, int] = Tree()
    assert tree.match("a") == []
    tree.add("a/b", "k", 1)
    assert tree.match("a") == []
    assert not tree.remove("a", "k")
    assert not tree.remove("a/b", "other")
    assert not tree.remove("a/b/c", "k")


def test_memory_of_a_fleet() -> None:
    """A filter for each device costs less than 600 bytes, the strings of its levels included."""
    tree: Tree[int, int] = Tree()
    many = 5000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(many):
            tree.add(f"cmd/GID_fleet@@@{number:07}/#", number, 1)
        cost = (tracemalloc.get_traced_memory()[0] - before) / many
    finally:
        tracemalloc.stop()
    assert len(tree) == many
    assert cost < 600


class Counted(str):
    """A level name that counts how often it is compared or looked up."""

    __slots__ = ()
    touched = 0

    def __hash__(self) -> int:
        Counted.touched += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        Counted.touched += 1
        return super().__eq__(other)


def test_filters_that_do_not_match_cost_nothing() -> None:
    """The nodes that a match visits, counted: the same with 1 filter and with 2,000."""
    tree: Tree[str, int] = Tree()
    tree.add("cmd/x/#", "k", 1)
    costs = []
    for _ in range(2):
        Counted.touched = 0
        assert tree.match(Spelled("cmd/x/y")) == [{"k": 1}]
        costs.append(Counted.touched)
        for number in range(2000):
            tree.add(f"cmd/{number}/#", "k", 1)
    assert costs[1] <= costs[0] + 1


class Spelled(str):
    """A topic whose levels are counted."""

    __slots__ = ()

    def split(self, *args: Any, **kwargs: Any) -> list[str]:
        return [Counted(level) for level in super().split(*args, **kwargs)]
