"""A server process for developers and tests: its program, its port; start, ask, kill and end it (standard library only)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / ".services"
HOST = "127.0.0.1"
JDK = "default-jdk-headless"
PACKAGES = {"java": JDK, "javac": JDK, "mvn": "maven", "redis-server": "redis-server", "mosquitto": "mosquitto"}
PACKAGES |= {"mosquitto_sub": "mosquitto-clients", "mosquitto_pub": "mosquitto-clients", "openssl": "openssl"}


class ServiceError(Exception):
    """A server could not be had. The text says which, why, and what to do."""


def program(name: str) -> str:
    """The path of `name`; installs its Debian package when root. Raises ServiceError with the command that installs it."""
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which(name, path=search)
    if found:
        return found
    package = PACKAGES[name]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _apt_install(package)
        found = shutil.which(name, path=search)
        if found:
            return found
    raise ServiceError(f"{name} is missing. Install it with: sudo apt-get install -y {package} (or your system's package of that name)")


def _apt_install(package: str) -> None:
    """Install without letting the package start its own system-wide server."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "-qq", "update"], ["apt-get", "-qq", "install", "-y", "--no-install-recommends", package]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ServiceError(f"`{' '.join(command)}` failed:\n{done.stderr.strip()[-2000:]}")
    finally:
        if ours:
            policy.unlink()


def free_port(beside: Sequence[int] = (0,)) -> int:
    """A port p below the ephemeral range such that p + d is free for every d of `beside`."""
    for _ in range(1000):
        port = random.randrange(10_000, 30_000)
        if all(_is_free(port + distance) for distance in beside):
            return port
    raise ServiceError("no free port between 10000 and 30000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def wait_until(ready: Callable[[], bool], what: str, deadline: float, alive: Callable[[], bool], log: Path) -> None:
    """Poll `ready` for `deadline` seconds. Raises ServiceError with the end of the log."""
    end = time.monotonic() + deadline
    while True:
        with contextlib.suppress(OSError, ValueError, struct.error):
            if ready():
                return
        over = time.monotonic() > end
        if over or not alive():
            text = log.read_text(errors="replace")[-3000:] if log.exists() else ""
            why = f"did not answer within {deadline:.0f} s" if over else "ended while starting"
            raise ServiceError(f"{what} {why}. Log: {log}\n{text}")
        time.sleep(0.1)


class Server:
    """One server process: command, pid file, log, and how to ask whether it answers.

    name: file names and messages. address: "127.0.0.1:port". marks: pieces of a command line, of which only this process has one.
    """

    def __init__(
        self,
        name: str,
        home: Path,
        address: str,
        command: Sequence[str],
        marks: Sequence[str],
        ready: Callable[[], bool],
        *,
        environment: Mapping[str, str] | None = None,
        deadline: float = 30,
    ) -> None:
        self.name = name
        self.home = home
        self.address = address
        self.command = list(command)
        self.marks = list(marks)
        self.ready = ready
        self.environment = {**os.environ, **(environment or {})}
        self.deadline = deadline
        self.log = home / f"{name}.log"
        self.pid_file = home / f"{name}.pid.json"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def pid(self) -> int | None:
        """The pid, if the process of the pid file lives and is ours."""
        if self._child is not None:
            return self._child.pid if self._child.poll() is None else None
        return living(self.pid_file)

    def spawn(self) -> bool:
        """Start the process if it isn't there; doesn't wait for it to answer. False: it was there."""
        if self.pid is not None:
            return False
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.home,
                start_new_session=True,
            )
        noted = {"pid": self._child.pid, "marks": self.marks, "address": self.address}
        self.pid_file.write_text(json.dumps({**noted, "starter": [os.getpid(), _command_line(os.getpid())]}))
        return True

    def wait(self) -> None:
        """Until it answers a real request. Raises ServiceError."""
        wait_until(self.ready, f"{self.name} at {self.address}", self.deadline, lambda: self.pid is not None, self.log)

    def start(self) -> None:
        self.spawn()
        self.wait()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._end(signal.SIGKILL, 10)

    def pause(self) -> None:
        """SIGSTOP: its connections stay, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM, after 20 s SIGKILL."""
        self._signal(signal.SIGCONT)
        self._end(signal.SIGTERM, 20)

    def restart(self) -> None:
        """Start again on the same port and data (after `kill` or `stop`; a living one is stopped first), and wait until it answers."""
        self.stop()
        self.start()

    def _signal(self, number: int) -> None:
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _end(self, number: int, deadline: float) -> None:
        self._signal(number)
        end = time.monotonic() + deadline
        while self.pid is not None:
            if time.monotonic() > end:
                self._signal(signal.SIGKILL)
            time.sleep(0.05)
        self.pid_file.unlink(missing_ok=True)


def living(pid_file: Path) -> int | None:
    """The pid in `pid_file` if that process lives and its command line holds one of the marks; else None."""
    try:
        noted = json.loads(pid_file.read_text())
        pid, marks = int(noted["pid"]), list(noted["marks"])
    except (OSError, ValueError, KeyError):
        return None
    line = _command_line(pid)
    return pid if any(mark in line for mark in marks) else None


def started_by_another(pid_file: Path) -> bool:
    """Whether the process that started the server still runs: a test run or a bench, which ends its servers itself."""
    try:
        pid, line = json.loads(pid_file.read_text())["starter"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(line) and _command_line(int(pid)) == line


def _command_line(pid: int) -> str:
    """What the process was started with; "" when there is none (a zombie has none either)."""
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self").exists():
        try:
            return proc.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    done = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """One starter or stopper of `home` at a time."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ports(home: Path, wanted: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The ports of `home` by name, kept between starts so that clients find them again. wanted: name -> distances (`free_port`)."""
    file = home / "ports.json"
    kept: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    for name, beside in wanted.items():
        used = living(home / f"{name.partition('_')[0]}.pid.json") is not None  # proxy_remoting belongs to proxy
        if not used and not (name in kept and all(_is_free(kept[name] + distance) for distance in beside)):
            kept[name] = free_port(beside)
    file.write_text(json.dumps(kept))
    return kept
