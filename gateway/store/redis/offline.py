"""Messages that wait for a session: a queue of references for each, bodies shared (contract section 6; the layout is in bodies.py).

An operation changes queues in its first round; what follows concerns bodies, and the oldest messages beyond the limit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import NamedTuple

from gateway.ports import OfflineMessage, Phase, Put, Queue, Waiting
from gateway.store.redis import bodies, expiry
from gateway.store.redis.bodies import Freed, Packer, Place, Reference
from gateway.store.redis.engine import Call, Command, Line, Steps, checked
from gateway.store.redis.instance import Instance
from gateway.store.redis.keys import shard_of

PHASES = {phase.value: phase for phase in Phase}
CHUNK = 500  # entries or positions of one script's call
READ_CHUNK = 1000  # references read in one round
SHARDS_AT_ONCE = 32  # of a stream over all shards
CLIENTS_AT_ONCE = 100
STREAM_CHUNK = 1000  # rows of one step of a stream
MISSING_MS = 60_000  # a body that was put so long ago and isn't there will never be
LATE_SHARE, LATE_MS = 5000, 60_000  # of the retention, and at most: so much older than its forerunner a message may be and go with it


class Entry(NamedTuple):
    """A `Waiting` as it was when it was submitted: its owner goes on with it while the writer's thread reads."""

    client_id: str
    message: OfflineMessage
    qos: int
    packet_id: int
    phase: int
    position: int
    source: tuple[Queue, int] | None
    retain: bool
    epoch: int
    alone: bool


def entries(waiting: Sequence[Waiting]) -> list[Entry]:
    return [
        Entry(w.client_id, w.message, w.qos, w.packet_id, w.phase.value, w.position, w.source, w.retain, w.epoch, w.alone) for w in waiting
    ]


