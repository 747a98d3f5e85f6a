"""The outbox of each shard: lifecycle events and due wills, in the order in which the registry made them (contract section 7)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gateway.ports import OutboxItem
from gateway.store import packed
from gateway.store.redis.engine import Call, Command, Steps, checked
from gateway.store.redis.instance import Instance


def read(at: Instance, shard: int, after: int, limit: int) -> Steps[list[OutboxItem]]:
    """As `Store.outbox`."""
    command = Command(("ZRANGE", at.keys.outbox(shard), f"({after}", "+inf", "BYSCORE", "LIMIT", 0, limit))
    (reply,) = checked((yield [command]))
    return [_item(item) for item in reply]


def _item(item: bytes) -> OutboxItem:
    """As `append` of `lib/session` packs it."""
    position, length, rest = item.split(b":", 2)
    end = 1 + int(length)
    client_id, payload = rest[1:end].decode(), rest[end:]
    if rest[:1] == b"E":
        return OutboxItem(int(position), client_id, packed.unpack_event(client_id, payload.decode()), None)
    return OutboxItem(int(position), client_id, None, packed.unpack_will(payload))


def remove(at: Instance, shard: int, positions: Sequence[int]) -> Steps[bool]:
    """As `Store.outbox_remove`."""
    (counts,) = checked((yield [Call("outbox_remove", (at.keys.outbox(shard), at.keys.counts(shard)), tuple(positions))]))
    at.counts.take(shard, counts)
    return True


def waiting(at: Instance, shards: Collection[int]) -> Steps[set[int]]:
    """As `Store.outbox_waiting`."""
    asked = list(shards)
    replies = checked((yield [Command(("EXISTS", at.keys.outbox(shard))) for shard in asked]))
    return {shard for shard, there in zip(asked, replies, strict=True) if there}
