"""What goes: the oldest messages beyond the limit, messages and sessions over their time, the clocks of clients long gone (section 11)."""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Sequence
from functools import partial

from gateway.ports import Expired
from gateway.store.redis.bodies import Freed
from gateway.store.redis.engine import Call, Command, Line, Steps, checked
from gateway.store.redis.instance import FIELDS, OFFLINE, Instance
from gateway.store.redis.keys import SHARDS

CLOCK_MS = 30 * 24 * 3600 * 1000  # how long the clock of a client without a session is kept when sessions never expire
STEP = 5000  # references removed in one job of `expire`, about; other operations get their turn between jobs
STEP_CLIENTS = 1000  # the same for sessions and clocks
NODES = 16  # that may put at the same time without passing the limit by more than 1 %
TURN_MS = 2000  # one node trims at a time; if it dies, another one does so much later
MOST_TRIMMED = 20_000  # by one job; the rest by the next one
MOST_OF_ONE_CALL = 500
NEVER = 1 << 60  # later than any order


# -- the limit of the instance


def keep_to_limit(at: Instance, added: int) -> Steps[None]:
    """This node has put `added` references. Past the limit the oldest go. Called with the references of the batch in place, so that one job
    does it for all of them."""
    places = at.places
    places.since += added
    if not _is_due(at):
        return
    if places.trimming:
        places.again = True
        return
    places.trimming = True
    try:
        while True:
            places.again = False
            yield from _trim(at)
            if not places.again:
                return
    finally:
        places.trimming = False


def _is_due(at: Instance) -> bool:
    """Whether it has to be counted anew: this node's own share of the room that was left, and 1 % more, is used up."""
    places, limit = at.places, at.limits.offline
    room = limit - places.exact
    over = places.since > room or at.counts.total(OFFLINE) > limit
    return places.exact < 0 or over or places.since * NODES >= room + limit // 100


