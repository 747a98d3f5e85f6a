"""The pump with engines made for the occasion: order, batches, cancellation, and the end of its thread."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from gateway import observe
from gateway.ports import StoreError
from gateway.store import pump as pumps
from gateway.store.pump import Pump


class Bench:
    """An engine whose batches wait until `gate` is open. Jobs get a list to write to."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.batches: list[int] = []
        self.written: list[Any] = []
        self.interrupted = threading.Event()
        self.closed = False
        self.open_error: StoreError | None = None
        self.fault: BaseException | None = None
        self.threads: set[str] = set()

    def open(self) -> None:
        if self.open_error:
            raise self.open_error

    def execute(self, jobs: Sequence[Callable[[list[Any]], Any]]) -> list[Any]:
        self.threads.add(threading.current_thread().name)
        self.batches.append(len(jobs))
        while not self.gate.wait(0.01):
            if self.interrupted.is_set():
                return [StoreError("interrupted")] * len(jobs)
        if self.fault:
            raise self.fault
        return [job(self.written) for job in jobs]

    def interrupt(self) -> None:
        self.interrupted.set()

    def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def pumping(bench: Bench, **hooks: Callable[..., None]) -> AsyncIterator[Pump[list[Any]]]:
    pump: Pump[list[Any]] = Pump("bench", bench, after=hooks.get("after", lambda: None), died=hooks.get("died", lambda error: None))
    try:
        await pump.start()
        yield pump
    finally:
        bench.gate.set()
        await pump.stop()
        assert not any(thread.name == "bench" for thread in threading.enumerate())
        assert bench.closed or bench.open_error


def write(value: Any) -> Callable[[list[Any]], Any]:
    def job(written: list[Any]) -> Any:
        written.append(value)
        return value

    return job


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.001)


async def test_what_is_asked_meanwhile_is_the_next_batch() -> None:
    bench = Bench()
    results: list[int] = []
    async with pumping(bench) as pump:
        for n in range(10):
            pump.submit(write(n), results.append)
        await until(lambda: bench.batches == [1])
        assert pump.depth == 10
        bench.gate.set()
        assert await pump.ask(write(10)) == 10
        assert results == list(range(10))
        assert bench.written == list(range(11))
        assert bench.batches == [1, 10]
        assert bench.threads == {"bench"}


async def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pumps, "BATCH_MOST", 4)
    bench = Bench()
    results: list[int] = []
    async with pumping(bench) as pump:
        for n in range(10):
            pump.submit(write(n), results.append)
        bench.gate.set()
        await until(lambda: len(results) == 10)
    assert bench.batches == [1, 4, 4, 1]


async def test_too_much_waiting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pumps, "PENDING_MOST", 3)
    bench = Bench()
    results: list[Any] = []
    async with pumping(bench) as pump:
        for n in range(6):
            pump.submit(write(n), results.append)
        assert results == []  # never from within submit
        await until(lambda: len(results) == 2)
        assert all(isinstance(result, StoreError) for result in results)
        bench.gate.set()
        await until(lambda: len(results) == 6)
        assert results[2:] == [0, 1, 2, 3]
        assert pump.refused == 2


async def test_a_callback_that_raises_harms_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench()
    bench.gate.set()
    before = observe.counters()["internal_error"]
    results: list[int] = []
    async with pumping(bench) as pump:

        def wrong(_: Any) -> None:
            raise ValueError("mine")

        pump.submit(write(1), wrong)
        pump.submit(write(2), results.append)
        await until(lambda: results == [2])
    assert observe.counters()["internal_error"] == before + 1


async def test_after_comes_before_the_callbacks_of_its_batch() -> None:
    bench = Bench()
    bench.gate.set()
    seen: list[Any] = []
    async with pumping(bench, after=lambda: seen.append("after")) as pump:
        pump.submit(write(1), seen.append)
        await until(lambda: len(seen) == 2)
    assert seen == ["after", 1]


async def test_a_cancelled_caller_leaves_nothing_behind_when_its_job_had_not_begun() -> None:
    bench = Bench()
    async with pumping(bench) as pump:
        pump.submit(write("first"), lambda _: None)
        await until(lambda: bench.batches == [1])
        with trio.move_on_after(0.01) as scope:
            await pump.ask(write("cancelled"))
        assert scope.cancelled_caught
        bench.gate.set()
        await pump.ask(write("last"))
    assert bench.written == ["first", "last"]


async def test_a_cancelled_caller_gets_the_result_of_a_job_that_had_begun() -> None:
    bench = Bench()
    got: list[Any] = []
    async with pumping(bench) as pump, trio.open_nursery() as nursery:

        async def ask() -> None:
            got.append(await pump.ask(write("begun")))

        nursery.start_soon(ask)
        await until(lambda: bench.batches == [1])
        nursery.cancel_scope.cancel()
        bench.gate.set()
    assert got == ["begun"]


async def test_stop_finishes_what_was_submitted_and_refuses_the_rest() -> None:
    bench = Bench()
    results: list[Any] = []
    async with pumping(bench) as pump:
        for n in range(100):
            pump.submit(write(n), results.append)
    assert results == list(range(100))
    pump.submit(write(100), results.append)
    await until(lambda: len(results) == 101)
    assert isinstance(results[100], StoreError)


async def test_stop_interrupts_what_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pumps, "STOP_SECONDS", 0.05)
    bench = Bench()
    results: list[Any] = []
    pump: Pump[list[Any]] = Pump("bench", bench, after=lambda: None, died=lambda error: None)
    await pump.start()
    for n in range(3):
        pump.submit(write(n), results.append)
    with trio.fail_after(10):
        await pump.stop()
    assert bench.interrupted.is_set()
    assert bench.written == []
    assert len(results) == 3
    assert all(isinstance(result, StoreError) for result in results)
    assert not any(thread.name == "bench" for thread in threading.enumerate())


async def test_an_engine_that_does_not_open() -> None:
    bench = Bench()
    bench.open_error = StoreError("no")
    with pytest.raises(StoreError, match="no"):
        async with pumping(bench):
            pass


async def test_the_death_of_the_thread_is_told() -> None:
    bench = Bench()
    bench.fault = AssertionError("ours")
    bench.gate.set()
    deaths: list[BaseException] = []
    results: list[Any] = []
    async with pumping(bench, died=deaths.append) as pump:
        pump.submit(write(1), results.append)
        await until(lambda: bool(deaths))
    assert deaths == [bench.fault]
    assert isinstance(results[0], StoreError)
