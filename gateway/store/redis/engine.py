"""Redis as an engine of the pump: the jobs of a batch go on in lockstep, one pipeline for each round of all of them.

A *job* is a callable without arguments that returns a generator. The generator yields a list of calls (one round), gets their results in
the same order, yields the next round or returns the job's result. `engine.Line` is how jobs are given to a pump; a `RedisStore` has three:
`_writer` (everything that changes), `_reader` (reads) and `_inbox_line` (only the blocking XREAD of the cluster's inbox).

Results are raw replies of RESP2: int, bytes, None, lists of those; HGETALL is a flat list, ZRANGE WITHSCORES too. A call that Redis
refuses gives a `redis.ResponseError` object, which `checked` raises: the engine turns it into a StoreError and logs it, since it is a
fault of ours. What is the surroundings' fault (connection lost, no answer within 5 s, out of memory, read-only, ...) ends the job with
a StoreError without asking it. Nothing is tried again, except what Redis surely did not execute (NOSCRIPT, MOVED, ASK).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from redis.exceptions import ResponseError

from gateway import observe
from gateway.ports import Done, StoreError
from gateway.store.pump import Pump
from gateway.store.redis import errors
from gateway.store.redis.errors import Failure
from gateway.store.redis.scripts import script
from gateway.store.redis.wire import Request, Servers

Argument = str | bytes | int | float


class Call(NamedTuple):
    """Run `scripts/<name>.lua`. All keys are of one slot."""

    name: str
    keys: tuple[str, ...]
    args: tuple[Argument, ...] = ()


class Command(NamedTuple):
    """A plain command. key: by which the server of a Redis Cluster is found, when it is not the first argument after the name."""

    args: tuple[Argument, ...]
    key: str | None = None


R = TypeVar("R")
Steps = Generator[list["Call | Command"], list[Any], R]
Job = Callable[[], Steps[R]]


def checked(results: Sequence[Any]) -> Sequence[Any]:
    """The results, when no call was refused. Raises ResponseError."""
    for result in results:
        if isinstance(result, ResponseError):
            raise result
    return results


class _Order(NamedTuple):
    """A job with its place among others. names: jobs that share one take effect in the order of their submission; `long`: in later rounds
    than its first too, so that those after it have to wait for its end."""

    job: Job[Any]
    names: tuple[str, ...]
    long: bool


class Line:
    """A pump for jobs."""

    def __init__(self, pump: Pump[Any]) -> None:
        self.pump = pump

    def submit(self, job: Job[Any], done: Done, *, order: Iterable[str] = (), long: bool = False) -> None:
        """As `Pump.submit`. order: client ids (or other names); jobs that share one take effect in the order of submission. long: its
        effects are not all in its first round."""
        self.pump.submit(cast(Any, _Order(job, tuple(order), long)), done)

    async def ask(self, job: Job[R], *, order: Iterable[str] = (), long: bool = False) -> R:
        """As `Pump.ask`. Raises StoreError."""
        return cast(R, await self.pump.ask(cast(Any, _Order(job, tuple(order), long))))


class _Running:
    """A job of the batch under way."""

    __slots__ = ("calls", "index", "order", "steps")

    def __init__(self, index: int, order: _Order, steps: Steps[Any], calls: list[Call | Command]) -> None:
        self.index = index
        self.order = order
        self.steps = steps
        self.calls = calls


class Lockstep:
    """The engine. failing: the last batch's failure, None when it went well; failures: jobs that failed; the others: what was sent."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.failing: Failure | None = None
        self.failures = 0
        self.round_trips = 0
        self.commands = 0

    def open(self) -> None:
        """As `Engine.open`. The first batch connects: a server that is away now must not end the gateway."""

    def execute(self, jobs: Sequence[Any]) -> list[Any]:
        """As `Engine.execute`."""
        results: list[Any] = [None] * len(jobs)
        self.failing = None
        try:
            self.servers.connect()
        except Failure as failure:
            self.failing = failure
            self.failures += len(jobs)
            return [failure] * len(jobs)
        waiting = list(enumerate(cast(Sequence[_Order], jobs)))
        running: list[_Running] = []
        while waiting or running:
            waiting = self._start(waiting, running, results)
            if not running:
                continue  # all of these were done without asking; the next ones may start now
            calls = [call for one in running for call in one.calls]
            self.round_trips += 1
            self.commands += len(calls)
            guard = self.servers.guard
            replies = self.servers.exchange([_request(call, guard) for call in calls])
            running = self._advance(running, replies, results)
        return results

    def interrupt(self) -> None:
        """As `Engine.interrupt`."""
        self.servers.interrupt()

    def close(self) -> None:
        self.servers.close()

    def _start(self, waiting: list[tuple[int, _Order]], running: list[_Running], results: list[Any]) -> list[tuple[int, _Order]]:
        """Start what need not wait for another; what has to."""
        blocked = {name for one in running if one.order.long for name in one.order.names}
        later: list[tuple[int, _Order]] = []
        for index, order in waiting:
            if blocked and not blocked.isdisjoint(order.names):
                blocked.update(order.names)  # what comes after this one must not overtake it either
                later.append((index, order))
                continue
            one = _Running(index, order, _no_steps(), [])
            if self._step(one, lambda one=one: self._begin(one), results):  # type: ignore[misc]
                running.append(one)
                if order.long:
                    blocked.update(order.names)
        return later

    @staticmethod
    def _begin(one: _Running) -> list[Call | Command]:
        one.steps = one.order.job()
        return next(one.steps)

    def _advance(self, running: list[_Running], replies: list[Any], results: list[Any]) -> list[_Running]:
        going: list[_Running] = []
        start = 0
        for one in running:
            end = start + len(one.calls)
            mine = replies[start:end]
            start = end
            failure = next((reply for reply in mine if isinstance(reply, Failure)), None)
            if failure is not None:
                self.failing = failure
                self._fail(one, failure, results)
            elif self._step(one, lambda one=one, mine=mine: one.steps.send(mine), results):  # type: ignore[misc]
                going.append(one)
        return going

    def _step(self, one: _Running, step: Callable[[], list[Call | Command]], results: list[Any]) -> bool:
        """Take the job one round further; False: it has its result."""
        try:
            one.calls = step()
            while not one.calls:
                one.calls = one.steps.send([])
        except StopIteration as end:
            results[one.index] = end.value
            return False
        except StoreError as error:
            self._fail(one, error, results)
            return False
        except ResponseError as error:
            self._fail(one, errors.refused(self.servers.name, error) or self._fault(error), results)
            return False
        except Exception as error:  # noqa: BLE001 - logged; one caller's fault must not reach the others
            self._fail(one, self._fault(error), results)
            return False
        return True

    def _fault(self, error: Exception) -> Failure:
        observe.log.exception("store_operation_failed", store=self.servers.name)
        return Failure(f"store {self.servers.name}: an operation failed ({type(error).__name__}: {error})", "see the traceback in the log")

    def _fail(self, one: _Running, error: StoreError, results: list[Any]) -> None:
        self.failures += 1
        results[one.index] = error
        try:
            one.steps.close()
        except Exception:  # noqa: BLE001 - logged
            observe.log.exception("store_operation_failed", store=self.servers.name)


def _no_steps() -> Steps[None]:
    yield from ()


def _request(call: Call | Command, guard: Callable[[str], tuple[str, ...]]) -> Request:
    if isinstance(call, Call):
        one = script(call.name)
        keys = call.keys if one.counts_keys else call.keys + guard(call.keys[0])
        return Request(call.keys[0], ("EVALSHA", one.sha, len(keys), *keys, *call.args), one)
    key = call.key
    if key is None and len(call.args) > 1:
        key = str(call.args[1])
    return Request(key, call.args, None)