def _trim(at: Instance) -> Steps[None]:
    """Count, and remove what is too much. A great limit gets half a percent of room, so that this is seldom."""
    places, limit = at.places, at.limits.offline
    replies = checked((yield [Command(("HMGET", at.keys.counts(shard), *FIELDS)) for shard in range(SHARDS)]))
    for shard, reply in enumerate(replies):
        at.counts.take(shard, reply)
    places.exact, places.since = at.counts.total(OFFLINE), 0
    if places.exact <= limit:
        return
    turn, mine = at.keys.tagged("meta", "trimming"), secrets.token_hex(8)
    (taken,) = checked((yield [Command(("SET", turn, mine, "NX", "PX", TURN_MS))]))
    if taken is None:
        return
    freed = Freed()
    yield from _remove_oldest(at, min(places.exact - limit + limit // 200, MOST_TRIMMED), freed)
    yield from freed.steps(at)
    checked((yield [Call("offline_unlock", (turn,), (mine,))]))
    places.exact = at.counts.total(OFFLINE)


def _remove_oldest(at: Instance, excess: int, freed: Freed) -> Steps[None]:
    """Each shard knows the order of its oldest. Those with the oldest remove up to where the next begins, so that the order over all
    shards is kept. More and more shards at once while all of them reach that; one alone when one has not: it is behind, and the others'
    are younger. So at most half a percent of the limit goes too early."""
    limit = at.limits.offline
    oldest = yield from _heads(at)
    width = 1
    while excess > 0 and oldest:
        first = heapq.nsmallest(width + 1, oldest.items(), key=lambda item: item[1])
        chosen = [shard for shard, _ in first[:width]]
        bound = first[width][1] if len(first) > width else NEVER
        most = excess if width == 1 else max(1, min(excess // (2 * width), limit // (200 * width)))
        most = min(most, MOST_OF_ONE_CALL)
        replies = checked((yield [Call("offline_trim", (at.keys.counts(shard),), (bound, most)) for shard in chosen]))
        behind = False
        for shard, (counts, removed, order, places) in zip(chosen, replies, strict=True):
            at.counts.take(shard, counts)
            at.counts.overflowed += removed
            excess -= removed
            freed.add_all(places)
            if order:
                oldest[shard] = int(order)
                behind = behind or oldest[shard] <= bound
            else:
                del oldest[shard]
        widest = max(1, min(SHARDS, excess // 8, limit // 200))
        width = 1 if behind else min(2 * width, widest)


def _heads(at: Instance) -> Steps[dict[int, int]]:
    replies = checked((yield [Command(("ZRANGE", at.keys.shard("heads", shard), 0, 0, "WITHSCORES")) for shard in range(SHARDS)]))
    return {shard: int(reply[1]) for shard, reply in enumerate(replies) if reply}


# -- time


async def expire(at: Instance, line: Line, now: int, shards: Sequence[int]) -> Expired:
    """As `Store.expire`, in jobs between which other operations get their turn."""
    messages = 0
    pending = tuple(shards)
    while pending:
        removed, pending = await line.ask(partial(_messages, at, now, pending))
        messages += removed
    gone: dict[str, list[str]] = {}
    pending = tuple(shards) if at.limits.session_ms else ()
    while pending:
        found, pending = await line.ask(partial(_sessions, at, now, pending))
        gone.update(found)
    pending = tuple(shards)
    while pending:
        pending = await line.ask(partial(_clocks, at, now, pending))
    return Expired(gone, messages)


def _messages(at: Instance, now: int, shards: tuple[int, ...]) -> Steps[tuple[int, tuple[int, ...]]]:
    """How many were removed, and the shards where there may be more."""
    args = (now - at.limits.offline_ms, max(20, STEP // len(shards)))
    replies = checked((yield [Call("expire_messages", (at.keys.counts(shard),), args) for shard in shards]))
    freed = Freed()
    for shard, reply in zip(shards, replies, strict=True):
        at.counts.take(shard, reply[0])
        freed.add_all(reply[3])
    yield from freed.steps(at)
    return sum(reply[1] for reply in replies), tuple(shard for shard, reply in zip(shards, replies, strict=True) if reply[2])


def _due(keys: Sequence[str], moment: int, most: int) -> Steps[list[list[str]]]:
    """Clients of each of these ZSETs, by time."""
    replies = checked((yield [Command(("ZRANGEBYSCORE", key, "-inf", moment, "LIMIT", 0, most)) for key in keys]))
    return [[client.decode() for client in reply] for reply in replies]


def _sessions(at: Instance, now: int, shards: tuple[int, ...]) -> Steps[tuple[dict[str, list[str]], tuple[int, ...]]]:
    """Client ids of sessions that were deleted, with their filters, and the shards where there may be more."""
    moment, most = now - at.limits.session_ms, max(4, STEP_CLIENTS // len(shards))
    due = yield from _due([at.keys.left(shard) for shard in shards], moment, most)
    clients = [(shard, client) for shard, found in zip(shards, due, strict=True) for client in found]
    replies = checked((yield [Call("expire_session", at.keys.session(client), (client, moment)) for _, client in clients]))
    gone: dict[str, list[str]] = {}
    freed = Freed()
    for (shard, client), reply in zip(clients, replies, strict=True):
        at.counts.take(shard, reply[0])
        if len(reply) > 1:
            gone[client] = [filter.decode() for filter in reply[1][::2]]
            freed.add_all(reply[2])
    yield from freed.steps(at)
    return gone, tuple(shard for shard, found in zip(shards, due, strict=True) if len(found) == most)


def _clocks(at: Instance, now: int, shards: tuple[int, ...]) -> Steps[tuple[int, ...]]:
    """The shards where there may be more."""
    moment, most = now - (at.limits.session_ms or CLOCK_MS), max(4, STEP_CLIENTS // len(shards))
    due = yield from _due([at.keys.gone(shard) for shard in shards], moment, most)
    clients = [(shard, client) for shard, found in zip(shards, due, strict=True) for client in found]
    checked((yield [Call("expire_clock", (at.keys.client(client), at.keys.gone(shard)), (client, moment)) for shard, client in clients]))
    return tuple(shard for shard, found in zip(shards, due, strict=True) if len(found) == most)
