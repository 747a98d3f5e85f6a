"""Waiting messages in Redis: layout, bodies and their references whatever fails, the limit of several nodes, very long queues."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.services import Redis
from gateway.ports import OfflineMessage, Phase, Queue, Waiting
from gateway.store.redis import bodies, expiry, offline
from gateway.store.redis.bodies import Packer, Place
from gateway.store.redis.keys import SHARDS
from tests.kit.services import shared_redis
from tests.ports.clusters import sharded
from tests.store.redis_kit import Direct, Lost, check, instance_of, message

pytestmark = pytest.mark.services

Here = tuple[redis.Redis, str]


@pytest.fixture
def here() -> Iterator[Here]:
    with instance_of(shared_redis().url) as found:
        yield found


def ids(waiting: list[Waiting]) -> list[str]:
    return [one.message.id for one in waiting]


# -- the layout

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
HEX = st.integers(0, 16**32 - 1).map(lambda n: f"{n:032X}")
IDS = HEX | TEXT | st.text(st.characters(codec="ascii"), min_size=13, max_size=17) | st.text("=#a", min_size=13, max_size=17)
SOURCES = st.none() | st.tuples(st.builds(Queue, TEXT, TEXT, st.integers(0, 2**31)), st.integers(0, 2**62))


@given(IDS, TEXT, st.binary(max_size=1100), st.integers(0, 2**47), st.integers(0, 2), st.booleans(), SOURCES, st.booleans(), st.data())
def test_a_reference_reads_as_it_was_written(
    id: str,
    topic: str,
    payload: bytes,
    stored_at: int,
    qos: int,
    retain: bool,
    source: tuple[Queue, int] | None,
    alone: bool,
    data: st.DataObject,
) -> None:
    number, n = data.draw(st.integers(0, 2**55)), data.draw(st.integers(0, 2**23))
    packer = Packer(OfflineMessage(id, topic, payload, stored_at), qos, retain, source, alone, bodies.call_number(number))
    packed = packer.pack(n)
    assert packed[0] > 127  # struck out elements are numbers in ASCII
    one = bodies.unpack(packed)
    assert (one.id, one.qos, one.retain, one.stored_at, one.order, one.source) == (id, qos, retain, stored_at, number + n, source)
    assert packer.inline == (len(payload) <= (1024 if alone else 64))
    if packer.inline:
        assert (one.place, one.topic, one.payload) == (None, topic, payload)
    else:
        assert one.place == packer.place == Place.of(b"".join(packer.place))
        assert payload not in packed


@given(IDS, IDS)
def test_names_tell_ids_apart(one: str, other: str) -> None:
    assert bodies.id_of(bodies.name_of(one)) == one
    assert (bodies.name_of(one) == bodies.name_of(other)) == (one == other)


# -- references and bodies

CLIENTS = ["a", "b", "c"]
KEYS = [f"{n:032X}" for n in range(5)] + ["short"]
ENTRIES = st.tuples(
    st.sampled_from(CLIENTS),
    st.sampled_from(KEYS),
    st.sampled_from(["p/a", "p/b"]),
    st.sampled_from([80, 80, 10]),
    st.booleans(),
    st.booleans(),
)
OPERATION = st.one_of(
    st.tuples(st.just("put"), st.lists(ENTRIES, min_size=1, max_size=6)),
    st.tuples(st.just("remove"), st.lists(st.integers(0, 30), min_size=1, max_size=4)),
    st.tuples(st.just("sent"), st.integers(0, 30)),
    st.tuples(st.just("forget"), st.sampled_from(CLIENTS)),
    st.tuples(st.just("expire"), st.integers(0, 8)),
)


class Play:
    """Random operations on a few clients; `again` repeats one until it does not fail, as callers do."""

    def __init__(self, direct: Direct, again: Callable[[Callable[[], object]], object]) -> None:
        self.direct = direct
        self.again = again
        self.now = 0
        self.positions: list[tuple[str, int]] = []
        for client in CLIENTS:
            direct.connect(client)

    def play(self, what: str, data: object) -> None:
        getattr(self, what)(data)

    def put(self, entries: list[tuple[str, str, str, int, bool, bool]]) -> None:
        self.now += 1
        waiting = []
        for client, key, topic, size, alone, exactly in entries:
            source = (Queue("p", "b", 1), self.now) if exactly else None
            waiting.append(
                Waiting(client, message(key, topic, key[-1:].encode() * size, self.now), 1 + exactly, source=source, alone=alone)
            )
        self.again(lambda: self.direct.put(*waiting))
        for client in CLIENTS:
            self.positions += [(client, one.position) for one in self.direct.get(client)]

    def remove(self, numbers: list[int]) -> None:
        for number in numbers:
            if self.positions:
                client, position = self.positions[-1 - number % len(self.positions)]
                self.again(lambda client=client, position=position: self.direct.remove(client, position))  # type: ignore[misc]

    def sent(self, number: int) -> None:
        if self.positions:
            client, position = self.positions[-1 - number % len(self.positions)]
            self.again(lambda: self.direct.put(Waiting(client, message(KEYS[0]), 1, number + 1, Phase.SENT, position)))

    def forget(self, client: str) -> None:
        self.again(lambda: self.direct.connect(client, False))
        self.direct.connect(client)

    def expire(self, age: int) -> None:
        at = self.direct.at
        self.again(lambda: self.direct.run(expiry._messages(at, self.now - age + at.limits.offline_ms, tuple(range(SHARDS)))))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(OPERATION, max_size=25), st.sampled_from([1_000_000, 4]))
def test_no_body_without_reference_and_no_reference_without_body(operations: list[tuple[str, object]], limit: int) -> None:
    with instance_of(shared_redis().url) as (client, name):
        play = Play(Direct(client, name, offline=limit), lambda operation: operation())
        for what, data in operations:
            play.play(what, data)
            check(play.direct, exact=True)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(OPERATION, max_size=20), st.randoms(use_true_random=False))
def test_no_reference_loses_its_body_whatever_is_lost_on_the_way(operations: list[tuple[str, object]], chance: random.Random) -> None:
    """Any call may not be executed, whatever becomes of those beside it (servers of a cluster fail one by one); the caller repeats."""
    with instance_of(shared_redis().url) as (client, name):
        direct = Direct(client, name)

        def again(operation: Callable[[], object]) -> object:
            direct.fails = lambda: chance.random() < 0.4
            for _ in range(3):
                try:
                    return operation()
                except Lost:
                    pass
                finally:
                    direct.fails, fails = (lambda: False), direct.fails
                direct.fails = fails
            direct.fails = lambda: False
            return operation()

        play = Play(direct, again)
        for what, data in operations:
            play.play(what, data)
            check(direct, exact=False)


def test_what_was_put_without_its_body_is_brought_when_the_put_is_repeated(here: Here) -> None:
    direct = Direct(*here)
    for name in CLIENTS:
        direct.connect(name)
    first = iter([True])
    direct.fails = lambda: next(first, False)  # the body's server
    shared = message(KEYS[0])
    with pytest.raises(Lost):
        direct.put(Waiting("a", shared, 1), Waiting("b", shared, 1))
    assert direct.get("a") == []
    (other,) = direct.put(Waiting("c", shared, 1))  # its body comes, for this one
    direct.put(Waiting("a", shared, 1), Waiting("b", shared, 1))
    direct.remove("c", other)
    (mine,) = direct.get("a")
    assert mine.message == shared
    direct.remove("a", mine.position)
    assert [one.message for one in direct.get("b")] == [shared]


def test_a_reference_whose_body_is_gone_is_skipped_and_later_removed(here: Here) -> None:
    client, name = here
    direct = Direct(client, name)
    direct.connect("a")
    direct.put(*(Waiting("a", message(key), 1) for key in KEYS))
    for key in KEYS[1:3]:
        client.delete(bodies.key_of(direct.at, Packer(message(key), 1, False, None, False, b"").place))
    expected = [key for key in KEYS if key not in KEYS[1:3]]
    assert ids(direct.get("a", 4)) == expected
    assert (direct.connect("a").backlog, direct.at.places.lost) == (len(KEYS), 0)  # perhaps it is on its way
    now = direct.at.now()
    direct.at.now = lambda: now + offline.MISSING_MS + 2000
    assert ids(direct.get("a", 4, newest=True)) == expected[::-1]
    assert (direct.connect("a").backlog, direct.at.places.lost) == (len(expected), 2)
    check(direct, exact=True)


def test_a_great_queue_is_deleted_at_once_and_its_bodies_expire(here: Here) -> None:
    client, name = here
    direct = Direct(client, name)
    direct.connect("a")
    direct.put(*(Waiting("a", message(f"{n:032X}"), 1) for n in range(1500)))
    direct.connect("a", False)
    assert direct.get("a") == []
    left = list(client.scan_iter(f"{name}{{b*}}:body:*", count=1000))
    assert len(left) == 1500
    day = 24 * 3600
    assert all(day < client.ttl(key) <= day + direct.at.limits.offline_ms // 1000 for key in left[:10])


def test_positions_of_a_session_that_was_deleted_are_not_used_again(here: Here) -> None:
    direct = Direct(*here)
    direct.connect("a")
    (*_, last) = direct.put(*(Waiting("a", message(key), 1) for key in KEYS))
    direct.connect("a", False)
    direct.connect("a")
    (first,) = direct.put(Waiting("a", message(KEYS[0]), 1))
    assert first > last


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 59), unique=True), st.integers(1, 20), st.integers(0, 65))
def test_pages_pass_over_whatever_was_removed(gone: list[int], most: int, after: int) -> None:
    with instance_of(shared_redis().url) as (client, name):
        direct = Direct(client, name)
        direct.connect("a")
        positions = direct.put(*(Waiting("a", message(f"M{n}", payload=b""), 1) for n in range(60)))
        for n in gone:
            direct.remove("a", positions[n])
        left = [position for n, position in enumerate(positions) if n not in gone and position > after]
        assert [one.position for one in direct.get("a", most, after=after)] == left[:most]
        assert [one.position for one in direct.get("a", most, newest=True, after=after)] == left[::-1][:most]
        check(direct, exact=True)


def test_each_step_keeps_to_one_slot_of_a_redis_cluster() -> None:
    with sharded() as url, instance_of(url.replace("redis+cluster", "redis")) as (client, name):
        direct = Direct(client, name, offline=100)
        names = [f"c{n}" for n in range(30)]
        source = (Queue("p", "b", 1), 7)
        for one in names:
            direct.connect(one)
        for n in range(5):
            direct.put(*(Waiting(one, message(f"{n:032X}", stored_at=n), 2, source=source) for one in names))
        assert direct.at.counts.overflowed == 50
        positions = {one: direct.get(one)[0].position for one in names}
        direct.put(*(Waiting(one, message("x"), 2, 1, Phase.SENT, positions[one]) for one in names))
        for one in names[:10]:
            direct.remove(one, positions[one])
        assert direct.run(offline.forget(direct.at, [(names[0], f"{n:032X}") for n in range(5)]))
        assert len(direct.connect(names[20]).inflight) == 1
        direct.connect(names[20], False)
        shards = tuple(range(SHARDS))
        removed, _ = direct.run(expiry._messages(direct.at, direct.at.limits.offline_ms + 3, shards))
        assert removed == 9 + 19 + 29  # of the second, third and fourth put
        check(direct, exact=True)


# -- the limit


@pytest.mark.parametrize("spread", [True, False])
def test_several_nodes_hold_the_limit_and_the_oldest_go(here: Here, spread: bool) -> None:
    """spread: over many clients; else one client has nearly all."""
    client, name = here
    limit, total = 3000, 9000
    nodes = [Direct(client, name, offline=limit) for _ in range(3)]
    clients = [f"c{n}" for n in range(400)]
    for one in clients:
        nodes[0].connect(one)
    highest = 0
    chance = random.Random(1)
    for start in range(0, total, 20):
        node = chance.choice(nodes)
        names = [chance.choice(clients) if spread or chance.random() < 0.05 else "c0" for _ in range(20)]
        node.put(*(Waiting(one, message(f"{start + n:032X}", payload=b""), 1) for n, one in enumerate(names)))
        if start % 500 == 0:
            highest = max(highest, sum(int(client.hget(node.at.keys.counts(shard), "offline") or 0) for shard in range(SHARDS)))
    left = sorted(int(key, 16) for one in clients for key in ids(nodes[0].get(one)))
    assert highest <= limit * 1.01
    assert limit * 0.99 <= len(left) <= limit * 1.01
    young = [n for n in range(total - len(left), total) if n not in set(left)]
    assert len(young) <= limit * 0.01
    assert sum(node.at.counts.overflowed for node in nodes) == total - len(left)
    check(nodes[0], exact=True)


# -- length


def test_no_operation_takes_longer_in_a_queue_of_200_000(redis: Redis) -> None:
    with instance_of(redis.url) as (client, name):
        client.config_set("appendfsync", "no")
        spent = {}
        for who, length in (("short", 500), ("long", 200_000)):
            direct = Direct(client, name)
            direct.connect(who)
            for start in range(0, length, 5000):
                direct.put(*(Waiting(who, message(f"{n:032X}", payload=b""), 1) for n in range(start, min(length, start + 5000))))
            spent[who] = {what: _microseconds(client, work) for what, work in _works(direct, who, length).items()}
        for what, long in spent["long"].items():
            assert long < 3 * spent["short"][what] + 100, (what, spent)
        assert client.llen(Direct(client, name).at.keys.queue("long")) > 190_000


def _works(direct: Direct, who: str, length: int) -> dict[str, Callable[[], object]]:
    """Each a hundred operations. The first and the last of the queue stay, so that what is removed beside them is struck out."""
    first = direct.get(who, 1)[0].position

    def each(positions: Iterable[int]) -> None:
        for position in positions:
            direct.remove(who, position)

    return {
        "get oldest": lambda: [direct.get(who, 30) for _ in range(100)],
        "get newest": lambda: [direct.get(who, 30, newest=True) for _ in range(100)],
        "sent": lambda: [direct.put(Waiting(who, message("x"), 1, n + 1, Phase.SENT, first + n)) for n in range(100)],
        "remove oldest": lambda: each(range(first + 1, first + 101)),
        "remove newest": lambda: each(range(first + length - 2, first + length - 102, -1)),
        "get beyond": lambda: [direct.get(who, 30) + direct.get(who, 30, newest=True) for _ in range(50)],
        "put": lambda: [direct.put(Waiting(who, message(f"new{n}", payload=b""), 1)) for n in range(100)],
        "remove the head": lambda: each([first]),
    }


def _microseconds(client: redis.Redis, work: Callable[[], object]) -> float:
    """That Redis spent on scripts, for one."""
    client.config_resetstat()
    work()
    return float(client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"])
