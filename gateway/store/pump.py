"""A worker thread that runs collected jobs batch by batch for the trio thread: the one file with threads (design section 3, 3).

One batch is in flight; what is submitted meanwhile is the next. What the thread does with a batch is its `Engine`'s affair.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import trio

from gateway import observe
from gateway.ports import Done, StoreError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")

BATCH_MOST = 1000  # jobs; a later batch costs one more sync to disk, an endless one makes everybody wait
PENDING_MOST = 200_000  # jobs; a store that is this far behind refuses more
STOP_SECONDS = 5.0


class Engine(Protocol[T_co]):
    """The server's side; all but `interrupt` is called on the worker thread."""

    def open(self) -> None:
        """Raises StoreError."""

    def execute(self, jobs: Sequence[Callable[[T_co], Any]]) -> list[Any]:
        """Run the jobs in their order; per job its result or a StoreError. Never raises. Effects are durable when it returns."""

    def interrupt(self) -> None:
        """End what `execute` does now, from another thread; it returns soon, with StoreErrors."""

    def close(self) -> None: ...


class _Job(Generic[T]):
    __slots__ = ("done", "run", "withdrawn")

    def __init__(self, run: Callable[[T], Any], done: Done) -> None:
        self.run = run
        self.done = done
        self.withdrawn = False


class Pump(Generic[T]):
    """Everything here is called on the trio thread.

    name: of the thread and in messages. after: called after each batch, before the `done` callbacks of its jobs. died: called if the thread
    ends by a fault of ours; whoever runs the pump must then raise it.
    """

    def __init__(self, name: str, engine: Engine[T], *, after: Callable[[], None], died: Callable[[BaseException], None]) -> None:
        self.name = name
        self.batches = 0
        self.jobs = 0
        self.peak = 0
        self.refused = 0
        self._engine = engine
        self._after = after
        self._died = died
        self._pending: deque[_Job[T]] = deque()
        self._flying: list[_Job[T]] = []
        self._inbox: SimpleQueue[list[_Job[T]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._opened = trio.Event()
        self._open_error: StoreError | None = None
        self._idle = trio.Event()
        self._ended = trio.Event()
        self.open = False

    @property
    def depth(self) -> int:
        """Jobs that have no result yet."""
        return len(self._pending) + len(self._flying)

    async def start(self) -> None:
        """Start the thread and open the engine. Raises StoreError. `stop` is to be called in any case."""
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._thread.start()
        await self._opened.wait()
        if self._open_error is not None:
            raise self._open_error
        self.open = True

    def submit(self, run: Callable[[T], Any], done: Done) -> None:
        """`run` on the worker thread, maybe twice (a batch that fails is tried again job by job), then `done` on the trio thread."""
        self._submit(_Job(run, done))

    async def ask(self, run: Callable[[T], R]) -> R:
        """`run` on the worker thread. Raises StoreError. When cancelled, either nothing was done or it returns what was done."""
        answered = trio.Event()
        results: list[Any] = []

        def done(result: Any) -> None:
            results.append(result)
            answered.set()

        job: _Job[T] = _Job(run, done)
        self._submit(job)
        try:
            await answered.wait()
        except trio.Cancelled:
            if job not in self._flying and not results:
                job.withdrawn = True
                raise
            with trio.move_on_after(STOP_SECONDS, shield=True):
                await answered.wait()
            if not results:
                raise
        if isinstance(results[0], StoreError):
            raise results[0]
        return results[0]  # type: ignore[no-any-return]

    async def stop(self) -> None:
        """Refuse new jobs, finish the submitted ones (deadline 5 s, then they get a StoreError), end the thread."""
        self.open = False
        if self._thread is None:
            return
        with trio.CancelScope(shield=True):  # every wait inside has its own deadline
            with trio.move_on_after(STOP_SECONDS):
                while self.depth and not self._ended.is_set():
                    self._idle = trio.Event()
                    await self._idle.wait()
            late = list(self._pending)
            self._pending.clear()
            self._inbox.put(None)
            if self._flying:
                self._engine.interrupt()
            with trio.move_on_after(STOP_SECONDS) as scope:
                await self._ended.wait()
            if scope.cancelled_caught:  # a disk that hangs in a system call; the thread is a daemon and dies with the process
                observe.log.error("store_thread_hangs", thread=self.name)
            else:
                self._thread.join(1)
            late = self._flying + late
            self._flying = []
            for job in late:
                self._finish(job, StoreError(f"{self.name}: closed before this was done"))

    def _submit(self, job: _Job[T]) -> None:
        if not self.open or len(self._pending) >= PENDING_MOST:
            self.refused += 1
            cure = "start the gateway again" if not self.open else "the disk is too slow for this load"
            error = StoreError(f"{self.name}: {'not open' if not self.open else 'too much is waiting'}; {cure}")
            trio.lowlevel.current_trio_token().run_sync_soon(self._finish, job, error)
            return
        self._pending.append(job)
        if not self._flying:
            self._hand_over()
        elif len(self._pending) > self.peak:
            self.peak = len(self._pending)

    def _hand_over(self) -> None:
        pending, flying = self._pending, self._flying
        while pending and len(flying) < BATCH_MOST:
            job = pending.popleft()
            if not job.withdrawn:
                flying.append(job)
        if flying:
            self._inbox.put(flying)

    def _finished(self, batch: list[_Job[T]], results: list[Any]) -> None:
        if batch is not self._flying:
            return  # answered by `stop` already
        self._flying = []
        self.batches += 1
        self.jobs += len(batch)
        self._hand_over()
        try:
            self._after()
        except Exception:  # noqa: BLE001 - noted with its traceback
            observe.note(observe.Fact.INTERNAL_ERROR, where="store_after_batch", exc_info=True)
        for job, result in zip(batch, results, strict=True):
            self._finish(job, result)
        if not self.depth:
            self._idle.set()

    def _finish(self, job: _Job[T], result: Any) -> None:
        try:
            job.done(result)
        except Exception:  # noqa: BLE001 - noted; one caller's fault must not reach the callbacks of the others
            observe.note(observe.Fact.INTERNAL_ERROR, where="store_callback", exc_info=True)

    def _closed(self, error: BaseException | None) -> None:
        self.open = False
        self._ended.set()
        self._idle.set()
        if error is not None:
            self._died(error)

    # -- on the worker thread

    def _work(self) -> None:
        fault: BaseException | None = None
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001 - handed to the trio thread, which raises it
            fault = error
        self._post(self._closed, fault)

    def _serve(self) -> None:
        engine = self._engine
        try:
            engine.open()
        except StoreError as error:
            self._open_error = error
            self._post(self._opened.set)
            return
        self._post(self._opened.set)
        try:
            while (batch := self._inbox.get()) is not None:
                self._post(self._finished, batch, engine.execute([job.run for job in batch]))
        finally:
            engine.close()

    def _post(self, call: Callable[..., object], *args: Any) -> None:
        assert self._token is not None
        try:
            self._token.run_sync_soon(call, *args)
        except trio.RunFinishedError:
            pass  # the event loop ended first: nobody is left to hear it
