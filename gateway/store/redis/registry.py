"""The registry's transitions: claim, release, abandoned. Each is one script together with its events and wills (contract section 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.ports import Claim, Claimed, Owned, Release, StoreError
from gateway.store.redis import bodies, offline
from gateway.store.redis.engine import Call, Command, Steps, checked
from gateway.store.redis.instance import OUTBOX, Instance
from gateway.store.redis.keys import CLEAN, PERSISTENT, SHARDS, shard_of
from gateway.store.redis.sessions import pairs, subscription_of

CHUNK = 200  # clients of a lost node, of one shard, released in one round


def claim(at: Instance, claim: Claim, will: bytes) -> Steps[Claimed | Owned]:
    """As `Store.claim`. will: packed, b"" for none. Bodies of messages are read, or freed, in rounds of their own."""
    shard = shard_of(claim.client_id)
    args = (
        claim.client_id, claim.node, claim.channel_id, claim.client_ip, PERSISTENT if claim.persistent else CLEAN, claim.now,
        *claim.event_ids, int(claim.gentle), at.limits.outbox, at.counts.beside(OUTBOX, shard), will,
    )  # fmt: skip
    (reply,) = checked((yield [Call("claim", at.keys.session(claim.client_id), args)]))
    if reply[0] == b"owned":
        return Owned(reply[1].decode(), reply[2].decode())
    if reply[0] == b"full":
        raise StoreError(
            f"store: the outbox holds {reply[1]} events of {at.limits.outbox}; "
            "see why the backend does not take them, or raise limits.outbox_count"
        )
    _, epoch, present, subscriptions, inbound, backlog, flying, counts, freed = reply
    at.counts.take(shard, counts)
    at.counts.appended.append(shard)
    if not present:
        yield from bodies.free(at, freed)
        return Claimed(epoch, False, dropped=[filter.decode() for filter, _ in pairs(subscriptions)])
    return Claimed(
        epoch,
        True,
        [subscription_of(filter, value) for filter, value in pairs(subscriptions)],
        inbound={int(id): (value[1:].decode(), value[:1] == b"1") for id, value in pairs(inbound)},
        inflight=(yield from offline.in_flight(at, claim.client_id, flying)),
        backlog=backlog,
    )


def release(at: Instance, release: Release) -> Steps[bool]:
    """As `Store.release`."""
    args = (
        release.client_id, release.epoch, release.channel_id, int(release.polite), release.reason, release.now, release.node,
        *release.event_ids,
    )  # fmt: skip
    (reply,) = checked((yield [Call("release", at.keys.session(release.client_id), args)]))
    if reply is None:
        return False
    at.counts.take(shard_of(release.client_id), reply)
    at.counts.appended.append(shard_of(release.client_id))
    return True


def owned_by(at: Instance, node: str) -> Steps[list[str]]:
    """Some clients whose connection `node` has, of every shard; empty when there are none."""
    replies = checked((yield [Command(("SRANDMEMBER", at.keys.on(shard, node), CHUNK)) for shard in range(SHARDS)]))
    return [client.decode() for reply in replies for client in reply]


def abandon(at: Instance, node: str, now: int, clients: Sequence[tuple[str, str]]) -> Steps[int]:
    """Release (client id, id of its `tcpclean`) if `node` still has the connection. How many were released."""
    calls: list[Any] = [Call("abandon", at.keys.session(client), (client, node, now, id)) for client, id in clients]
    released = 0
    for (client, _), (mine, counts) in zip(clients, checked((yield calls)), strict=True):
        at.counts.take(shard_of(client), counts)
        if mine:
            at.counts.appended.append(shard_of(client))
            released += 1
    return released
