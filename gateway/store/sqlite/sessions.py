"""What is stored of a session beside its messages: subscriptions and the QoS 2 packet ids of the device (MQTT clauses 3.8, 4.3.3)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gateway.ports import Subscription
from gateway.store.sqlite.schema import GONE, PERSISTENT
from gateway.store.sqlite.tables import Tables


def fenced(tables: Tables, client_id: str, epoch: int) -> int | None:
    """The session's row if `epoch` is its newest; a session that is between two connections keeps its epoch."""
    row = tables.db.execute(f"SELECT id FROM client WHERE name = ? AND epoch = ? AND kind != {GONE}", (client_id, epoch)).fetchone()
    return None if row is None else int(row[0])


def subscribe(tables: Tables, client_id: str, epoch: int, subscriptions: Sequence[Subscription]) -> bool | None:
    client = fenced(tables, client_id, epoch)
    if client is None:
        return None
    for filter, qos, since in subscriptions:
        changed = tables.db.execute("UPDATE subscription SET qos=?, since=? WHERE client=? AND filter=?", (qos, since, client, filter))
        if not changed.rowcount:
            tables.db.execute("INSERT INTO subscription VALUES (?, ?, ?, ?)", (client, filter, qos, since))
            tables.counts.subscriptions += 1
    return True


def unsubscribe(tables: Tables, client_id: str, epoch: int, filters: Sequence[str]) -> bool | None:
    client = fenced(tables, client_id, epoch)
    if client is None:
        return None
    removed = tables.db.executemany("DELETE FROM subscription WHERE client=? AND filter=?", [(client, filter) for filter in filters])
    tables.counts.subscriptions -= removed.rowcount
    return True


def subscriptions_of(tables: Tables, client: int) -> list[Subscription]:
    found = tables.db.execute("SELECT filter, qos, since FROM subscription WHERE client = ?", (client,))
    return [Subscription(*row) for row in found]


Place = tuple[int, str]  # of a row of `subscription` or `remembered`, to go on after it
BEGIN: Place = (-1, "")


def subscriptions_after(tables: Tables, place: Place, limit: int) -> tuple[Place, list[tuple[str, Subscription]]]:
    """A chunk of all stored ones, and the place of its last."""
    found = tables.db.execute(
        "SELECT s.client, c.name, s.filter, s.qos, s.since FROM subscription s JOIN client c ON c.id = s.client "
        "WHERE (s.client, s.filter) > (?, ?) ORDER BY s.client, s.filter LIMIT ?",
        (*place, limit),
    ).fetchall()
    if found:
        place = (found[-1][0], found[-1][2])
    return place, [(name, Subscription(filter, qos, since)) for _, name, filter, qos, since in found]


def present(tables: Tables, client_ids: Sequence[str]) -> set[str]:
    """Those with a persistent session."""
    found = tables.db.execute(
        f"SELECT name FROM client WHERE kind = {PERSISTENT} AND name IN (SELECT value FROM json_each(?))", (json.dumps(client_ids),)
    )
    return {name for (name,) in found}


def inbound_put(tables: Tables, client_id: str, epoch: int, packet_id: int, unique_key: str) -> bool | None:
    client = fenced(tables, client_id, epoch)
    if client is None:
        return None
    tables.db.execute("INSERT OR REPLACE INTO inbound VALUES (?, ?, ?, 0)", (client, packet_id, unique_key))
    return True


def inbound_stored(tables: Tables, client_id: str, epoch: int, packet_ids: Sequence[int]) -> bool | None:
    client = fenced(tables, client_id, epoch)
    if client is None:
        return None
    tables.db.executemany("UPDATE inbound SET stored = 1 WHERE client=? AND packet_id=?", [(client, id) for id in packet_ids])
    return True


def inbound_remove(tables: Tables, client_id: str, epoch: int, packet_id: int) -> bool | None:
    client = fenced(tables, client_id, epoch)
    if client is None:
        return None
    tables.db.execute("DELETE FROM inbound WHERE client=? AND packet_id=?", (client, packet_id))
    return True


def inbound_of(tables: Tables, client: int) -> dict[int, tuple[str, bool]]:
    found = tables.db.execute("SELECT packet_id, unique_key, stored FROM inbound WHERE client = ?", (client,))
    return {packet_id: (unique_key, bool(stored)) for packet_id, unique_key, stored in found}
