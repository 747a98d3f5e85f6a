"""The parent of workers, with workers that are no gateways (tests/kit/tiny_worker.py): who binds, who is told, who is started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.server import HOST, free_port

PATIENCE = 20.0


def wait_until(reached: Callable[[], Any], patience: float = PATIENCE) -> Any:
    deadline = time.monotonic() + patience
    while not (found := reached()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Parent:
    """A parent of tiny workers as a child process."""

    def __init__(self, folder: Path, number: int = 2, **environment: str) -> None:
        self.port, self.http_port = free_port(), row_of_ports(number)
        self.out, self.err = folder / "out", folder / "err"
        command = [sys.executable, "-m", "tests.kit.tiny_parent", str(self.port), str(self.http_port), str(number)]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**os.environ, **environment})

    def started(self) -> Parent:
        wait_until(lambda: "started" in self.out.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.err.read_text()
        return self

    def lines(self, event: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.err.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line["event"] == event]

    def pids(self) -> dict[int, int]:
        """The last process of each worker."""
        return {line["worker"]: line["pid"] for line in self.lines("worker_started")}

    def ask(self, port: int | None = None) -> tuple[int, int]:
        """(number, process id) of who answers."""
        with socket.create_connection((HOST, port or self.port), timeout=5) as connection:
            number, pid = connection.makefile().readline().split()
            return int(number), int(pid)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        return self.process.wait(PATIENCE)


def row_of_ports(number: int) -> int:
    """The first of so many free ports in a row."""
    while True:
        first = free_port()
        probes = [socket.socket() for _ in range(number)]
        try:
            for index, probe in enumerate(probes):
                probe.bind((HOST, first + index))
        except (OSError, OverflowError):
            continue
        finally:
            for probe in probes:
                probe.close()
        return first


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Callable[..., Parent]]:
    made: list[Parent] = []

    def make(number: int = 2, **environment: str) -> Parent:
        made.append(Parent(tmp_path, number, **environment))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
        one.process.wait()
        wait_until(lambda one=one: not any(map(alive, one.pids().values())))
        assert "Traceback" not in one.err.read_text(), one.err.read_text()


def test_workers_share_the_port_and_have_one_of_their_own(parent: Callable[..., Parent]) -> None:
    one = parent(3).started()
    assert {one.ask() for _ in range(300)} <= set(one.pids().items())
    assert [one.ask(one.http_port + index) for index in range(3)] == sorted(one.pids().items())


@pytest.mark.parametrize("which", ["port", "http_port"])
def test_a_port_in_use_is_the_parents_error(parent: Callable[..., Parent], tmp_path: Path, which: str) -> None:
    first = parent().started()
    busy = first.port if which == "port" else first.http_port + 1
    arguments = [str(busy), "0"] if which == "port" else [str(free_port()), str(busy)]
    command = [sys.executable, "-m", "tests.kit.tiny_parent", *arguments, "2"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert second.returncode == 1
    assert second.stderr.startswith("error: can't listen on ")
    assert str(busy) in second.stderr
    assert "worker_started" not in second.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_in_order(parent: Callable[..., Parent], number: signal.Signals) -> None:
    one = parent().started()
    one.signal(number)
    assert one.end() == 0
    assert not any(map(alive, one.pids().values()))
    assert [line["word"] for line in one.lines("told_by_parent")] == ["stop", "stop"]
    assert one.lines("worker_died") == []


def test_a_second_signal_hurries(parent: Callable[..., Parent]) -> None:
    one = parent().started()
    pid = one.pids()[1]
    os.kill(pid, signal.SIGSTOP)
    one.signal(signal.SIGTERM)
    wait_until(lambda: one.lines("signal"))
    one.signal(signal.SIGTERM)
    wait_until(lambda: len(one.lines("signal")) == 2)
    os.kill(pid, signal.SIGCONT)
    assert one.end() == 0
    assert "hurry" in [line["word"] for line in one.lines("told_by_parent")]


def test_a_worker_that_does_not_end_is_killed(parent: Callable[..., Parent]) -> None:
    one = parent(TINY_DEAF="1", TINY_ENDING="0.5").started()
    one.signal(signal.SIGTERM)
    assert one.end() == 0
    assert sorted(line["worker"] for line in one.lines("worker_killed")) == [1, 2]


def test_a_worker_that_dies_is_started_again_with_growing_delays(parent: Callable[..., Parent]) -> None:
    one = parent().started()
    other = one.pids()[2]
    for life in (1, 2):
        os.kill(one.pids()[1], signal.SIGKILL)
        wait_until(lambda life=life: len(one.lines("worker_started")) == 2 + life)
    died = one.lines("worker_died")
    assert [(line["worker"], line["how"], line["again_in_seconds"]) for line in died] == [
        (1, "signal SIGKILL", 0.5),
        (1, "signal SIGKILL", 1.0),
    ]
    wait_until(lambda: one.ask(one.http_port) == (1, one.pids()[1]))
    assert one.ask(one.http_port + 1) == (2, other)


def test_who_connects_while_a_worker_is_dead_is_served_by_the_others(parent: Callable[..., Parent]) -> None:
    one = parent().started()
    os.kill(one.pids()[1], signal.SIGKILL)
    wait_until(lambda: one.lines("worker_died"))
    assert {one.ask()[0] for _ in range(20)} == {2}


def test_a_worker_that_refuses_ends_everything_with_one_message(parent: Callable[..., Parent]) -> None:
    one = parent(3, TINY_REFUSES="2")
    assert one.end() == 1
    plain = [line for line in one.err.read_text().splitlines() if not line.startswith("{")]
    assert plain == ["error: store.url: no such server. Start it"]
    assert "started" not in one.out.read_text()
    assert not any(map(alive, one.pids().values()))


def test_a_worker_that_breaks_before_it_listens_ends_everything_too(parent: Callable[..., Parent]) -> None:
    one = parent(2, TINY_BREAKS="2")
    assert one.end() == 3
    assert "error: worker 2 ended with exit code 3" in one.err.read_text()


def test_workers_do_not_outlive_a_parent_that_is_killed(parent: Callable[..., Parent]) -> None:
    one = parent().started()
    one.process.kill()
    one.process.wait()
    wait_until(lambda: not any(map(alive, one.pids().values())))
    assert len(one.lines("parent_gone")) == 2


def test_a_rolling_restart_takes_one_after_the_other(parent: Callable[..., Parent]) -> None:
    one = parent().started()
    before = one.pids()
    one.signal(signal.SIGHUP)
    asked = 0
    while not one.lines("rolling_restart_done"):
        one.ask()  # somebody always serves
        asked += 1
    assert asked > 0
    assert "reloaded" in one.out.read_text()
    after = one.pids()
    assert not set(before.values()) & set(after.values())
    order = [(line["event"], line["worker"]) for line in map(json.loads, one.err.read_text().splitlines()) if line["event"] in STEPS]
    assert order[2:] == [(step, worker) for worker in (1, 2) for step in ("worker_restarting", "worker_ended", "worker_started")]


STEPS = ("worker_started", "worker_restarting", "worker_ended")


def test_a_rolling_restart_stops_at_a_worker_that_does_not_come_back(parent: Callable[..., Parent], tmp_path: Path) -> None:
    mark = tmp_path / "unready"
    one = parent(TINY_UNREADY=str(mark)).started()
    before = one.pids()
    mark.touch()
    one.signal(signal.SIGHUP)
    wait_until(lambda: one.pids()[1] != before[1])
    wait_until(lambda: one.ask(one.http_port) == (1, one.pids()[1]))
    os.kill(one.pids()[1], signal.SIGKILL)
    (given_up,) = wait_until(lambda: one.lines("rolling_restart_given_up"))
    assert given_up["worker"] == 1
    assert one.pids()[2] == before[2]
    one.signal(signal.SIGTERM)
    assert one.end() == 0
