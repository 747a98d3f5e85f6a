"""The topic as it lies in RocketMQ, read to its end with the gateway's own client."""

from __future__ import annotations

from collections.abc import Callable

import trio

from backend_adapters.rocketmq_remoting.client import RocketMQ
from gateway.ports import BackendError, Queue, Received
from tests.faults.harness.events import Stored, id_of

POLL_SECONDS = 0.05


class GapError(AssertionError):
    """The reader got a queue with a hole: the account would be wrong."""


class _Copies:
    """The listener: every message that carries an id, and whether offsets have holes."""

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        self.found: list[Stored] = []
        self.holes: list[str] = []
        self._wanted = wanted
        self._next: dict[Queue, int] = {}

    def assigned(self, queue: Queue, position: int) -> None:
        self._next[queue] = position

    def revoked(self, queue: Queue) -> None:
        pass

    async def received(self, messages: list[Received]) -> None:
        for one in messages:
            if one.offset != self._next[one.queue]:
                self.holes.append(f"{one.queue}: offset {one.offset} came instead of {self._next[one.queue]}")
            self._next[one.queue] = one.offset + 1
            id = id_of(one.body)
            if self._wanted(id):
                self.found.append(Stored(one.stored_at / 1000, id, f"{one.queue.broker}/{one.queue.id}", one.offset, one.id))


async def read(namesrv: str, topic: str, since: float, wanted: Callable[[str], bool], patience: float = 60) -> list[Stored]:
    """Every message of the topic stored since `since` (seconds since 1970) whose id is wanted. Raises TooSlowError, GapError."""
    backend = RocketMQ.open(f"rocketmq://{namesrv}", instance="account")
    copies = _Copies(wanted)
    with trio.fail_after(patience):
        async with trio.open_nursery() as nursery:
            await nursery.start(backend.run)
            consumer = None
            while consumer is None:
                try:
                    consumer = await backend.consume(topic, None, None, copies, start=int(since * 1000))
                    queues = (await backend.topic(topic)).queues  # type: ignore[union-attr]
                except BackendError:
                    await trio.sleep(POLL_SECONDS)
            while True:
                try:
                    lag = await consumer.lag()
                except BackendError:
                    lag = {}
                if set(lag) >= set(queues) and not any(lag.values()):
                    break
                await trio.sleep(POLL_SECONDS)
            await consumer.close()
            nursery.cancel_scope.cancel()
    if copies.holes:
        raise GapError("; ".join(copies.holes))
    return copies.found
