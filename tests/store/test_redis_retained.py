"""Retained messages in Redis: layout, prefix, a limit that is exact for all nodes (the port's suite has the rest)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.ports import Retained
from gateway.store.redis import retained
from tests.kit.services import shared_redis
from tests.store.redis_kit import Direct, instance_of

pytestmark = pytest.mark.services

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


class AtOnce:
    """A `Line` without a thread: what is asked is done at once. asked: topics whose payloads were read."""

    def __init__(self, direct: Direct) -> None:
        self.direct = direct

    async def ask(self, job):  # type: ignore[no-untyped-def]
        return self.direct.run(job())


@pytest.fixture
def here() -> Iterator[tuple[redis.Redis, str]]:
    with instance_of(shared_redis().url) as found:
        yield found


@given(TEXT, st.binary(max_size=200), st.integers(0, 2), TEXT, st.integers(0, 2**47))
def test_a_message_reads_as_it_was_written(topic: str, payload: bytes, qos: int, id: str, stored_at: int) -> None:
    one = Retained(topic, payload, qos, id, stored_at)
    assert retained.unpack(topic, retained.pack(one)) == one


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sets(st.text("ab/\uffff\U0001f600", max_size=4), max_size=30), st.text("ab/\uffff\U0001f600", max_size=2), st.integers(0, 6))
async def test_topics_are_found_by_their_prefix_in_order(topics: set[str], prefix: str, limit: int) -> None:
    with instance_of(shared_redis().url) as (client, name):
        direct = Direct(client, name)
        for topic in topics:
            assert direct.run(retained.retain(direct.at, topic, Retained(topic, b"", 0, "ID", 1)))
        found = await retained.find(direct.at, AtOnce(direct), prefix, lambda topic: "b" not in topic, limit)  # type: ignore[arg-type]
        expected = sorted(topic for topic in topics if topic.startswith(prefix) and "b" not in topic)
        assert [one.topic for one in found] == expected[:limit]


async def test_the_limit_holds_for_all_nodes_and_the_last_writer_wins(here: tuple[redis.Redis, str]) -> None:
    one, other = (Direct(*here, retained=2) for _ in range(2))

    def keep(node: Direct, topic: str, payload: bytes | None) -> bool:
        value = None if payload is None else Retained(topic, payload, 1, "ID", 5)
        return node.run(retained.retain(node.at, topic, value))

    assert [keep(one, "a", b"1"), keep(other, "b", b"1"), keep(one, "c", b"1"), keep(other, "a", b"2")] == [True, True, False, True]
    assert keep(one, "b", None)
    assert keep(one, "b", None)
    assert keep(other, "c", b"3")
    assert (one.run(retained.count(one.at)), other.at.counts.retained) == (2, 2)
    found = await retained.find(one.at, AtOnce(one), "", lambda _: True, 100)  # type: ignore[arg-type]
    assert [(message.topic, message.payload) for message in found] == [("a", b"2"), ("c", b"3")]


async def test_payloads_are_read_of_what_matches_only(here: tuple[redis.Redis, str]) -> None:
    direct = Direct(*here, retained=10_000)
    for n in range(1500):
        direct.run(retained.retain(direct.at, f"t/{n:04}", Retained(f"t/{n:04}", b"x", 0, "ID", 1)))
    direct.calls = 0
    found = await retained.find(direct.at, AtOnce(direct), "t/", lambda topic: topic.endswith("00"), 100_000)  # type: ignore[arg-type]
    assert [one.topic for one in found] == [f"t/{n:04}" for n in range(0, 1500, 100)]
    assert direct.calls == 4  # two chunks of topics, and the messages of each
