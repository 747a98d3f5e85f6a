"""The embedded store: one SQLite file for a single node (docs/decisions/0002-sqlite-store.md)."""

from gateway.store.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
