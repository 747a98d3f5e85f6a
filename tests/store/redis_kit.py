"""Jobs of the Redis store, driven by hand on a real Redis: a test can let any call fail, and look at what lies there."""

from __future__ import annotations

import itertools
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import redis

from gateway.ports import Claim, Claimed, OfflineMessage, Waiting
from gateway.store.redis import bodies, offline, registry
from gateway.store.redis.engine import Call, Command, Steps
from gateway.store.redis.instance import Instance, Limits
from gateway.store.redis.keys import shard_of
from gateway.store.redis.scripts import all_scripts, script

R = TypeVar("R")

_ids = itertools.count(1)
HOUR_MS = 3600 * 1000


class Lost(Exception):
    """The connection failed."""


class Direct:
    """One node. fails: called before each call; True: it is not executed, and its job ends with `Lost` after its round."""

    def __init__(self, client: redis.Redis, name: str, *, fails: Callable[[], bool] = lambda: False, **limits: int) -> None:
        chosen = {"offline": 1_000_000, "offline_ms": HOUR_MS, "session_ms": HOUR_MS, "retained": 1000, "outbox": 1_000_000} | limits
        self.client = client
        self.at = Instance(name, Limits(**chosen))
        self.fails = fails
        self.calls = 0

    def run(self, steps: Steps[R]) -> R:
        """Raises Lost."""
        try:
            calls = next(steps)
            while True:
                chosen = [not self.fails() for _ in calls]
                self.calls += len(calls)
                replies = _replies(self.client, [call for call, is_chosen in zip(calls, chosen, strict=True) if is_chosen])
                if not all(chosen):
                    steps.close()
                    raise Lost
                calls = steps.send(replies)
        except StopIteration as end:
            result: R = end.value
            return result

    def connect(self, client_id: str, persistent: bool = True) -> Claimed:
        number = next(_ids)
        claim = Claim(client_id, "n1", f"{number:032X}", "1.2.3.4:5", persistent, None, 1000, (f"E{number}", f"F{number}"))
        claimed = self.run(registry.claim(self.at, claim, b""))
        assert isinstance(claimed, Claimed)
        return claimed

    def put(self, *waiting: Waiting) -> list[int]:
        return [one.position for one in self.run(offline.put(self.at, offline.entries(waiting)))]

    def get(self, client_id: str, limit: int = 10_000, *, newest: bool = False, after: int = 0) -> list[Waiting]:
        return self.run(offline.get(self.at, client_id, limit, newest, after))

    def remove(self, client_id: str, *positions: int) -> None:
        self.run(offline.remove(self.at, client_id, positions))


def _replies(client: redis.Redis, calls: Sequence[Call | Command]) -> list[Any]:
    """As RESP2 has them, without the client library's beautifying."""
    commands = [
        ("EVALSHA", script(call.name).sha, len(call.keys), *call.keys, *call.args) if isinstance(call, Call) else call.args
        for call in calls
    ]
    connection: Any = client.connection_pool.get_connection()
    try:
        connection.send_packed_command(connection.pack_commands(commands))
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except redis.exceptions.ResponseError as error:
                replies.append(error)
        return replies
    finally:
        client.connection_pool.release(connection)


@contextmanager
def instance_of(url: str) -> Iterator[tuple[redis.Redis, str]]:
    """A connection, and the name of an instance whose keys are deleted afterwards."""
    name = f"test-{os.getpid()}-{secrets.token_hex(4)}"
    with redis.Redis.from_url(url, protocol=2) as client:
        for one in all_scripts().values():
            client.script_load(one.text)
        try:
            yield client, name
        finally:
            keys = list(client.scan_iter(f"{name}{{*", count=1000))
            with client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.unlink(key)
                pipeline.execute()


def message(id: str, topic: str = "p/a", payload: bytes = b"x" * 100, stored_at: int = 1000) -> OfflineMessage:
    return OfflineMessage(id, topic, payload, stored_at)


def clients_of(client: redis.Redis, name: str) -> list[str]:
    return [key.decode().partition(":c:")[2] for key in client.scan_iter(f"{name}{{*}}:c:*", count=1000)]


def references_of(direct: Direct, client_id: str) -> dict[int, bodies.Reference]:
    """By position, and that the queue's own rules hold."""
    client, keys = direct.client, direct.at.keys
    elements: list[Any] = client.lrange(keys.queue(client_id), 0, -1)
    end = int(client.hget(keys.client(client_id), "next") or 0)
    found: dict[int, bodies.Reference] = {}
    struck: list[bool] = []
    for position, element in enumerate(elements, end - len(elements)):
        struck.append(element[0] < 128)
        if not struck[-1]:
            found[position] = bodies.unpack(element)
    assert not elements or not struck[0]
    start = 0
    for is_struck, run in itertools.groupby(struck):
        length = len(list(run))
        if is_struck:  # walkers jump by these
            assert int(elements[start]) == length
            assert int(elements[start + length - 1]) == (-length if length > 1 else 1)
        start += length
    rows: dict[Any, Any] = client.hgetall(keys.ids(client_id))
    ids = {bodies.id_of(name): int(position) for name, position in rows.items()}
    assert ids == {one.id: position for position, one in found.items()}
    flying = {field for field in client.hgetall(keys.flight(client_id)) if field != b"n"}
    assert {int(field) for field in flying} <= set(found)
    assert client.exists(keys.flight(client_id)) == bool(flying)
    return found


def check(direct: Direct, *, exact: bool) -> None:
    """No reference without a body, every index right. exact: and no body that is more than its references need."""
    client, keys = direct.client, direct.at.keys
    needed: dict[str, Counter[bytes]] = {}
    queued: Counter[int] = Counter()
    for client_id in clients_of(client, keys.instance):
        references = references_of(direct, client_id)
        shard = shard_of(client_id)
        queued[shard] += len(references)
        heads, ages = client.zscore(keys.shard("heads", shard), client_id), client.zscore(keys.shard("ages", shard), f":{client_id}")
        assert (heads is not None, ages is not None) == (bool(references), bool(references))
        if references:
            oldest = references[min(references)]
            assert heads <= oldest.order  # type: ignore[operator]
            assert ages <= oldest.stored_at  # type: ignore[operator]
        for one in references.values():
            if one.place is not None:
                needed.setdefault(bodies.key_of(direct.at, one.place), Counter())[one.place.call] += 1
    for shard, n in queued.items():
        assert int(client.hget(keys.counts(shard), "offline") or 0) == n
    there = {key.decode() for key in client.scan_iter(f"{keys.instance}{{b*}}:body:*", count=1000)}
    assert set(needed) <= there
    assert not exact or there <= set(needed)
    for key in there:
        fields = client.hgetall(key)
        assert fields.pop(b"b")
        assert client.ttl(key) > 0
        counts = {call: int(n) for call, n in fields.items()}
        assert not exact or counts == dict(needed[key])
