"""Retained messages (MQTT clause 3.3.1.3) and marks."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.ports import Retained
from gateway.store.sqlite.tables import Tables


def retain(tables: Tables, topic: str, retained: Retained | None) -> bool:
    """As `Store.retain`."""
    db, counts = tables.db, tables.counts
    if retained is None:
        counts.retained -= db.execute("DELETE FROM retained WHERE topic = ?", (topic,)).rowcount
        return True
    values = (retained.qos, retained.id, retained.stored_at, retained.payload, topic)
    if db.execute("UPDATE retained SET qos=?, id=?, stored_at=?, payload=? WHERE topic=?", values).rowcount:
        return True
    if counts.retained >= tables.limits.retained:
        return False
    db.execute("INSERT INTO retained (qos, id, stored_at, payload, topic) VALUES (?, ?, ?, ?, ?)", values)
    counts.retained += 1
    return True


def topics_from(tables: Tables, prefix: str, start: str, inclusive: bool, limit: int) -> tuple[list[str], bool]:
    """Topics that begin with `prefix`, from `start` on, sorted; and whether there may be more. SQLite's order of texts is that of their
    UTF-8 bytes, which is Python's."""
    found = tables.db.execute(
        f"SELECT topic FROM retained WHERE topic {'>=' if inclusive else '>'} ? ORDER BY topic LIMIT ?", (start, limit)
    ).fetchall()
    topics = [topic for (topic,) in found if topic.startswith(prefix)]
    return topics, len(topics) == limit  # fewer: the end of the table or of the prefix


def messages(tables: Tables, topics: Sequence[str]) -> list[Retained]:
    """Those that are still there, in the order of `topics`."""
    messages: list[Retained] = []
    for topic in topics:
        row = tables.db.execute("SELECT topic, payload, qos, id, stored_at FROM retained WHERE topic = ?", (topic,)).fetchone()
        if row is not None:
            messages.append(Retained(*row))
    return messages


def mark(tables: Tables, name: str) -> str | None:
    row = tables.db.execute("SELECT value FROM mark WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def set_mark(tables: Tables, name: str, value: str) -> None:
    tables.db.execute("INSERT OR REPLACE INTO mark VALUES (?, ?)", (name, value))
