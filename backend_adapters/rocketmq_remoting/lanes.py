"""One queue's way to its broker: group commit with one batch in flight (design section 3, point 3)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import trio

from gateway import observe
from gateway.ports import BackendError, Queue, Receipt, Refusal, Stored

from . import codes
from .codes import Verdict, judge
from .connection import Lost
from .endpoints import Broker
from .messages import MessageError
from .wakeup import Signal

_AILING_FROM = 3  # failures of one batch, after which others need not wait for this broker
_PAUSE_FIRST, _PAUSE_MOST = 0.05, 3.0  # seconds between two attempts


class Entry(NamedTuple):
    """A message that waits. record: as it lies in a batch, or why it can't be sent; it keeps its place in either case.
    key: crc32 of the message's key."""

    record: bytes | MessageError
    done: Stored
    key: int
    ordered: bool


class Limits(NamedTuple):
    """Of a batch: messages and bytes (design section 3, point 3)."""

    messages: int = 512
    bytes: int = 1024 * 1024


class Lane:
    """A queue's backlog and the task that sends it. `finished` is told of entries whose `done` was called; `stray` of a lane
    whose waiting entries should look for another one (its broker is down, or the queue is no more)."""

    def __init__(
        self, queue: Queue, topic: str, group: str, broker: Broker, limits: Limits, finished: Callable[[list[Entry]], None],
        stray: Callable[[Lane], None], stale: Callable[[Queue], None],
    ) -> None:  # fmt: skip
        self.queue = queue
        self.broker = broker
        self.waiting: deque[Entry] = deque()
        self.inflight: list[Entry] = []
        self.removed = False  # from the route: nothing new comes, and what surely isn't stored leaves
        self.retries = 0
        self._header = {  # c: the topic whose settings a missing one would be made with; its own name, so that none is made
            "a": group, "b": topic, "c": topic, "d": "4", "e": str(queue.id), "f": "0", "h": "0", "i": "",
            "j": "0", "k": "false", "m": "true", "n": queue.broker,
        }  # fmt: skip
        self._limits = limits
        self._finished = finished
        self._stray = stray
        self._stale = stale
        self._signal = Signal()
        self._idle = False

    def add(self, entry: Entry) -> None:
        self.waiting.append(entry)
        if self._idle:
            self._idle = False
            self._signal.set()

    def wake(self) -> None:
        """Something changed (the broker, the route): look again."""
        if self._idle:
            self._idle = False
            self._signal.set()

    async def run(self) -> None:
        """Send until the queue is removed and nothing is left."""
        if self.inflight:  # left by a fault of ours: what became of them is not known
            self._put_back(await self._store(self.inflight.copy(), doubtful=True))
        while True:
            if self.removed or self.broker.down:
                self._stray(self)
            if not self.waiting:
                if self.removed:
                    return
                self._idle = True
                await self._signal.wait()
            elif self.removed:  # no other queue takes messages now
                await trio.sleep(_PAUSE_MOST)
            elif self.broker.down:
                await self._up()
            else:
                batch = self._take()
                if batch:
                    self.inflight = batch.copy()
                    self._put_back(await self._store(batch))

    def _put_back(self, rest: list[Entry]) -> None:
        self.waiting.extendleft(reversed(rest))
        self.inflight = []

    async def _up(self) -> None:
        """Until the broker is up or the queue is removed."""
        while self.broker.down and not self.removed:
            with trio.move_on_after(_PAUSE_MOST):
                await self.broker.up()

    def _take(self) -> list[Entry]:
        """The next batch. A message that can't be sent fails when it is the first, so that `done` keeps the order."""
        waiting = self.waiting
        batch: list[Entry] = []
        size = 0
        most, room = self._limits
        while waiting and len(batch) < most:
            entry = waiting[0]
            record = entry.record
            if isinstance(record, MessageError):
                if not batch:
                    waiting.popleft()
                    self._fail([entry], BackendError(Refusal.INVALID, f"topic {self.queue.topic}: {record}"))
                break
            size += len(record)
            if size > room and batch:
                break
            batch.append(entry)
            waiting.popleft()
        return batch

    async def _store(self, batch: list[Entry], doubtful: bool = False) -> list[Entry]:
        """Until each entry is stored or refused. What is returned surely isn't stored and should look for another queue."""
        pause, attempts = 0.0, 0
        while True:
            verdict, refusal, offset, text = await self._attempt(batch)
            if verdict is Verdict.STORED:
                self.broker.well()
                self._succeed(batch, offset)
                return []
            if verdict is Verdict.REFUSED:
                return await self._refuse(batch, refusal, text, doubtful)
            doubtful = doubtful or verdict is Verdict.UNKNOWN
            self.retries += 1
            attempts += 1
            observe.note(
                observe.Fact.BACKEND_RETRY,
                reason=verdict,
                broker=self.queue.broker,
                topic=self.queue.topic,
                messages=len(batch),
                detail=text,
            )
            if verdict is Verdict.NOT_HERE or attempts >= _AILING_FROM:
                self.broker.ail()
            elif verdict is Verdict.STALE_ROUTE:
                self._stale(self.queue)
            if not doubtful and (self.removed or self.broker.down):
                return batch
            pause = min(max(pause * 2, _PAUSE_FIRST), _PAUSE_MOST)
            await trio.sleep(pause)
            if self.removed:  # a doubtful batch whose queue is gone for good can only be sent elsewhere
                return batch

    async def _attempt(self, batch: list[Entry]) -> tuple[Verdict, Refusal, int, str]:
        """Send once; wait for the answer, the end of the connection, or 15 s."""
        await self._up()
        endpoint = self.broker.master
        if endpoint is None:
            return Verdict.NOT_STORED, Refusal.INVALID, 0, "the broker has no master"
        connection = endpoint.connection
        if connection is None:
            with trio.move_on_after(_PAUSE_MOST):
                connection = await endpoint.connected()
            if connection is None:
                return Verdict.NOT_STORED, Refusal.INVALID, 0, endpoint.reason
        body = b"".join([entry.record for entry in batch])  # type: ignore[misc]  # _take leaves MessageErrors out
        fields = self._header.copy()
        fields["g"] = str(time.time_ns() // 1_000_000)
        try:
            answer = await connection.request(codes.SEND_BATCH_MESSAGE, fields, body)
        except Lost as lost:
            return Verdict.UNKNOWN, Refusal.INVALID, 0, str(lost)
        verdict, refusal = judge(answer.code, answer.remark)
        offset = 0
        if verdict is Verdict.STORED:
            try:
                offset = int(answer.fields["queueOffset"])
            except (KeyError, ValueError):
                return Verdict.UNKNOWN, Refusal.INVALID, 0, "an answer without an offset"
        return verdict, refusal, offset, f"code {answer.code}: {answer.remark}"

    async def _refuse(self, batch: list[Entry], refusal: Refusal, text: str, doubtful: bool) -> list[Entry]:
        """Halve until the offender stands alone; what holds for the topic holds for all of them. Returns as `_store`."""
        if len(batch) > 1 and refusal is not Refusal.NOT_PERMITTED:
            middle = len(batch) // 2
            rest = await self._store(batch[:middle], doubtful)
            return rest + batch[middle:] if rest else await self._store(batch[middle:], doubtful)
        cure = {
            Refusal.TOO_LARGE: "Raise maxMessageSize at the broker, or send less",
            Refusal.NOT_PERMITTED: "Give this access key PUB on the topic",
        }.get(refusal, "")
        del self.inflight[: len(batch)]
        name = f"broker {self.queue.broker} refuses a message of topic {self.queue.topic} ({text}). {cure}".rstrip()
        self._fail(batch, BackendError(refusal, name))
        return []

    def _succeed(self, batch: list[Entry], offset: int) -> None:
        queue = self.queue
        for entry in batch:
            try:
                entry.done(Receipt(queue, offset))
            except Exception:  # noqa: BLE001  logged with its traceback
                observe.note(observe.Fact.INTERNAL_ERROR, where="done", exc_info=True)
            offset += 1
        del self.inflight[: len(batch)]  # halves of a batch finish in its order
        self._finished(batch)

    def _fail(self, batch: list[Entry], error: BackendError) -> None:
        for entry in batch:
            refuse(entry.done, error)
        self._finished(batch)


def refuse(done: Stored, error: BackendError) -> None:
    """A fault of one caller must not stop a queue."""
    try:
        done(error)
    except Exception:  # noqa: BLE001  logged with its traceback
        observe.note(observe.Fact.INTERNAL_ERROR, where="done", exc_info=True)
