"""One worker as its parent sees it: a place that one process after the other has."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import trio

from gateway import observe
from gateway.workers.inherited import VARIABLE, words


class End(NamedTuple):
    """How a worker's process ended. code: its exit code, or minus the signal. refused: why it could not start or go on, "" otherwise.
    lived: seconds that it listened."""

    code: int
    refused: str
    lived: float

    def __str__(self) -> str:
        return f"signal {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"


class Worker:
    """One place in the crew, and the process that has it. life: how many processes had it. asked: it was told to end."""

    def __init__(
        self, number: int, command: Sequence[str], sockets: Mapping[str, list[socket.socket]], changed: Callable[[], object]
    ) -> None:
        self.number = number
        self.life = 0
        self.listening = False
        self.ready = False
        self.running = False
        self.asked = False
        self.wake = trio.Event()  # set: start the next process without a delay
        self._command = command
        self._sockets = sockets
        self._changed = changed
        self._line: socket.socket | None = None
        self._process: trio.Process | None = None

    async def live(self) -> End:
        """Start a process, and return when it has ended."""
        near, far = socket.socketpair()
        near.setblocking(False)
        fds = {name: [sock.fileno() for sock in each] for name, each in self._sockets.items()}
        told = json.dumps({"number": self.number, "sockets": fds, "line": far.fileno()})
        self._line, self.life, self.running = near, self.life + 1, True
        self.listening = self.ready = self.asked = False
        self.wake = trio.Event()
        self._changed()
        refused, since = "", trio.current_time()
        try:
            with far:
                self._process = await trio.lowlevel.open_process(
                    [*self._command],
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, VARIABLE: told},
                    pass_fds=[far.fileno(), *(fd for each in fds.values() for fd in each)],
                    process_group=0,  # Ctrl-C is for the parent, which tells its workers
                )
            observe.log.info("worker_started", worker=self.number, pid=self._process.pid)
            async for word in words(near):  # its end is the end of the process, or nearly
                if word == "listening":
                    self.listening, since = True, trio.current_time()
                elif word == "ready":
                    self.ready = True
                elif word.startswith("refused "):
                    refused = word.removeprefix("refused ")
                self._changed()
            code = await self._process.wait()
            return End(code, refused, trio.current_time() - since if self.listening else 0.0)
        except OSError as error:
            return End(1, f"{self._command[0]} can not be started: {error}", 0.0)
        finally:
            near.close()
            self._line = self._process = None
            self.running = self.ready = False
            self._changed()

    def tell(self, word: str) -> None:
        """To the process, if there is one."""
        self.asked = True
        self.wake.set()
        if self._line is not None:
            try:
                self._line.send(word.encode() + b"\n")
            except OSError:
                pass

    def kill(self) -> None:
        """It does not listen to words."""
        if self._process is not None:
            observe.log.error("worker_killed", worker=self.number, pid=self._process.pid)
            self._process.kill()
