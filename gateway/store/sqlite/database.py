"""An SQLite file as an engine of the pump: opening, transactions, what an error means, and the counts kept beside the tables."""

from __future__ import annotations

import copy
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gateway import observe
from gateway.ports import StoreError
from gateway.store.sqlite import schema
from gateway.store.sqlite.tables import Counts, Limits, Operation, Tables

BUSY_SECONDS = 5.0  # another program (a backup, the sqlite3 shell) may hold the file for a moment
OLDEST_SQLITE = (3, 35, 0)  # RETURNING
WAL_BYTES = 64 << 20  # the WAL file is cut to this after a checkpoint
CHECKPOINT_PAGES = 4000
CACHE_KIB = 64 << 10

_CURES = {
    "SQLITE_FULL": "free disk space; nothing needs to be restarted",
    "SQLITE_READONLY": "make the file and its folder writable for the gateway's user",
    "SQLITE_CANTOPEN": "create the folder and make it writable for the gateway's user",
    "SQLITE_PERM": "make the file and its folder writable for the gateway's user",
    "SQLITE_IOERR": "check the disk and its free space",
    "SQLITE_BUSY": "close the other program that has the file open",
    "SQLITE_LOCKED": "close the other program that has the file open",
    "SQLITE_CORRUPT": "restore the file from a backup, or move it away to begin with an empty store",
    "SQLITE_NOTADB": "set store.url to another path, or move the file away",
    "SQLITE_NOMEM": "give the gateway more memory",
    "SQLITE_INTERRUPT": "the gateway was shutting down",
}


class Failure(StoreError):
    """cure: the part of the text that says what to do."""

    def __init__(self, text: str, cure: str) -> None:
        super().__init__(f"{text}; {cure}")
        self.cure = cure


def explain(path: Path, error: sqlite3.Error) -> Failure | None:
    """What an error of SQLite's surroundings means for the operator; None: the operation itself is at fault."""
    name: str = getattr(error, "sqlite_errorname", "")
    for code, cure in _CURES.items():
        if name.startswith(code):
            return Failure(f"store {path}: {error} ({name})", cure)
    return None


