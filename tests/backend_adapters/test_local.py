"""What the embedded backend promises beyond the port: its file, its lock, its retention, and how it fails."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from backend_adapters.local import LocalBackend
from backend_adapters.local.log import Log
from gateway import observe
from gateway.ports import BackendError, Receipt, Received, Refusal, TopicInfo
from tests.ports.backends import PATIENCE, Answers, Recorder, eventually, message_of, quiet, send


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[LocalBackend]:
    backend = LocalBackend(path, synchronous="normal", **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: backend.run(task_status=task_status))
        yield backend
        nursery.cancel_scope.cancel()


async def fill(backend: LocalBackend, topic: TopicInfo, many: int, body: bytes = b"x" * 1000, at_once: int = 50) -> list[Receipt]:
    """`many` messages of one key, in segments of `at_once`."""
    receipts = []
    for _ in range(0, many, at_once):
        receipts += await send(backend, [message_of(backend, topic, body) for _ in range(at_once)])
    return receipts


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "log.db"


# ---------------------------------------------------------------- the file


async def test_a_second_one_on_the_same_file_is_told_what_to_do(file: Path) -> None:
    async with opened(file):
        with pytest.raises(BackendError) as refused:
            await LocalBackend(file).run()
        assert refused.value.refusal is Refusal.UNAVAILABLE
        assert str(file) in str(refused.value)
        assert "stop that one" in str(refused.value)
    async with opened(file) as backend:
        assert (await backend.health())[0].ok


async def test_start_raises_the_plain_error(file: Path) -> None:
    """`nursery.start` must give the one error, not a group."""
    async with opened(file), trio.open_nursery() as nursery:
        with pytest.raises(BackendError):
            await nursery.start(LocalBackend(file).run)


async def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other.db"
    text.write_text("no database at all, but long enough to be looked at " * 100)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    for path in (text, other):
        before = path.read_bytes()
        with pytest.raises(BackendError) as refused:
            await LocalBackend(path).run()
        assert refused.value.refusal is Refusal.UNAVAILABLE
        assert str(path) in str(refused.value)
        assert path.read_bytes() == before


async def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match="can't be opened"):
        await LocalBackend(tmp_path / "file" / "log.db").run()


@pytest.mark.parametrize(("name", "number"), [("full", 2), ("normal", 1)])
def test_synchronous_is_what_was_asked_for(file: Path, name: str, number: int) -> None:
    log = Log(file, name)
    log.open()
    assert log._open.execute("PRAGMA synchronous").fetchone() == (number,)
    assert log._open.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert file.stat().st_mode & 0o777 == 0o600
    log.close()


def test_an_unknown_synchronous_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="full or normal"):
        LocalBackend(file, synchronous="off")


# ---------------------------------------------------------------- failing


@contextmanager
def files_may_not_grow(beyond: int) -> Iterator[None]:
    """A full disk, as the kernel would report one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (beyond, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_on_a_full_disk_messages_wait_and_health_says_so(file: Path) -> None:
    async with opened(file) as backend:
        topic = await backend.create_topic("t")
        await send(backend, [message_of(backend, topic)])
        answers = Answers()
        sent = [message_of(backend, topic, bytes(100_000), key=f"k{n % 3}") for n in range(50)]
        with files_may_not_grow(1_000_000):
            for message in sent:
                backend.submit(message, answers.of(message))
            await eventually(lambda: backend.metrics()["retries"] >= 2)
            assert answers.all == []
            assert backend.metrics()["backlog"] == 50
            (health,) = await backend.health()
            assert not health.ok
            assert str(file) in health.name
            assert "50 messages wait" in health.detail
            assert health.cure
        await answers.until(50)
        assert len(set(answers.receipts())) == 50
        assert [message.id for message, _ in answers.all] == [message.id for message in sent]
        assert (await backend.health())[0].ok
        listener = Recorder()
        await backend.consume("t", None, "g", listener)
        await listener.until(51)


async def test_a_backend_that_ends_while_the_disk_is_full_answers_closed(file: Path) -> None:
    answers = Answers()
    async with opened(file) as backend:
        topic = await backend.create_topic("t")
        with files_may_not_grow(200_000):
            for _ in range(10):
                message = message_of(backend, topic, bytes(100_000))
                backend.submit(message, answers.of(message))
            await eventually(lambda: backend.metrics()["retries"] >= 1)
            late = message_of(backend, topic)
            backend.submit(late, answers.of(late))
            with trio.CancelScope(shield=True):
                backend._nursery.cancel_scope.cancel()  # type: ignore[union-attr]
                await answers.until(11)
    assert {answer.refusal for _, answer in answers.all if isinstance(answer, BackendError)} == {Refusal.CLOSED}
    assert len(answers.all) == 11


async def test_a_fault_in_done_or_in_a_listener_stops_nobody_else(file: Path) -> None:
    class Faulty(Recorder):
        async def received(self, messages: list[Received]) -> None:
            await super().received(messages)
            if any(message.body == b"bad" for message in messages):
                raise RuntimeError("a listener's mistake")

    def faulty(_: Receipt | BackendError) -> None:
        raise RuntimeError("a sender's mistake")

    before = observe.counters()[observe.Fact.INTERNAL_ERROR.event]
    async with opened(file) as backend:
        topic = await backend.create_topic("t", 1)
        listener = Faulty()
        await backend.consume("t", None, "g", listener)
        backend.submit(message_of(backend, topic, b"bad"), faulty)
        await send(backend, [message_of(backend, topic, b"good")])
        await quiet(backend, topic, listener)
        assert listener.bodies == [b"bad", b"good"]
    assert observe.counters()[observe.Fact.INTERNAL_ERROR.event] == before + 2


# ---------------------------------------------------------------- reading


async def test_a_consumer_that_has_caught_up_never_reads_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(file) as backend:
        topic = await backend.create_topic("t")
        listener = Recorder()
        await backend.consume("t", None, "g", listener)

        def read(*_: Any) -> Any:
            raise AssertionError("the file was read")

        monkeypatch.setattr(backend._log, "read", read)
        for first in range(0, 2000, 200):
            await send(backend, [message_of(backend, topic, b"%d" % n, key=f"k{n % 20}") for n in range(first, first + 200)])
            await listener.until(first + 200)


async def test_a_consumer_that_is_far_behind_gets_all_in_order(file: Path) -> None:
    async with opened(file) as backend:
        topic = await backend.create_topic("t", 1)
        listener = Recorder()
        listener.gate = trio.Event()
        await backend.consume("t", None, "g", listener)
        await fill(backend, topic, 10_000, b"x" * 600, at_once=1000)  # more than is kept in memory
        assert len(listener.messages) < 10_000
        listener.gate.set()
        await listener.until(10_000)
        assert [message.offset for message in listener.messages] == list(range(10_000))


async def test_nothing_runs_while_nothing_happens(file: Path) -> None:
    class Steps(trio.abc.Instrument):
        many = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.many += 1

    async with opened(file) as backend:
        topic = await backend.create_topic("t")
        listener = Recorder()
        consumer = await backend.consume("t", None, "g", listener)
        await send(backend, [message_of(backend, topic, key=f"k{n}") for n in range(100)])
        await listener.until(100)
        with trio.fail_after(PATIENCE):
            while any((await consumer.lag()).values()):
                await trio.sleep(0.05)
        await trio.sleep(1)  # the committer sees that there is nothing left
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(1)
        trio.lowlevel.remove_instrument(steps)
        assert steps.many <= 2, "only this test wakes"


# ---------------------------------------------------------------- retention


async def test_past_its_size_a_topic_loses_its_oldest_messages_and_no_other_topic_does(file: Path) -> None:
    async with opened(file, retention_bytes=200_000) as backend:
        topic, other = await backend.create_topic("t"), await backend.create_topic("other", 1)
        await fill(backend, other, 100)
        receipts = await fill(backend, topic, 1000)
        await eventually(lambda: backend._topics["t"].size <= 200_000)
        listener = Recorder()
        await backend.consume("t", None, "g", listener)
        await listener.when(lambda: bool(listener.messages) and listener.messages[-1].offset == receipts[-1].offset)
        offsets = [message.offset for message in listener.messages]
        assert offsets == list(range(offsets[0], 1000)), "the newest are there, without a hole"
        assert 100 <= len(offsets) <= 200
        spared = Recorder()
        await backend.consume("other", None, "g", spared)
        await spared.until(100)
    async with opened(file, retention_bytes=200_000) as backend:
        assert backend._topics["t"].size <= 200_000
        again = await send(backend, [message_of(backend, topic)])
        assert again[0].offset == 1000


async def test_past_their_time_messages_are_removed_and_offsets_go_on(file: Path) -> None:
    async with opened(file) as backend:
        topic = await backend.create_topic("t", 1)
        await fill(backend, topic, 100)
    async with opened(file, retention_seconds=-1) as backend:
        await eventually(lambda: backend._topics["t"].size == 0)
        listener = Recorder()
        await backend.consume("t", None, None, listener)
        assert list(listener.positions.values()) == [100]
    async with opened(file) as backend:
        assert [receipt.offset for receipt in await send(backend, [message_of(backend, topic)])] == [100]


async def test_a_consumer_whose_place_was_removed_goes_on_at_the_oldest_message_and_the_gap_is_counted(file: Path) -> None:
    async with opened(file) as backend:
        topic = await backend.create_topic("t", 1)
        consumer = await backend.consume("t", None, "g", Recorder())
        await consumer.close()
        await fill(backend, topic, 1000)
    before = observe.counters()[observe.Fact.OFFSET_GAP.event]
    async with opened(file, retention_bytes=200_000) as backend:
        await eventually(lambda: backend._topics["t"].size <= 200_000)
        listener = Recorder()
        consumer = await backend.consume("t", None, "g", listener)
        first = listener.positions[topic.queues[0]]
        assert first > 0
        await listener.until(1000 - first)
        assert observe.counters()[observe.Fact.OFFSET_GAP.event] == before + first
        assert (await consumer.lag())[topic.queues[0]] == 1000 - first


async def test_retention_beside_a_reader_that_lags_only_makes_a_gap(file: Path) -> None:
    async with opened(file, retention_bytes=500_000) as backend:
        topic = await backend.create_topic("t", 1)
        listener = Recorder()
        listener.gate = trio.Event()
        await backend.consume("t", None, "g", listener)
        await fill(backend, topic, 8000, at_once=100)
        await eventually(lambda: backend._topics["t"].size <= 500_000)
        listener.gate.set()
        await listener.when(lambda: listener.messages[-1].offset == 7999)


# ---------------------------------------------------------------- closing


async def test_a_busy_listener_may_finish_before_its_consumer_is_closed(file: Path) -> None:
    async with opened(file) as backend, trio.open_nursery() as nursery:
        topic = await backend.create_topic("t", 1)
        listener = Recorder()
        listener.gate = trio.Event()
        consumer = await backend.consume("t", None, "g", listener)
        await send(backend, [message_of(backend, topic)])
        await listener.until(1)
        nursery.start_soon(consumer.close)
        await trio.sleep(0.05)
        assert listener.busy
        listener.gate.set()
        await listener.when(lambda: bool(listener.gone))
        assert listener.returned == 1
        assert consumer.committed(topic.queues[0]) == -1, "it has no queues any more"
