"""The processes that make load: started together, given one window of time, their figures collected, ended for certain."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

_TICK = os.sysconf("SC_CLK_TCK")
_spawn = multiprocessing.get_context("spawn")


class Window(NamedTuple):
    """Monotonic seconds. Load is made from `start` on (floods begin a little earlier) and counted from `begin` to `end`; then what is under
    way is waited for."""

    start: float
    begin: float
    end: float


class Failed(Exception):
    """A load process failed: the figures of this run are void. The text is its traceback."""


Figures = dict[str, Any]
Load = Callable[..., Figures]  # (ready: Callable[[], Window], **arguments) -> figures; runs in a process of its own


class Job(NamedTuple):
    load: Load
    arguments: Mapping[str, Any]


def shared_counts(size: int) -> Any:
    """64-bit counters that all processes of a crew see; one writer each."""
    return _spawn.RawArray("q", size)


def _work(pipe: Connection, job: Job) -> None:
    def ready() -> Window:
        gc.collect()
        gc.freeze()
        gc.disable()
        pipe.send(("ready", None))
        return Window(*pipe.recv())

    try:
        pipe.send(("done", job.load(ready, **job.arguments)))
    except (KeyboardInterrupt, EOFError):
        pass  # the run was given up
    except BaseException:  # noqa: BLE001 (its text goes to the parent, which raises)
        with contextlib.suppress(BrokenPipeError):
            pipe.send(("failed", traceback.format_exc()))


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process so far."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def run(
    jobs: Sequence[Job],
    seconds: float,
    warm: float,
    pids: Mapping[str, int],
    *,
    patience: float = 120.0,
    at_end: Callable[[], Figures] | None = None,
) -> list[Figures]:
    """Run the jobs side by side for `warm` + `seconds`. The first entry of the result is of the whole: CPU seconds of each of `pids` and of
    the jobs' processes ("load") within the window, and what `at_end` measured; then each job's own figures. patience: seconds for getting
    ready, and again for ending. Raises Failed."""
    crew = []
    try:
        for job in jobs:
            here, there = _spawn.Pipe()
            process = _spawn.Process(target=_work, args=(there, job), daemon=True)
            process.start()
            there.close()
            crew.append((process, here))
        for _, pipe in crew:
            _hear(pipe, "ready", patience)
        start = time.monotonic() + 0.02
        window = Window(start, start + warm, start + warm + seconds)
        for _, pipe in crew:
            pipe.send(tuple(window))
        watched = {**pids, **{f"load{index}": process.pid or 0 for index, (process, _) in enumerate(crew)}}
        _sleep_until(window.begin)
        before = {name: cpu_seconds(pid) for name, pid in watched.items()}
        _sleep_until(window.end)
        used = {name: cpu_seconds(pid) - before[name] for name, pid in watched.items()}
        whole: Figures = {"cpu": {name: used[name] for name in pids}, "load_cpu": sum(used[name] for name in used if name not in pids)}
        whole["seconds"] = seconds
        if at_end is not None:
            whole.update(at_end())
        return [whole, *(_hear(pipe, "done", patience) for _, pipe in crew)]
    finally:
        for process, pipe in crew:
            pipe.close()
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _hear(pipe: Connection, word: str, patience: float) -> Any:
    if not pipe.poll(patience):
        raise Failed(f"a load process did not say {word!r} in {patience} s")
    try:
        said, value = pipe.recv()
    except EOFError:
        raise Failed(f"a load process ended without saying {word!r}") from None
    if said != word:
        raise Failed(f"{said} instead of {word}:\n{value}")
    return value
