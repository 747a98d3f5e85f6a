"""The servers of a run that can be killed and frozen, all with one face."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from deploy import server as services
from tests.kit.gateway import Gateway
from tests.kit.server import HOST

STOP_SECONDS = 10.0


class Part(Protocol):
    """One process. `kill`: SIGKILL, and it is gone. `start`: on the same port and data, until it answers."""

    name: str

    @property
    def pid(self) -> int | None: ...
    def kill(self) -> None: ...
    def start(self) -> None: ...


class Node(Gateway):
    """A gateway node on ports below the ephemeral range: a device that dials a dead node must not connect to itself."""

    def __init__(self, folder: Path, number: int, settings: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port, http = services.free_port(), services.free_port()
        own = {
            "gateway": {"data_dir": str(folder / "data"), "node_id": f"node{number}", **settings["gateway"]},
            "mqtt": {"tcp": f"{HOST}:{port}"},
            "http": {"listen": f"{HOST}:{http}"},
        }
        super().__init__(folder, {**settings, **own})
        self.name = f"gateway {number}"
        self.port, self.http_port = port, http

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None


def freeze(part: Part) -> None:
    """SIGSTOP, and wait until each of its threads stands still. Raises AssertionError."""
    pid = part.pid
    assert pid is not None, f"{part.name} does not run"
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + STOP_SECONDS
    while any(_state(stat) != "T" for stat in Path(f"/proc/{pid}/task").glob("*/stat")):
        assert time.monotonic() < deadline, f"{part.name} does not stop"
        time.sleep(0.002)


def thaw(part: Part) -> None:
    """SIGCONT."""
    pid = part.pid
    assert pid is not None, f"{part.name} died while it was frozen"
    os.kill(pid, signal.SIGCONT)


def _state(stat: Path) -> str:
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "T"  # a thread that ended meanwhile


def rss(pid: int) -> int:
    """Resident bytes of a process."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)
