"""What is SQLite's own: the file, its lock and version, disks that are full, and bodies that are kept once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway import observe
from gateway.ports import Retained, StoreError, Subscription
from gateway.store.sqlite import SqliteStore, schema
from gateway.store.sqlite import store as sqlite_store
from gateway.store.sqlite.tables import Tables
from tests.ports.stores import connect, done, leave, new_id, waiting


@asynccontextmanager
async def running(path: Path, **options: Any) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: store.run(task_status=task_status))
        yield store
        nursery.cancel_scope.cancel()


async def sql(store: SqliteStore, statement: str) -> Any:
    """A statement on the writer's connection."""
    return await store._writer.ask(lambda tables: tables.db.execute(statement).fetchall())


async def refused(path: Path) -> str:
    """The text of the StoreError that `run` raises."""
    with pytest.raises(StoreError) as caught:
        await SqliteStore(path).run()
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "store.db"


async def test_a_file_belongs_to_one_store(path: Path) -> None:
    async with running(path):
        text = await refused(path)
        assert str(path) in text
        assert "stop" in text
    async with running(path):
        pass


async def test_a_file_belongs_to_one_process(path: Path) -> None:
    program = (
        "import sys, trio\nfrom gateway.ports import StoreError\nfrom gateway.store.sqlite import SqliteStore\n"
        "try:\n    trio.run(SqliteStore(sys.argv[1]).run)\nexcept StoreError as error:\n    print(error)\n"
    )
    async with running(path):
        result = await trio.run_process([sys.executable, "-c", program, str(path)], capture_stdout=True)
    assert b"held by another gateway" in result.stdout


async def test_an_unknown_version_is_refused_with_the_cure(path: Path) -> None:
    async with running(path):
        pass
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    db.close()
    text = await refused(path)
    assert f"version {schema.VERSION + 1}" in text
    assert "move the file away" in text


async def test_foreign_files_are_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE mine (x)")
    db.close()
    assert "another program" in await refused(path)
    path.write_bytes(b"no database at all, but long enough to have a header" * 100)
    before = path.read_bytes()
    assert "another path" in await refused(path)
    assert path.read_bytes() == before


async def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "writable" in await refused(tmp_path / "file" / "store.db")


async def test_the_file_is_the_users_alone(path: Path) -> None:
    async with running(path) as store:
        await connect(store, "a")
        for file in path.parent.iterdir():
            assert file.stat().st_mode & 0o077 == 0, file


@pytest.mark.parametrize(("url", "level"), [("sqlite:{}", 2), ("sqlite:{}?synchronous=full", 2), ("sqlite:{}?synchronous=normal", 1)])
async def test_how_often_it_syncs_is_set_in_the_url(path: Path, url: str, level: int) -> None:
    store = SqliteStore.from_url(url.format(path), retained_count=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: store.run(task_status=task_status))
        assert await sql(store, "PRAGMA synchronous") == [(level,)]
        assert await sql(store, "PRAGMA journal_mode") == [("wal",)]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("url", ["sqlite:", "redis://x", "sqlite:x?synchronous=off", "sqlite:x?sync=full", "x"])
def test_wrong_urls(url: str) -> None:
    with pytest.raises(StoreError, match=r"store\.url"):
        SqliteStore.from_url(url)


async def test_a_bad_operation_fails_alone(path: Path) -> None:
    async with running(path) as store:
        results: dict[str, Any] = {}
        finished = trio.Event()
        topics = [*(f"t{n}" for n in range(10)), "bad\ud800", *(f"u{n}" for n in range(10)), "last"]
        for topic in topics:  # a lone surrogate is no text for SQLite

            def note(result: Any, topic: str = topic) -> None:
                results[topic] = result
                if topic == "last":
                    finished.set()

            store.retain(topic, Retained(topic, b"x", 0, "ID", 1), note)
        await finished.wait()
        assert list(results) == topics
        assert isinstance(results.pop("bad\ud800"), StoreError)
        assert set(results.values()) == {True}
        assert store.stats().retained == 21
        assert len(await store.retained("", lambda _: True)) == 21
        assert (await store.health())[0].ok


