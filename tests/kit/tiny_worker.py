"""A worker that is no gateway: it answers a connection with its number and its process id, and does what its environment says.

TINY_REFUSES: the number of the worker that can not start. TINY_BREAKS: of the one that ends with exit code 3 and no word.
TINY_UNREADY: a file; while it exists, workers listen but are never ready. TINY_DEAF: they do not listen to words.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import trio

from gateway import workers


class Ending:
    def __init__(self) -> None:
        self.stop = trio.Event()
        self.hurry = trio.Event()


async def main(own: workers.Inherited) -> None:
    if os.environ.get("TINY_REFUSES") == str(own.number):
        own.tell("refused store.url: no such server. Start it")
        sys.exit(1)
    if os.environ.get("TINY_BREAKS") == str(own.number):
        sys.exit(3)
    ending = Ending()
    async with trio.open_nursery() as answering, trio.open_nursery() as nursery:
        if "TINY_DEAF" not in os.environ:
            nursery.start_soon(own.obey, ending)

        async def answer(stream: trio.SocketStream) -> None:
            async with stream:
                await stream.send_all(f"{own.number} {os.getpid()}\n".encode())

        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in [*own.sockets["mqtt.tcp"], own.http] if sock]
        accepting = partial(trio.serve_listeners, answer, listeners, handler_nursery=answering)
        nursery.start_soon(accepting)
        own.tell("listening")
        if not Path(os.environ.get("TINY_UNREADY", "/nothing")).exists():
            own.tell("ready")
        await ending.stop.wait()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    own = workers.inherited(os.environ)
    assert own is not None
    trio.run(main, own)
