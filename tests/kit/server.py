"""Servers as child processes: free ports, a log file, waiting until one accepts, and the mosquitto that serves as an oracle."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A child process that listens on (host, port)."""

    def __init__(self, command: Sequence[str], port: int, log: Path, environment: dict[str, str] | None = None) -> None:
        self.command = list(command)
        self.host = HOST
        self.port = port
        self.log_path = log
        self.environment = {**os.environ, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, patience: float = 30.0) -> None:
        """Start it and wait until it accepts a connection."""
        assert self.process is None, "it runs already"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self.environment
            )
        deadline = time.monotonic() + patience
        while not self._accepts():
            code = self.process.poll()
            if code is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"{self.command[0]} does not accept (exit code {code}); its log:\n{self.log()}")
            time.sleep(0.02)

    def _accepts(self) -> bool:
        """Whether a connection is served: one that ends at once is closed from the other side too. A bound port alone is not enough."""
        try:
            with socket.create_connection((self.host, self.port), timeout=2) as probe:
                probe.shutdown(socket.SHUT_WR)
                return probe.recv(1) == b""
        except OSError:
            return False

    def terminate(self, patience: float = 30.0) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None, "it does not run"
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.command[0]} ignored SIGTERM for {patience} s; its log:\n{self.log()}") from None
        self.process = None
        return code

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def log(self) -> str:
        """What it wrote so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


def mosquitto(folder: Path) -> Server:
    """The oracle: mosquitto, anonymous, nothing on disk, no $SYS chatter. Not started yet."""
    program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    assert Path(program).exists(), "the oracle needs mosquitto: apt-get install mosquitto"
    port = free_port()
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} {HOST}\nallow_anonymous true\nsys_interval 0\nset_tcp_nodelay true\nmax_queued_messages 10000\n")
    return Server([program, "-c", str(config)], port, folder / "mosquitto.log")
