"""The SQLite file of the embedded log: its lock, its tables, its statements, and the one thread that runs them.

The only file of this package with threads. All statements go through one worker thread at a time, first come first served. Python's sqlite3
lets go of the interpreter lock at each step of a statement, and a busy event loop gives it back only after milliseconds; so what belongs
together is one statement of many rows, never many statements.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heapreplace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import trio

from gateway import observe
from gateway.ports import BackendError, Refusal

T = TypeVar("T")
_OFFSET_BITS = 40  # a segment's key is queue << 40 | first offset
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
_APPLICATION = 0x6D71676C  # "mqgl": told apart from other SQLite files
_VERSION = 1
_CHUNK = 64  # rows of one statement; SQLite allows 32,766 parameters, and each row count is a statement of its own in the cache
_TRIM_SEGMENTS = 256  # removed in one transaction, so that the writer behind it waits for milliseconds only
_TRIM_BYTES = 4 * 1024 * 1024
_SCHEMA = """
CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, created INTEGER NOT NULL);
CREATE TABLE queues (id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, number INTEGER NOT NULL, min INTEGER NOT NULL);
CREATE TABLE segments (id INTEGER PRIMARY KEY, count INTEGER NOT NULL, stored INTEGER NOT NULL, total INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE offsets (name TEXT NOT NULL, queue INTEGER NOT NULL, next INTEGER NOT NULL, PRIMARY KEY (name, queue)) WITHOUT ROWID;
"""


class Segment(NamedTuple):
    """One row of `segments`. key: `segment_key`. length: messages. stored: ms, never falls within a queue. total: bytes of `data` of all
    segments of the queue so far, so that the size of what is left is a difference."""

    key: int
    length: int
    stored: int
    total: int
    data: bytes


class QueueState(NamedTuple):
    """A queue as it lies on the disk. total: as in `Segment`; base: what it was before the first segment that is left. oldest, newest: ms,
    when the first and the last of them were stored, -1 when none is left."""

    ref: int
    number: int
    min: int
    end: int
    total: int
    base: int
    oldest: int
    newest: int


def segment_key(ref: int, offset: int) -> int:
    """The key of a segment of queue `ref` that begins at `offset`."""
    return ref << _OFFSET_BITS | offset


def first_offset(key: int) -> int:
    """The offset at which the segment with `key` begins."""
    return key & _OFFSET_MASK


def cure(problem: Exception) -> str:
    """What to do about a failure of the file."""
    code = getattr(problem, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "make room on that disk"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return "make the file and its folder writable"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return "the file is damaged: stop the gateway and restore it, or move it away to begin with an empty log"
    return "see that the disk is there, writable and has room"


class Log:
    """The file at `path`. synchronous: "full" (each commit is synced, survives a power loss) or "normal" (survives the process's death)."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self.path = path
        self._synchronous = synchronous
        self._database: sqlite3.Connection | None = None
        self._lock = -1
        self._one = trio.CapacityLimiter(1)
        self.trouble = ""  # why the last write failed
        self.cure = ""
        self.failures = 0

    async def call(self, work: Callable[..., T], *args: Any) -> T:
        """Run one of the methods below in the thread. Raises what it raises: sqlite3.Error when the disk or the file won't do."""
        return await trio.to_thread.run_sync(work, *args, limiter=self._one)

    async def write(self, work: Callable[..., T], *args: Any) -> T:
        """As `call`, for what changes the file; keeps `trouble` up to date. After a failure the file is opened anew: a connection may keep
        a descriptor that never recovers."""
        try:
            if self.trouble:
                await self.call(self.reopen)
            result = await self.call(work, *args)
        except (sqlite3.Error, OSError) as problem:
            self.trouble, self.cure = str(problem), cure(problem)
            self.failures += 1
            observe.note(observe.Fact.BACKEND_UNAVAILABLE, server=str(self.path), error=self.trouble)
            raise
        if self.trouble:
            self.trouble = ""
            observe.note(observe.Fact.BACKEND_RECOVERED, server=str(self.path))
        return result

    # ---------------------------------------------------------------- opening

    def open(self) -> None:
        """Lock and open the file; make it when there is none. Raises BackendError (UNAVAILABLE)."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._lock < 0:
                self._lock = self._take_lock()
            self._connect()
        except (OSError, sqlite3.Error) as problem:
            self.close()
            raise BackendError(
                Refusal.UNAVAILABLE, f"{self.path} can't be opened: {problem}; see that its folder exists, is writable and has room"
            ) from problem
        except BackendError:
            self.close()
            raise

    def _take_lock(self) -> int:
        """A lock on a file beside it, which ends with the process however it dies. Its content is for the message of the next one."""
        name = f"{self.path}.lock"
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise BackendError(
                Refusal.UNAVAILABLE,
                f"{self.path} is in use by another process (pid {owner}, lock {name}); stop that one, or name another file in backend.url",
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        return lock

    def _connect(self) -> None:
        # Several threads, one at a time; the limiter sees to that.
        database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=4 * _CHUNK, timeout=1)
        self._database = database
        os.chmod(self.path, 0o600)
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and (application, version) != (_APPLICATION, _VERSION):
            raise BackendError(
                Refusal.UNAVAILABLE, f"{self.path} is no message log of this version; name another file in backend.url, or move it away"
            )
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {'FULL' if self._synchronous == 'full' else 'NORMAL'}")
        database.execute("PRAGMA wal_autocheckpoint = 4000")
        if not tables:
            marks = f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_VERSION};"
            database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {marks} COMMIT;")

    def reopen(self) -> None:
        """A new connection under the same lock. Raises sqlite3.Error, OSError, BackendError."""
        if self._database is not None:
            self._database.close()
            self._database = None
        self._connect()

    def close(self) -> None:
        """Close the file and give up the lock. May be called twice."""
        try:
            if self._database is not None:
                self._database.close()
        finally:
            self._database = None
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    @property
    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            raise sqlite3.OperationalError("the file is not open")
        return self._database

    # ---------------------------------------------------------------- topics

    def topics(self) -> dict[str, list[QueueState]]:
        """Every topic with its queues, as they are on the disk."""
        found: dict[str, list[QueueState]] = {}
        rows = self._open.execute(
            "SELECT t.name, q.id, q.number, q.min FROM topics t JOIN queues q ON q.topic = t.id ORDER BY t.id, q.number"
        ).fetchall()
        for name, ref, number, minimum in rows:
            found.setdefault(name, []).append(self._state(ref, number, minimum))
        return found

    def _state(self, ref: int, number: int, minimum: int) -> QueueState:
        edges = [
            self._open.execute(
                f"SELECT id, count, stored, total, length(data) FROM segments WHERE id >= ? AND id < ? ORDER BY id {order} LIMIT 1",
                (segment_key(ref, 0), segment_key(ref + 1, 0)),
            ).fetchone()
            for order in ("ASC", "DESC")
        ]
        first, last = edges
        if first is None:
            return QueueState(ref, number, minimum, minimum, 0, 0, -1, -1)
        return QueueState(
            ref, number, first_offset(first[0]), first_offset(last[0]) + last[1], last[3], first[3] - first[4], first[2], last[2]
        )

    def create_topic(self, name: str, queues: int, now: int) -> list[QueueState]:
        """A new topic with empty queues. Raises sqlite3.Error."""

        def create(database: sqlite3.Connection) -> list[QueueState]:
            topic = database.execute("INSERT INTO topics (name, created) VALUES (?, ?)", (name, now)).lastrowid
            refs = [
                database.execute("INSERT INTO queues (topic, number, min) VALUES (?, ?, 0)", (topic, number)).lastrowid
                for number in range(queues)
            ]
            return [QueueState(int(ref or 0), number, 0, 0, 0, 0, -1, -1) for number, ref in enumerate(refs)]

        return self._together(create)

    # ---------------------------------------------------------------- messages

    def append(self, segments: Sequence[Segment]) -> None:
        """Store all of them or none. They are on the disk when it returns (synchronous=full). Raises sqlite3.Error."""
        if len(segments) <= _CHUNK:
            self._insert("INSERT OR REPLACE INTO segments", segments)  # a statement alone is a transaction
        else:
            self._together(lambda _: self._insert("INSERT OR REPLACE INTO segments", segments))

    def read(self, ref: int, offset: int, messages: int, size: int) -> list[Segment]:
        """Segments of a queue from the one that holds `offset` (or the next one there is) on, as long as they have no more than so many
        messages and bytes together; at least one if there is any."""
        low, high = segment_key(ref, 0), segment_key(ref + 1, 0)
        rows = self._open.execute(
            "SELECT id, count, stored, total, data FROM segments WHERE id < :high AND id >= "
            "coalesce((SELECT max(id) FROM segments WHERE id BETWEEN :low AND :at), :low) ORDER BY id LIMIT 512",
            {"low": low, "high": high, "at": segment_key(ref, offset)},
        )
        found: list[Segment] = []
        for row in rows:
            segment = Segment(*row)
            if first_offset(segment.key) + segment.length <= offset:
                continue
            messages -= segment.length
            size -= len(segment.data)
            if found and (messages < 0 or size < 0):
                break
            found.append(segment)
        rows.close()
        return found

    def offset_at(self, ref: int, minimum: int, end: int, time: int) -> int:
        """The first offset stored at `time` (ms) or later, `end` if there is none. Halving, since times never fall within a queue."""
        while minimum < end:
            middle = (minimum + end) // 2
            row = self._open.execute(
                "SELECT id, count, stored FROM segments WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
                (segment_key(ref, 0), segment_key(ref, middle)),
            ).fetchone()
            if row is not None and row[2] >= time:
                end = first_offset(row[0])
            else:
                minimum = middle + 1 if row is None else first_offset(row[0]) + row[1]
        return max(minimum, end)

    def trim(self, refs: Iterable[int], before: int, excess: int) -> list[QueueState]:
        """Of these queues remove the oldest segments: those stored before `before` (ms), and as many as it takes for `excess` bytes, but
        for the newest one of each queue; one small step of it. Returns the new state of the queues that changed. Raises sqlite3.Error."""

        def remove(database: sqlite3.Connection) -> list[QueueState]:
            removed = 0
            heads = [(*head, ref) for ref in refs if (head := self._head(ref, 0))]
            heapify(heads)
            gone: dict[int, tuple[int, int]] = {}
            for _ in range(_TRIM_SEGMENTS):
                if not heads or removed >= _TRIM_BYTES or (heads[0][0] >= before and removed >= excess):
                    break
                stored, key, ref = heads[0]
                count, size = database.execute("SELECT count, length(data) FROM segments WHERE id = ?", (key,)).fetchone()
                head = self._head(ref, first_offset(key) + count)
                if head is None and stored >= before:  # the newest one of its queue: only time removes it
                    heappop(heads)
                    continue
                removed += size
                gone[ref] = (key, first_offset(key) + count)
                if head is None:
                    heappop(heads)
                else:
                    heapreplace(heads, (*head, ref))
            for ref, (key, minimum) in gone.items():
                database.execute("DELETE FROM segments WHERE id BETWEEN ? AND ?", (segment_key(ref, 0), key))
                database.execute("UPDATE queues SET min = ? WHERE id = ?", (minimum, ref))
            return [self._state(ref, 0, minimum) for ref, (_, minimum) in gone.items()]

        return self._together(remove)

    def _head(self, ref: int, offset: int) -> tuple[int, int] | None:
        """(stored, key) of the first segment from `offset` on."""
        row: tuple[int, int] | None = self._open.execute(
            "SELECT stored, id FROM segments WHERE id >= ? AND id < ? ORDER BY id LIMIT 1",
            (segment_key(ref, offset), segment_key(ref + 1, 0)),
        ).fetchone()
        return row

    # ---------------------------------------------------------------- offsets

    def offsets(self, group: str) -> dict[int, int]:
        """What is committed for `group`, by queue."""
        return dict(self._open.execute("SELECT queue, next FROM offsets WHERE name = ?", (group,)).fetchall())

    def commit(self, rows: Sequence[tuple[str, int, int]]) -> None:
        """(group, queue, next offset). Raises sqlite3.Error."""
        self._together(lambda _: self._insert("INSERT OR REPLACE INTO offsets", rows))

    # ---------------------------------------------------------------- the two ways to write

    def _insert(self, into: str, rows: Sequence[tuple[Any, ...]]) -> None:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            marks = "(" + ",".join("?" * len(chunk[0])) + ")"
            self._open.execute(f"{into} VALUES {','.join([marks] * len(chunk))}", [value for row in chunk for value in row])

    def _together(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """One transaction."""
        database = self._open
        database.execute("BEGIN IMMEDIATE")
        try:
            result = work(database)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        return result
