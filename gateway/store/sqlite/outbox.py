"""The outbox: lifecycle events and due wills, in the order in which the registry made them (contract section 7)."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.ports import Event, OutboxItem
from gateway.store import packed
from gateway.store.sqlite.tables import Tables


def append(tables: Tables, client_id: str, event: Event | None, will: bytes | None) -> None:
    """will: packed."""
    tables.db.execute(
        "INSERT INTO outbox VALUES (?, ?, ?, ?)", (tables.next(), client_id, None if event is None else packed.pack_event(event), will)
    )
    tables.counts.outbox += 1
    tables.counts.appended += 1


def read(tables: Tables, after: int, limit: int) -> list[OutboxItem]:
    """Items with position > after, oldest first."""
    found = tables.db.execute(
        "SELECT position, client_id, event, will FROM outbox WHERE position > ? ORDER BY position LIMIT ?", (after, limit)
    )
    return [
        OutboxItem(position, client_id, None if event is None else packed.unpack_event(client_id, event), packed.unpack_will(will))
        for position, client_id, event, will in found
    ]


def remove(tables: Tables, positions: Sequence[int]) -> bool:
    removed = tables.db.executemany("DELETE FROM outbox WHERE position = ?", [(position,) for position in positions])
    tables.counts.outbox -= removed.rowcount
    return True