class _Batch:
    """The calls of one `put`: bodies first, then references, by shard."""

    def __init__(self, at: Instance, entries: Sequence[Entry]) -> None:
        self._call = bodies.call_number(at.places.take(len(entries), at.now()))
        self._packers: dict[tuple[int, int, bool, bool, tuple[Queue, int] | None], Packer] = {}
        self.packers: list[Packer | None] = []  # by entry; None for updates
        shared: dict[Place, tuple[OfflineMessage, int]] = {}
        shards: dict[int, tuple[list[str | bytes], list[int]]] = {}
        for n, entry in enumerate(entries):
            packer = None if entry.position else self._packer(entry)
            self.packers.append(packer)
            if packer is not None and not packer.inline:
                shared[packer.place] = (entry.message, shared.get(packer.place, (entry.message, 0))[1] + 1)
            state = ""
            if entry.epoch or entry.packet_id or entry.phase or entry.position:
                state = f"{entry.epoch}:{entry.packet_id}:{entry.phase}:{entry.position}"
            args, numbers = shards.setdefault(shard_of(entry.client_id), ([], []))
            args += (entry.client_id, b"" if packer is None else packer.pack(n), state)
            numbers.append(n)
        self.bodies: list[Call | Command] = [bodies.put_call(at, place, message, n) for place, (message, n) in shared.items()]
        self.calls: list[Call | Command] = []
        self.numbers: list[tuple[int, list[int]]] = []  # of each call, the shard and which entries
        slack = min(LATE_MS, at.limits.offline_ms // LATE_SHARE)
        for shard, (args, numbers) in shards.items():
            for start in range(0, len(numbers), CHUNK):
                chunk = tuple(args[3 * start : 3 * (start + CHUNK)])
                self.calls.append(Call("offline_put", (at.keys.counts(shard),), (slack, *chunk)))
                self.numbers.append((shard, numbers[start : start + CHUNK]))

    def _packer(self, entry: Entry) -> Packer:
        what = (id(entry.message), entry.qos, entry.retain, entry.alone, entry.source)
        packer = self._packers.get(what)
        if packer is None:
            packer = Packer(entry.message, entry.qos, entry.retain, entry.source, entry.alone, self._call)
            self._packers[what] = packer
        return packer


def put(at: Instance, entries: Sequence[Entry]) -> Steps[list[Put]]:
    """As `Store.offline_put`."""
    batch = _Batch(at, entries)
    replies = checked((yield [*batch.bodies, *batch.calls]))[len(batch.bodies) :]
    results = [Put(0, None)] * len(entries)
    freed = Freed()
    added = 0
    for (shard, numbers), (counts, flat) in zip(batch.numbers, replies, strict=True):
        at.counts.take(shard, counts)
        for n, position, owner, there in zip(numbers, flat[::3], flat[1::3], flat[2::3], strict=True):
            results[n] = Put(max(0, position), None if position < 0 else owner.decode())
            packer = batch.packers[n]
            if packer is None:
                continue
            added += position > 0 and not there
            if (position <= 0 or there) and not packer.inline:
                _not_put(freed, packer.place, there)
    yield from freed.steps(at)
    if added:
        yield from expiry.keep_to_limit(at, added)
    return results


def _not_put(freed: Freed, place: Place, there: bytes) -> None:
    """there: the place of the body of the one that waits already."""
    other = Place.of(there)
    same = there and other[1:] == place[1:]
    freed.add(place, other.call if same and other.call != place.call else b"")


def get(at: Instance, client_id: str, limit: int, newest: bool, after: int) -> Steps[list[Waiting]]:
    """As `Store.offline_get`."""
    found: list[Waiting] = []
    before: int | str = ""
    while len(found) < limit:
        most = min(limit - len(found), READ_CHUNK)
        call = Call("offline_get", (at.keys.counts(shard_of(client_id)),), (client_id, most, int(newest), after, before))
        (rows,) = checked((yield [call]))
        positions = [int(position) for position in rows[::2]]
        found += yield from _waiting(at, client_id, positions, rows[1::2], [(0, 0)] * len(positions))
        if len(positions) < most:
            break
        if newest:
            before = positions[-1]
        else:
            after = positions[-1]
    return found


def in_flight(at: Instance, client_id: str, rows: Sequence[bytes]) -> Steps[list[Waiting]]:
    """What was sent and not finished, in the order of sending. rows: as `rows_in_flight` of the script library returns them."""
    found: list[tuple[int, int, int, int, bytes]] = []
    for position, state, ref in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        packet_id, phase, order = map(int, state.split(b":"))
        found.append((order, int(position), packet_id, phase, ref))
    found.sort()
    states = [(packet_id, phase) for _, _, packet_id, phase, _ in found]
    return (yield from _waiting(at, client_id, [row[1] for row in found], [row[4] for row in found], states))


def _waiting(
    at: Instance, client_id: str, positions: Sequence[int], packed: Sequence[bytes], states: Sequence[tuple[int, int]]
) -> Steps[list[Waiting]]:
    """With their bodies. One whose body is missing is skipped, and removed when that can't be on its way any more."""
    references = [bodies.unpack(one) for one in packed]
    messages = yield from bodies.read(at, references)
    found: list[Waiting] = []
    lost: list[int | bytes] = []
    for one, position, ref, message, (packet_id, phase) in zip(references, positions, packed, messages, states, strict=True):
        if message is not None:
            found.append(Waiting(client_id, message, one.qos, packet_id, PHASES[phase], position, one.source, one.retain))
        elif _is_lost(at, one):
            lost += (position, ref)
    if lost:
        shard = shard_of(client_id)
        (reply,) = checked((yield [Call("offline_lost", (at.keys.counts(shard),), (client_id, *lost))]))
        at.counts.take(shard, reply[0])
        at.places.lost += reply[1]
    return found


def _is_lost(at: Instance, one: Reference) -> bool:
    return one.order < (at.now() - MISSING_MS) * 1000


def remove(at: Instance, client_id: str, positions: Sequence[int]) -> Steps[bool]:
    """As `Store.offline_remove`."""
    shard = shard_of(client_id)
    key = (at.keys.counts(shard),)
    chunks = [positions[start : start + CHUNK] for start in range(0, len(positions), CHUNK)]
    replies = checked((yield [Call("offline_remove", key, (client_id, *chunk)) for chunk in chunks]))
    if replies:
        at.counts.take(shard, replies[-1][0])
    yield from bodies.free(at, [place for _, places in replies for place in places])
    return True


def forget(at: Instance, keys: Sequence[tuple[str, str]]) -> Steps[bool]:
    """As `Store.forget`."""
    shards: dict[int, list[str | bytes]] = {}
    for client_id, unique_key in keys:
        shards.setdefault(shard_of(client_id), []).extend((client_id, bodies.name_of(unique_key)))
    calls: list[Call | Command] = []
    asked: list[int] = []
    for shard, args in shards.items():
        for start in range(0, len(args), 2 * CHUNK):
            calls.append(Call("offline_forget", (at.keys.counts(shard),), tuple(args[start : start + 2 * CHUNK])))
            asked.append(shard)
    for shard, counts in zip(asked, checked((yield calls)), strict=True):
        at.counts.take(shard, counts)
    return True


async def remembered(at: Instance, line: Line, shards: Sequence[int]) -> AsyncIterator[list[tuple[str, str, Queue, int]]]:
    """As `Store.remembered`."""
    for first in range(0, len(shards), SHARDS_AT_ONCE):
        clients = await line.ask(partial(_keepers, at, shards[first : first + SHARDS_AT_ONCE]))
        for start in range(0, len(clients), CLIENTS_AT_ONCE):
            rows = await line.ask(partial(_remembered_of, at, clients[start : start + CLIENTS_AT_ONCE]))
            for place in range(0, len(rows), STREAM_CHUNK):
                yield rows[place : place + STREAM_CHUNK]


def _keepers(at: Instance, shards: Sequence[int]) -> Steps[list[str]]:
    replies = checked((yield [Command(("SMEMBERS", at.keys.shard("keepers", shard))) for shard in shards]))
    return [client.decode() for reply in replies for client in reply]


def _remembered_of(at: Instance, clients: Sequence[str]) -> Steps[list[tuple[str, str, Queue, int]]]:
    replies = checked((yield [Command(("HGETALL", at.keys.remembered(client))) for client in clients]))
    rows: list[tuple[str, str, Queue, int]] = []
    for client, reply in zip(clients, replies, strict=True):
        for name, packed in zip(reply[::2], reply[1::2], strict=True):
            source = bodies.unpack_source(packed)
            assert source is not None
            rows.append((client, bodies.id_of(name), *source))
    return rows
