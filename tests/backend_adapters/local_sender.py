"""A process that stores messages and consumes them until it is killed: `python -m tests.backend_adapters.local_sender FILE SEED`.

It writes a line for each thing that it was told: `stored QUEUE OFFSET BODY` when a message was acknowledged, `held QUEUE OFFSET` for a
message that is never released. Written with one system call each, so that a kill loses at most the last line's end.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import trio

from backend_adapters.local import LocalBackend
from gateway.ports import BackendError, Message, Properties, Queue, Receipt, Received, Start

GROUP = "g"
TOPIC = "t"


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


class Holder:
    """Holds every 97th message for ever."""

    def assigned(self, queue: Queue, position: int) -> None: ...

    def revoked(self, queue: Queue) -> None: ...

    async def received(self, messages: list[Received]) -> None:
        for message in messages:
            if message.offset % 97 == 96:
                message.hold()
                say(f"held {message.queue.id} {message.offset}")
        await trio.lowlevel.checkpoint()


async def main(path: Path, seed: str) -> None:
    chance = random.Random(seed)
    async with trio.open_nursery() as nursery:
        backend = LocalBackend(path)
        await nursery.start(backend.run)
        await backend.create_topic(TOPIC, 3)
        await backend.consume(TOPIC, None, GROUP, Holder(), start=Start.FIRST)
        for number in range(10**9):
            body = f"{seed}-{number}"

            def done(answer: Receipt | BackendError, body: str = body) -> None:
                assert isinstance(answer, Receipt)
                say(f"stored {answer.queue.id} {answer.offset} {body}")

            backend.submit(Message(TOPIC, body.encode(), "A", Properties(n=body), f"k{number % 11}", backend.new_id()), done)
            await backend.room()
            if chance.random() < 0.02:
                await trio.sleep(chance.random() / 200)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2])
