"""What is over its time: offline messages, sessions without a connection, and the clocks of clients long gone (contract section 11)."""

from __future__ import annotations

from gateway.store.sqlite.registry import forget_session
from gateway.store.sqlite.schema import GONE, PERSISTENT
from gateway.store.sqlite.sessions import subscriptions_of
from gateway.store.sqlite.tables import Tables

CHUNK = 500  # rows of one step, so that the writer is never held for long
CLOCK_MS = 30 * 24 * 3600 * 1000  # how long the clock of a client without a session is kept when sessions never expire
_FREE_PAGES = 1000  # given back to the file system at a time


def messages(tables: Tables, now: int) -> tuple[int, bool]:
    """Remove a chunk of the messages that are over the retention: (how many, whether there may be more)."""
    db = tables.db
    found = db.execute("SELECT id FROM body WHERE stored_at <= ? LIMIT ?", (now - tables.limits.offline_ms, CHUNK)).fetchall()
    removed = sum(db.execute("DELETE FROM waiting WHERE body = ?", body).rowcount for body in found)
    tables.counts.offline -= removed
    return removed, len(found) == CHUNK


def sessions(tables: Tables, now: int) -> tuple[dict[str, list[str]], bool]:
    """Remove a chunk of the sessions that had no connection for too long: (their filters by Client ID, whether there may be more)."""
    if not tables.limits.session_ms:
        return {}, False
    found = tables.db.execute(
        f"SELECT id, name FROM client WHERE node IS NULL AND kind = {PERSISTENT} AND left_at <= ? LIMIT ?",
        (now - tables.limits.session_ms, CHUNK),
    ).fetchall()
    gone: dict[str, list[str]] = {}
    for id, name in found:
        gone[name] = [each.filter for each in subscriptions_of(tables, id)]
        forget_session(tables, id)
        tables.db.execute("DELETE FROM client WHERE id = ?", (id,))
    tables.counts.sessions -= len(found)
    return gone, len(found) == CHUNK


def clocks(tables: Tables, now: int) -> bool:
    """Remove a chunk of the rows that only kept the clock of a client's events; whether there may be more."""
    removed = tables.db.execute(
        f"DELETE FROM client WHERE id IN (SELECT id FROM client WHERE node IS NULL AND kind = {GONE} AND left_at <= ? LIMIT ?)",
        (now - (tables.limits.session_ms or CLOCK_MS), CHUNK),
    )
    return removed.rowcount == CHUNK


def pages(tables: Tables) -> None:
    """Give some free pages back to the file system."""
    tables.db.execute(f"PRAGMA incremental_vacuum({_FREE_PAGES})").fetchall()