async def test_a_bad_operation_is_taken_back_whole(path: Path) -> None:
    async with running(path) as store:
        epoch = (await connect(store, "a")).epoch
        with pytest.raises(StoreError):
            await done(store.subscribe, "a", epoch, [Subscription("good", 1, 1), Subscription("bad\ud800", 1, 1)])
        assert store.stats().subscriptions == 0
        assert (await connect(store, "a")).subscriptions == []


async def test_a_full_disk_fails_the_batch_and_is_survived(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = observe.counters()["store_failed"]
    async with running(path) as store:
        await connect(store, "a")
        ((pages,),) = await sql(store, "PRAGMA page_count")
        await sql(store, f"PRAGMA max_page_count = {pages + 2}")
        big = Retained("t", bytes(100_000), 0, "ID", 1)
        with pytest.raises(StoreError, match="free disk space"):
            await done(store.retain, "t", big)
        with pytest.raises(StoreError, match="full"):
            await done(store.offline_put, [waiting("a", "M1", payload=bytes(100_000))])
        (health,) = await store.health()
        stats = store.stats()
        await sql(store, "PRAGMA max_page_count = 1000000")
        assert await done(store.retain, "t", big) is True
        monkeypatch.setattr(sqlite_store, "RECENT_SECONDS", 0)
        assert await store.retained("t", lambda _: True) == [big]
        assert (await store.health())[0].ok
    assert stats == (1, 0, 0, 0, 1)
    assert observe.counters()["store_failed"] > failed
    assert not health.ok
    assert "disk" in health.cure


async def test_a_file_that_takes_no_writes_is_found_by_health_and_survived(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(path) as store:
        await connect(store, "a")
        await sql(store, "PRAGMA busy_timeout = 10")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        results: list[Any] = []
        for topic in ("t", "u"):
            store.retain(topic, Retained(topic, b"x", 0, "ID", 1), results.append)
        with pytest.raises(StoreError, match="other program"):
            await connect(store, "a")
        assert [type(result).__name__ for result in results] == ["Failure"] * 2
        (health,) = await store.health()
        assert not health.ok
        assert "other program" in health.cure
        assert await store.present(["a"]) == {"a"}  # reads go on
        other.execute("ROLLBACK")
        other.close()
        assert not (await store.health())[0].ok  # a moment ago it failed
        monkeypatch.setattr(sqlite_store, "RECENT_SECONDS", 0)
        assert (await store.health())[0].ok
        assert (await connect(store, "a")).present


async def test_a_file_that_became_read_only_is_opened_again(path: Path) -> None:
    async with running(path) as store:
        await connect(store, "a")
        with pytest.raises(StoreError, match="writable"):
            await store._writer.ask(lambda tables: tables.db.execute("PRAGMA query_only = ON").execute("DELETE FROM mark"))
        assert (await connect(store, "a")).present


async def test_a_broken_connection_is_replaced(path: Path) -> None:
    async with running(path) as store:
        epoch = (await connect(store, "a")).epoch
        await done(store.subscribe, "a", epoch, [Subscription("p", 1, 1)])

        def break_it(tables: Tables) -> None:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = "SQLITE_IOERR_WRITE"
            raise error

        with pytest.raises(StoreError, match="check the disk"):
            await store._writer.ask(break_it)
        again = await connect(store, "a")
        assert again.epoch > epoch
        assert store.stats() == (1, 1, 0, 0, 3)


async def test_a_body_is_kept_once_until_the_last_one_let_go(path: Path) -> None:
    async with running(path, offline_retention_s=10) as store:
        names = [f"c{n}" for n in range(5)]
        epochs = [(await connect(store, name)).epoch for name in names]

        async def bodies() -> int:
            ((count,),) = await sql(store, "SELECT count(*) FROM body")
            return int(count)

        positions = [each.position for each in await done(store.offline_put, [waiting(name, "M1") for name in names[:3]])]
        positions += [each.position for each in await done(store.offline_put, [waiting(name, "M1") for name in names[3:]])]
        await done(store.offline_put, [waiting("c0", "M2", topic="x"), waiting("c1", "M2", topic="y"), waiting("c0", "M2", topic="y")])
        assert await bodies() == 3
        for name, position in zip(names[:3], positions, strict=False):
            await done(store.offline_remove, name, [position])
        assert await bodies() == 3
        await leave(store, "c3", epochs[3])
        await connect(store, "c3", persistent=False)
        assert await bodies() == 3
        await done(store.offline_remove, "c4", [positions[4]])
        assert await bodies() == 2
        await store.expire(60_000, [0])
        assert await bodies() == 0


async def test_no_row_outlives_its_owner(path: Path) -> None:
    async with running(path, session_expiry_s=1) as store:
        for n in range(3):
            epoch = (await connect(store, f"c{n}", persistent=n < 2)).epoch
            await done(store.subscribe, f"c{n}", epoch, [Subscription("p", 1, 1)])
            await done(store.inbound_put, f"c{n}", epoch, 1, "K")
            await done(store.offline_put, [waiting(f"c{n}", "M1")])
        await store.abandoned("n1", 1000, new_id)
        await done(store.outbox_remove, 0, [item.position for item in await store.outbox(0, 0, 100)])
        await store.expire(1_000_000, [0])
        tables = [name for (name,) in await sql(store, "SELECT name FROM sqlite_master WHERE type = 'table'")]
        left = {name: (await sql(store, f"SELECT count(*) FROM {name}"))[0][0] for name in tables if name != "counter"}
        assert set(left.values()) == {0}, left
        assert store.stats() == (0, 0, 0, 0, 0)


async def test_counts_are_those_of_the_tables_after_a_restart(path: Path) -> None:
    async with running(path) as store:
        epoch = (await connect(store, "a")).epoch
        await done(store.subscribe, "a", epoch, [Subscription("p", 1, 1), Subscription("q", 1, 1)])
        await done(store.offline_put, [waiting("a", f"M{n}") for n in range(5)])
        await done(store.retain, "t", Retained("t", b"", 0, "I", 1))
        before = store.stats()
    async with running(path) as store:
        assert store.stats() == before == (1, 2, 5, 1, 1)


async def test_no_thread_outlives_run(path: Path) -> None:
    async with running(path) as store:
        await connect(store, "a")
        await store.present(["a"])
        assert {"store-writer", "store-reader"} <= {thread.name for thread in threading.enumerate()}
    assert not {"store-writer", "store-reader"} & {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("synchronous", ["full", "normal"])
async def test_a_kill_loses_nothing_that_was_confirmed(path: Path, synchronous: str) -> None:
    child = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.store.busy_child", str(path), synchronous], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    said = b""
    with trio.fail_after(60):
        while said.count(b"\n") < 3000:
            part = await child.stdout.receive_some()
            assert part, "the child ended by itself"
            said += part
        child.kill()
        while part := await child.stdout.receive_some():
            said += part
        await child.wait()
    confirmed = said.decode().split("\n")[:-1]  # the last line may be half a one
    assert len(confirmed) >= 3000
    async with running(path) as store:
        found = {f"retained {retained.topic}" for retained in await store.retained("", lambda _: True)}
        found |= {f"put {entry.message.id}" for entry in await store.offline_get("a", 1_000_000)}
        found |= {f"claimed {item.client_id}" for item in await store.outbox(0, 0, 1_000_000)}
        assert set(confirmed) <= found
        assert await sql(store, "PRAGMA integrity_check") == [("ok",)]
        counted = store.stats()
        assert await sql(store, "SELECT (SELECT count(*) FROM waiting), (SELECT count(*) FROM retained)") == [counted[2:4]]
