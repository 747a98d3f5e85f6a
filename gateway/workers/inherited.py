"""What a worker has from its parent, and the words between them.

A word is a line on a socket pair. The worker says `listening`, `ready` (its servers answer too), or `refused` and why it can not start;
the parent says `stop`, `hurry`. The end of the line means that the other one is gone: a worker without its parent stops in order.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncGenerator, Mapping
from typing import NamedTuple, Protocol

import trio

from gateway import observe
from gateway.settings import Settings
from gateway.transports import tcp

VARIABLE = "MQTT_GATEWAY_WORKER"  # of the environment: number, descriptors of the sockets and of the line, as JSON
WORD_BYTES = 65536


class Told(Protocol):
    """How the gateway is told to end (`app.Ending`)."""

    @property
    def stop(self) -> trio.Event: ...
    @property
    def hurry(self) -> trio.Event: ...


class Inherited(NamedTuple):
    """A worker's own. number: from 1. sockets: listening ones by their setting. line: to the parent."""

    number: int
    sockets: Mapping[str, list[socket.socket]]
    line: socket.socket

    def adapt(self, settings: Settings) -> Settings:
        """The settings of this worker's node: its own name, its own folder, its own HTTP port."""
        name = f"{settings.gateway.node_id}-{self.number}"
        folder = settings.gateway.data_dir / f"worker-{self.number}"
        gateway = settings.gateway.model_copy(update={"node_id": name, "data_dir": folder, "workers": 1})
        http = settings.http.model_copy(update={"listen": tcp.peer_name(self.http.getsockname()) if self.http else ""})
        return settings.model_copy(update={"gateway": gateway, "http": http})

    @property
    def http(self) -> socket.socket | None:
        """None: off."""
        return next(iter(self.sockets["http.listen"]), None)

    def tell(self, word: str) -> None:
        """To the parent, if it is there."""
        try:
            self.line.send(word.encode("utf-8", "replace")[: WORD_BYTES - 1].replace(b"\n", b" ") + b"\n")
        except OSError:
            pass

    async def obey(self, ending: Told) -> None:
        """What the parent says, until it is gone."""
        async for word in words(self.line):
            observe.log.info("told_by_parent", word=word)
            if word == "hurry":
                ending.hurry.set()
            ending.stop.set()
        if not ending.stop.is_set():
            observe.log.warning("parent_gone")
            ending.stop.set()


def inherited(environ: Mapping[str, str]) -> Inherited | None:
    """What this process has from its parent; None when it is no worker."""
    if VARIABLE not in environ:
        return None
    told = json.loads(environ[VARIABLE])
    sockets = {name: [_adopt(fd) for fd in fds] for name, fds in told["sockets"].items()}
    return Inherited(told["number"], sockets, _adopt(told["line"]))


def _adopt(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


async def words(line: socket.socket) -> AsyncGenerator[str, None]:
    """Each line that the other side writes, until it is gone."""
    held = b""
    while True:
        try:
            await trio.lowlevel.wait_readable(line)
            data = line.recv(WORD_BYTES)
        except BlockingIOError:
            continue
        except OSError:
            data = b""
        if not data:
            return
        *words, held = (held + data).split(b"\n")
        for word in words:
            yield word.decode("utf-8", "replace")
