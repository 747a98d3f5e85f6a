"""The registry's transitions: claim, release, abandoned. Each is one step together with its events and wills (contract section 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.ports import Claim, Claimed, Event, Owned, Release, StoreError
from gateway.store import packed
from gateway.store.sqlite import offline, outbox, sessions
from gateway.store.sqlite.schema import CLEAN, GONE, PERSISTENT
from gateway.store.sqlite.tables import Tables

TAKEN_OVER = "taken_over"
NODE_LOST = "node_lost"

_COLUMNS = "id, name, epoch, time, seq, kind, node, channel_id, client_ip, will"


class _Client:
    """A row of `client`, and the events made from it."""

    __slots__ = ("channel_id", "client_ip", "epoch", "id", "kind", "name", "node", "seq", "time", "will")

    def __init__(self, row: tuple[Any, ...]) -> None:
        (self.id, self.name, self.epoch, self.time, self.seq, self.kind, self.node, self.channel_id, self.client_ip, self.will) = row

    def emit(self, tables: Tables, id: str, type: str, now: int, reason: str, node: str) -> None:
        # strictly growing, whatever the clock did: readers order a client's connections by it
        self.time = max(now, self.time + 1)
        self.seq += 1
        event = Event(id, self.name, type, self.time, self.seq, self.channel_id, self.client_ip, reason, node)
        outbox.append(tables, self.name, event, None)

    def emit_will(self, tables: Tables) -> None:
        if self.will is not None:
            outbox.append(tables, self.name, None, self.will)


def claim(tables: Tables, claim: Claim) -> Claimed | Owned | StoreError:
    """As `Store.claim`. The StoreError is returned: nothing was changed, and the batch goes on."""
    db, counts = tables.db, tables.counts
    row = db.execute(f"SELECT {_COLUMNS} FROM client WHERE name = ?", (claim.client_id,)).fetchone()
    client = _Client(row or (None, claim.client_id, 0, 0, 0, GONE, None, "", "", None))
    owned = client.node is not None
    if claim.gentle and owned and client.node != claim.node:
        return Owned(client.node, client.channel_id)
    needed = 1 + owned + (owned and client.will is not None)
    if counts.outbox + needed > tables.limits.outbox:
        return StoreError(
            f"store: the outbox holds {counts.outbox} events of {tables.limits.outbox}; "
            "see why the backend does not take them, or raise limits.outbox_count"
        )
    if owned:
        client.emit(tables, claim.event_ids[1], "tcpclean", claim.now, TAKEN_OVER, client.node)
        client.emit_will(tables)
    present = claim.persistent and client.kind == PERSISTENT
    dropped: list[str] = []
    if client.kind != GONE and not present:
        dropped = [each.filter for each in sessions.subscriptions_of(tables, client.id)]
        forget_session(tables, client.id)
    counts.sessions += claim.persistent - (client.kind == PERSISTENT)
    client.channel_id, client.client_ip = claim.channel_id, claim.client_ip
    client.emit(tables, claim.event_ids[0], "connect", claim.now, "", claim.node)
    epoch = tables.next()  # greater than any before, also after the row was pruned
    values = (
        epoch, client.time, client.seq, PERSISTENT if claim.persistent else CLEAN,
        claim.node, claim.channel_id, claim.client_ip, claim.now, packed.pack_will(claim.will),
    )  # fmt: skip
    if client.id is None:
        db.execute(
            "INSERT INTO client (epoch, time, seq, kind, node, channel_id, client_ip, left_at, will, name) VALUES (?,?,?,?,?,?,?,?,?,?)",
            (*values, claim.client_id),
        )
    else:
        db.execute(
            "UPDATE client SET epoch=?, time=?, seq=?, kind=?, node=?, channel_id=?, client_ip=?, left_at=?, will=? WHERE id=?",
            (*values, client.id),
        )
    if not present:
        return Claimed(epoch, False, dropped=dropped)
    return Claimed(
        epoch,
        True,
        sessions.subscriptions_of(tables, client.id),
        inbound=sessions.inbound_of(tables, client.id),
        inflight=offline.inflight_of(tables, client.id, claim.client_id),
        backlog=offline.backlog_of(tables, client.id),
    )


def release(tables: Tables, release: Release) -> bool:
    """As `Store.release`."""
    row = tables.db.execute(
        f"SELECT {_COLUMNS} FROM client WHERE name = ? AND node IS NOT NULL AND CASE ? WHEN 0 THEN channel_id = ? ELSE epoch = ? END",
        (release.client_id, release.epoch, release.channel_id, release.epoch),
    ).fetchone()
    if row is None:
        return False
    client = _Client(row)
    if release.polite:  # the will is discarded [MQTT-3.14.4-3]
        client.emit(tables, release.event_ids[0], "disconnect", release.now, release.reason, release.node)
    _leave(tables, client, release.event_ids[1], release.now, release.reason, release.node, with_will=not release.polite)
    return True


def owned_by(tables: Tables, node: str) -> int:
    """How many connections the registry has of `node`."""
    return int(tables.db.execute("SELECT count(*) FROM client WHERE node = ?", (node,)).fetchone()[0])


def abandon(tables: Tables, node: str, now: int, ids: Sequence[str]) -> int:
    """Release what `node` owns, at most as many as there are ids for the `tcpclean` events. How many."""
    found = tables.db.execute(f"SELECT {_COLUMNS} FROM client WHERE node = ? LIMIT ?", (node, len(ids))).fetchall()
    for row, id in zip(found, ids, strict=False):
        _leave(tables, _Client(row), id, now, NODE_LOST, node, with_will=True)
    return len(found)


def _leave(tables: Tables, client: _Client, id: str, now: int, reason: str, node: str, *, with_will: bool) -> None:
    client.emit(tables, id, "tcpclean", now, reason, node)
    if with_will:
        client.emit_will(tables)
    kind = client.kind
    if kind == CLEAN:
        forget_session(tables, client.id)
        kind = GONE
    tables.db.execute(
        "UPDATE client SET time=?, seq=?, kind=?, node=NULL, left_at=?, will=NULL WHERE id=?",
        (client.time, client.seq, kind, now, client.id),
    )


def forget_session(tables: Tables, client: int) -> None:
    """Delete everything stored of the session; the row of `client` stays, since it keeps the clock of its events."""
    db, counts = tables.db, tables.counts
    counts.subscriptions -= db.execute("DELETE FROM subscription WHERE client = ?", (client,)).rowcount
    db.execute("DELETE FROM inbound WHERE client = ?", (client,))
    counts.offline -= db.execute("DELETE FROM waiting WHERE client = ?", (client,)).rowcount
    counts.remembered -= db.execute("DELETE FROM remembered WHERE client = ?", (client,)).rowcount
