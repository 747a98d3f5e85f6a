"""Messages that wait for a session: bodies stored once, one row for each session that waits (contract section 6)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gateway.ports import OfflineMessage, Phase, Put, Queue, Waiting
from gateway.store import packed
from gateway.store.sqlite.schema import PERSISTENT
from gateway.store.sqlite.tables import Tables

PHASES = {phase.value: phase for phase in Phase}
_COLUMNS = "b.unique_key, b.topic, b.payload, b.stored_at, w.qos, w.packet_id, w.phase, w.position, w.source, w.retain"
_READ = f"SELECT {_COLUMNS} FROM waiting w JOIN body b ON b.id = w.body WHERE w.client = ?"


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


def entries(waiting: Sequence[Waiting]) -> list[Entry]:
    return [Entry(w.client_id, w.message, w.qos, w.packet_id, w.phase.value, w.position, w.source, w.retain, w.epoch) for w in waiting]


class _Batch:
    """What one `put` has to know of the tables, read with one statement for each kind: a fan-out names few messages and many clients, a
    backlog the reverse."""

    def __init__(self, tables: Tables, entries: Sequence[Entry]) -> None:
        db = tables.db
        names = json.dumps(list({entry.client_id for entry in entries}))
        self.clients: dict[str, tuple[int, int, str]] = {  # with epoch and owner
            name: (id, epoch, node or "")
            for name, id, epoch, node in db.execute(
                f"SELECT name, id, epoch, node FROM client WHERE kind = {PERSISTENT} AND name IN (SELECT value FROM json_each(?))", (names,)
            )
        }
        keys = json.dumps(list({entry.message.id for entry in entries if not entry.position}))
        self.bodies: dict[str, dict[str, int]] = {}  # UNIQ_KEY -> topic -> body, of those stored before
        for key, topic, body in db.execute(
            "SELECT unique_key, topic, id FROM body WHERE unique_key IN (SELECT value FROM json_each(?))", (keys,)
        ):
            self.bodies.setdefault(key, {})[topic] = body
        self.taken: set[tuple[int, str]] = set()  # (client, UNIQ_KEY) that must not be put again
        if tables.counts.remembered:
            self.taken.update(
                db.execute("SELECT client, unique_key FROM remembered WHERE unique_key IN (SELECT value FROM json_each(?))", (keys,))
            )
        self.fresh: dict[tuple[str, str], tuple[int, OfflineMessage]] = {}
        self.rows: list[tuple[Any, ...]] = []


def put(tables: Tables, entries: Sequence[Entry]) -> list[Put]:
    """As `Store.offline_put`."""
    batch = _Batch(tables, entries)
    results: list[Put] = []
    for entry in entries:
        found = batch.clients.get(entry.client_id)
        if found is None:
            results.append(Put(0, None))
            continue
        client, epoch, owner = found
        late = entry.epoch != 0 and entry.epoch != epoch  # of a connection that has been taken over: its packet ids mean nothing now
        if not entry.position:
            position = _append(tables, batch, client, entry._replace(packet_id=0, phase=0, epoch=0) if late else entry)
        else:
            position = 0 if late else _update(tables, client, entry)
        results.append(Put(position, owner))
    db = tables.db
    if batch.fresh:
        db.executemany(
            "INSERT INTO body VALUES (?, ?, ?, ?, ?)",
            [(body, new.id, new.topic, new.stored_at, new.payload) for body, new in batch.fresh.values()],
        )
    if batch.rows:
        db.executemany("INSERT INTO waiting VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", batch.rows)
        tables.counts.offline += len(batch.rows)
        _keep_to_limit(tables)
    return results


def _append(tables: Tables, batch: _Batch, client: int, entry: Entry) -> int:
    message = entry.message
    taken = (client, message.id)
    if taken in batch.taken:
        return 0
    stored = batch.bodies.get(message.id)
    waits = None if stored is None else _waits(tables, client, stored.values())
    if waits is not None:
        position, *state = waits
        return position if entry.epoch and entry.phase and state == [entry.packet_id, entry.phase] else 0
    batch.taken.add(taken)
    body = None if stored is None else stored.get(message.topic)
    if body is None:
        place = (message.id, message.topic)
        new = batch.fresh.get(place)
        if new is None:
            new = batch.fresh[place] = (tables.next(), message)
        body = new[0]
    position = tables.next()
    phase = entry.phase
    source = packed.pack_source(message.id, entry.source)
    batch.rows.append((position, client, body, entry.qos, entry.packet_id, phase, position if phase else 0, entry.retain, source))
    return position


def _waits(tables: Tables, client: int, bodies: Iterable[int]) -> tuple[int, int, int] | None:
    """Position, packet id and phase of the one that waits already."""
    for body in bodies:
        row = tables.db.execute("SELECT position, packet_id, phase FROM waiting WHERE body = ? AND client = ?", (body, client)).fetchone()
        if row is not None:
            return int(row[0]), int(row[1]), int(row[2])
    return None


def _update(tables: Tables, client: int, entry: Entry) -> int:
    phase, packet_id = entry.phase, entry.packet_id
    # `sent` moves with each packet that is new on the wire: PUBLISHes are resent in their order [MQTT-4.6.0-1], PUBRELs in theirs
    changed = tables.db.execute(
        "UPDATE waiting SET sent = CASE WHEN ?1 = 0 THEN 0 WHEN phase = ?1 AND packet_id = ?2 THEN sent ELSE ?3 END, "
        "phase = ?1, packet_id = ?2 WHERE position = ?4 AND client = ?5",
        (phase, packet_id, tables.next(), entry.position, client),
    )
    return entry.position if changed.rowcount else 0


def _keep_to_limit(tables: Tables) -> None:
    excess = tables.counts.offline - tables.limits.offline
    if excess > 0:
        removed = tables.db.execute(
            "DELETE FROM waiting WHERE position IN (SELECT position FROM waiting ORDER BY position LIMIT ?)", (excess,)
        ).rowcount
        tables.counts.offline -= removed
        tables.counts.overflowed += removed


def get(tables: Tables, client_id: str, limit: int, newest: bool, after: int) -> list[Waiting]:
    """As `Store.offline_get`."""
    row = tables.db.execute("SELECT id FROM client WHERE name = ?", (client_id,)).fetchone()
    if row is None:
        return []
    order = "DESC" if newest else "ASC"
    found = tables.db.execute(f"{_READ} AND w.phase = 0 AND w.position > ? ORDER BY w.position {order} LIMIT ?", (row[0], after, limit))
    return [_waiting(client_id, one) for one in found]


def inflight_of(tables: Tables, client: int, client_id: str) -> list[Waiting]:
    """Sent and not finished, in the order of sending."""
    found = tables.db.execute(f"{_READ} AND w.phase > 0 ORDER BY w.sent", (client,))
    return [_waiting(client_id, one) for one in found]


def backlog_of(tables: Tables, client: int) -> int:
    return int(tables.db.execute("SELECT count(*) FROM waiting WHERE client = ? AND phase = 0", (client,)).fetchone()[0])


def remove(tables: Tables, client_id: str, positions: Sequence[int]) -> bool:
    """As `Store.offline_remove`."""
    db, counts = tables.db, tables.counts
    row = db.execute("SELECT id FROM client WHERE name = ?", (client_id,)).fetchone()
    if row is None:
        return True
    for position in positions:
        removed = db.execute("DELETE FROM waiting WHERE position = ? AND client = ? RETURNING source", (position, row[0])).fetchall()
        counts.offline -= len(removed)
        for (source,) in removed:
            if source is not None:
                unique_key = packed.unpack_source(source)[0]
                counts.remembered += db.execute("INSERT OR IGNORE INTO remembered VALUES (?, ?, ?)", (unique_key, row[0], source)).rowcount
    return True


def remembered_after(tables: Tables, place: tuple[str, int], limit: int) -> tuple[tuple[str, int], list[tuple[str, str, Queue, int]]]:
    """A chunk of `Store.remembered`, and the place (UNIQ_KEY, client) of its last."""
    found = tables.db.execute(
        "SELECT r.unique_key, r.client, c.name, r.source FROM remembered r JOIN client c ON c.id = r.client "
        "WHERE (r.unique_key, r.client) > (?, ?) ORDER BY r.unique_key, r.client LIMIT ?",
        (*place, limit),
    ).fetchall()
    if found:
        place = (found[-1][0], found[-1][1])
    return place, [(name, *packed.unpack_source(source)) for _, _, name, source in found]


def forget(tables: Tables, keys: Sequence[tuple[str, str]]) -> bool:
    """As `Store.forget`."""
    removed = tables.db.executemany(
        "DELETE FROM remembered WHERE unique_key = ? AND client = (SELECT id FROM client WHERE name = ?)",
        [(unique_key, client_id) for client_id, unique_key in keys],
    )
    tables.counts.remembered -= removed.rowcount
    return True


def _waiting(client_id: str, row: tuple[Any, ...]) -> Waiting:
    """row: _COLUMNS of body b and waiting w."""
    unique_key, topic, payload, stored_at, qos, packet_id, phase, position, source, retain = row
    message = OfflineMessage(unique_key, topic, payload, stored_at)
    origin = None if source is None else packed.unpack_source(source)[1:]
    return Waiting(client_id, message, qos, packet_id, PHASES[phase], position, origin, bool(retain))
