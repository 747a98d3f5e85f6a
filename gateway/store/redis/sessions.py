"""What is stored of a session beside its messages: subscriptions and the QoS 2 packet ids of the device (MQTT clauses 3.8, 4.3.3)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from gateway.ports import Subscription
from gateway.store.redis.engine import Call, Command, Steps, checked
from gateway.store.redis.instance import Instance
from gateway.store.redis.keys import PERSISTENT, shard_of

MOST_FILTERS = 2000  # of one script's arguments


def pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Of a flat reply: (field, value)."""
    return zip(flat[::2], flat[1::2], strict=True)


def subscription_of(filter: bytes, value: bytes) -> Subscription:
    """A row of `Keys.subscriptions`."""
    qos, _, since = value.partition(b":")
    return Subscription(filter.decode(), int(qos), int(since))


def subscribe(at: Instance, client_id: str, epoch: int, subscriptions: Sequence[Subscription]) -> Steps[bool | None]:
    """As `Store.subscribe`."""
    rows = [(one.filter, f"{one.qos}:{one.since}") for one in subscriptions]
    chunks = [rows[start : start + MOST_FILTERS] for start in range(0, len(rows), MOST_FILTERS)] or [[]]
    return (yield from _change(at, "subscribe", client_id, epoch, [[text for row in chunk for text in row] for chunk in chunks]))


def unsubscribe(at: Instance, client_id: str, epoch: int, filters: Sequence[str]) -> Steps[bool | None]:
    """As `Store.unsubscribe`."""
    chunks = [filters[start : start + MOST_FILTERS] for start in range(0, len(filters), MOST_FILTERS)] or [[]]
    return (yield from _change(at, "unsubscribe", client_id, epoch, chunks))


def _change(at: Instance, script: str, client_id: str, epoch: int, chunks: Sequence[Sequence[str]]) -> Steps[bool | None]:
    shard, keys = shard_of(client_id), at.keys
    names = (keys.client(client_id), keys.counts(shard), keys.subscriptions(client_id), keys.subscribed(shard))
    replies = checked((yield [Call(script, names, (epoch, client_id, *chunk)) for chunk in chunks]))
    if None in replies:
        return None
    at.counts.take(shard, replies[-1])
    return True


def subscribed(at: Instance, shards: Collection[int], cursors: dict[int, bytes]) -> Steps[list[str]]:
    """Clients of `shards` that have subscriptions, from their `cursors` on, which are moved; a shard that is done has none. A client may
    come twice."""
    asked = [shard for shard in shards if shard in cursors]
    calls: list[Call | Command] = [Command(("SSCAN", at.keys.subscribed(shard), cursors[shard], "COUNT", 100)) for shard in asked]
    clients: list[str] = []
    for shard, (cursor, members) in zip(asked, checked((yield calls)), strict=True):
        clients += [member.decode() for member in members]
        if cursor == b"0":
            del cursors[shard]
        else:
            cursors[shard] = cursor
    return clients


def subscriptions_of(at: Instance, client_ids: Sequence[str]) -> Steps[list[tuple[str, Subscription]]]:
    """All of these clients, as (client id, subscription)."""
    replies = checked((yield [Command(("HGETALL", at.keys.subscriptions(client))) for client in client_ids]))
    return [
        (client, subscription_of(filter, value))
        for client, reply in zip(client_ids, replies, strict=True)
        for filter, value in pairs(reply)
    ]


def present(at: Instance, client_ids: Sequence[str]) -> Steps[set[str]]:
    """As `Store.present`."""
    replies = checked((yield [Command(("HGET", at.keys.client(client), "kind")) for client in client_ids]))
    return {client for client, kind in zip(client_ids, replies, strict=True) if kind is not None and int(kind) == PERSISTENT}


def inbound(at: Instance, script: str, client_id: str, epoch: int, *args: int | str) -> Steps[bool | None]:
    """script: inbound_put, inbound_stored or inbound_remove; as the operations of that name of the `Store`."""
    names = (at.keys.client(client_id), at.keys.inbound(client_id))
    (reply,) = checked((yield [Call(script, names, (epoch, *args))]))
    return None if reply is None else True
