"""Read a backend topic as a server app does: a bounded stream; a slow reader loses nothing and holds up nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from gateway.ports import Backend, Queue, Received, Start

CHUNKS = 4  # lists of messages under way between the backend and the reader


class _Forward:
    """The listener: hands each batch on and waits until there is room."""

    def __init__(self, send: trio.MemorySendChannel[list[Received]]) -> None:
        self._send = send

    def assigned(self, queue: Queue, position: int) -> None:
        """Nothing to prepare."""

    def revoked(self, queue: Queue) -> None:
        """Nothing to give back."""

    async def received(self, messages: list[Received]) -> None:
        try:
            await self._send.send(messages)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reader has gone; the consumer is being closed


@asynccontextmanager
async def reading(
    backend: Backend, topic: str, tags: frozenset[str] | None, start: Start | int
) -> AsyncIterator[AsyncIterator[list[Received]]]:
    """The messages of `topic` from `start` on, in lists, without an end. Keeps no offsets. Raises BackendError."""
    send, receive = trio.open_memory_channel[list[Received]](CHUNKS)
    consumer = await backend.consume(topic, tags, None, _Forward(send), start=start)
    try:
        yield receive
    finally:
        receive.close()
        with trio.CancelScope(shield=True), trio.move_on_after(3):
            await consumer.close()


def start_of(text: str) -> Start | int:
    """`begin`, `now`, or ms since 1970 as digits. Raises ValueError."""
    if text == "begin":
        return Start.FIRST
    return Start.LAST if text == "now" else int(text)