class Database:
    """One connection to the file, used by one worker thread.

    writer: a batch is one transaction, and its counts are published in `committed` when it is durable. Otherwise every operation sees the
    newest committed state for itself and can't write. failing: the last batch's failure, None when it went well.
    """

    def __init__(self, path: Path, limits: Limits, *, writer: bool, synchronous: str = "FULL") -> None:
        self.path = path
        self.committed = Counts()
        self.failing: Failure | None = None
        self.failures = 0
        self._limits = limits
        self._writer = writer
        self._synchronous = synchronous
        self._tables: Tables | None = None

    def open(self) -> None:
        """Raises StoreError."""
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreError(f"store: SQLite {sqlite3.sqlite_version} is too old; install a Python with SQLite 3.35 or newer")
        db: sqlite3.Connection | None = None
        try:
            if self._writer:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # payloads are nobody else's business
            db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256)
            self._tables = Tables(db, self._prepare(db), self._limits)
        except (sqlite3.Error, OSError, StoreError) as error:
            if db is not None:
                db.close()
            if isinstance(error, StoreError):
                raise
            failure = explain(self.path, error) if isinstance(error, sqlite3.Error) else None
            raise failure or StoreError(f"store {self.path}: {error}; make the file and its folder writable") from error

    def _prepare(self, db: sqlite3.Connection) -> Counts:
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        if not self._writer:
            db.execute("PRAGMA query_only = ON")
            return Counts()
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # must be set before the first table
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {self._synchronous}")
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        schema.prepare(db, str(self.path))
        self.committed = _counted(db, self.committed)
        return copy.copy(self.committed)

    def execute(self, jobs: Sequence[Operation]) -> list[Any]:
        """As `Engine.execute`."""
        if self._tables is None:
            try:
                self.open()
            except StoreError as error:
                return self._failed(error, len(jobs))
        tables = self._tables
        assert tables is not None
        if not self._writer:
            return [self._read(tables, job) for job in jobs]
        try:
            results = self._transaction(tables, lambda: [job(tables) for job in jobs])
        except Exception as error:  # noqa: BLE001 - the second try logs it
            if failure := self._take_back(tables, error):
                return self._failed(failure, len(jobs))
            try:  # a culprit among them: once more, each within a savepoint
                results = self._transaction(tables, lambda: [self._alone(tables, job) for job in jobs])
            except Exception as again:  # noqa: BLE001 - logged
                observe.log.exception("store_batch_failed", store=str(self.path))
                return self._failed(self._take_back(tables, again) or self._fault(again), len(jobs))
        self.failing = None
        return results

    def interrupt(self) -> None:
        """As `Engine.interrupt`."""
        if (tables := self._tables) is not None:
            try:
                tables.db.interrupt()
            except sqlite3.ProgrammingError:
                pass  # closed by its thread at this moment

    def close(self) -> None:
        tables, self._tables = self._tables, None
        if tables is not None:
            tables.db.close()

    def _transaction(self, tables: Tables, work: Callable[[], list[Any]]) -> list[Any]:
        db = tables.db
        db.execute("BEGIN IMMEDIATE")
        results = work()
        if tables.counts.position != self.committed.position:
            db.execute("UPDATE counter SET value = ? WHERE name = 'position'", (tables.counts.position,))
        db.execute("COMMIT")
        self.committed = copy.copy(tables.counts)
        return results

    def _alone(self, tables: Tables, job: Operation) -> Any:
        before = copy.copy(tables.counts)
        tables.db.execute("SAVEPOINT one")
        try:
            result = job(tables)
        except Exception as error:
            if not tables.db.in_transaction:
                raise  # SQLite took the whole transaction back
            tables.db.execute("ROLLBACK TO one")
            tables.counts = before
            observe.log.exception("store_operation_failed", store=str(self.path))
            result = self._explained(error) or self._fault(error)
        tables.db.execute("RELEASE one")
        return result

    def _read(self, tables: Tables, job: Operation) -> Any:
        try:
            return job(tables)
        except Exception as error:  # noqa: BLE001 - logged, unless it is the surroundings' fault
            failure = self._explained(error)
            if failure is None:
                observe.log.exception("store_operation_failed", store=str(self.path))
            elif _stale(error):
                self.close()
            return failure or self._fault(error)

    def _take_back(self, tables: Tables, error: Exception) -> Failure | None:
        """Roll the batch back. The failure, if it is one of the surroundings: then trying again is for the callers."""
        failure = self._explained(error)
        stale = _stale(error)
        try:
            if tables.db.in_transaction:
                tables.db.execute("ROLLBACK")
        except sqlite3.Error as worse:
            failure, stale = self._explained(worse) or self._fault(worse), True
        tables.counts = copy.copy(self.committed)
        if stale:
            self.close()
        return failure

    def _explained(self, error: Exception) -> Failure | None:
        return explain(self.path, error) if isinstance(error, sqlite3.Error) else None

    def _fault(self, error: Exception) -> Failure:
        return Failure(f"store {self.path}: an operation failed ({type(error).__name__})", "see the traceback in the log")

    def _failed(self, error: StoreError, jobs: int) -> list[Any]:
        self.failures += jobs
        self.failing = error if isinstance(error, Failure) else Failure(str(error), "see the log")
        return [error] * jobs


def _stale(error: Exception) -> bool:
    """The connection may not be good any more: the next batch begins with a new one."""
    return getattr(error, "sqlite_errorname", "").startswith(
        ("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CANTOPEN")
    )


def _counted(db: sqlite3.Connection, old: Counts) -> Counts:
    def one(question: str) -> int:
        return int(db.execute(question).fetchone()[0])

    return Counts(
        position=one("SELECT value FROM counter WHERE name = 'position'"),
        sessions=one(f"SELECT count(*) FROM client WHERE kind = {schema.PERSISTENT}"),
        subscriptions=one("SELECT count(*) FROM subscription"),
        offline=one("SELECT count(*) FROM waiting"),
        remembered=one("SELECT count(*) FROM remembered"),
        retained=one("SELECT count(*) FROM retained"),
        outbox=one("SELECT count(*) FROM outbox"),
        appended=old.appended,
        overflowed=old.overflowed,
    )
