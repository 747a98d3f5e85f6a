"""`kill -9` at any moment loses nothing that the embedded backend acknowledged, and commits nothing that is not resolved."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from backend_adapters.local import LocalBackend
from tests.backend_adapters.local_sender import GROUP, TOPIC
from tests.ports.backends import Recorder

ROOT = Path(__file__).parents[2]


LONG_LIFE = 5.0  # seconds: longer than the delay of a commit


def run_and_kill(path: Path, seed: str, lines: int, seconds: float = 0) -> list[list[str]]:
    """What the child wrote, but for a line that was cut. It is killed after `lines` lines and `seconds`, whatever it does just then."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.backend_adapters.local_sender", str(path), seed], cwd=ROOT, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        try:
            read = [child.stdout.readline() for _ in range(lines)]
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                read.append(child.stdout.readline())
        finally:
            child.kill()
        read += child.stdout.read().splitlines(keepends=True)
    return [line.decode().split() for line in read if line.endswith(b"\n")]


async def whole_log(path: Path) -> tuple[dict[tuple[int, int], str], dict[int, int]]:
    """(queue, offset) -> body of every message in the file; and where the group would begin, by queue."""
    async with trio.open_nursery() as nursery:
        backend = LocalBackend(path)
        await nursery.start(backend.run)
        everything, group = Recorder(), Recorder()
        info = await backend.topic(TOPIC)
        assert info is not None
        reader = await backend.consume(TOPIC, None, None, everything)
        many = sum((await reader.lag()).values())
        await everything.when(lambda: len(everything.messages) >= many)
        await backend.consume(TOPIC, None, GROUP, group)
        begins = {queue.id: position for queue, position in group.positions.items()}
        nursery.cancel_scope.cancel()
    for message in everything.messages:
        assert message.properties == {"n": message.body.decode()}
    return {(message.queue.id, message.offset): message.body.decode() for message in everything.messages}, begins


@pytest.mark.slow
async def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path, chance = tmp_path / "log.db", random.Random(3)
    stored: dict[tuple[int, int], str] = {}
    for life in range(5):
        last = life == 4
        lines = await trio.to_thread.run_sync(run_and_kill, path, f"life{life}", chance.randrange(500, 6000), LONG_LIFE if last else 0)
        held: dict[int, int] = {}
        for line in lines:
            if line[0] == "stored":
                place = (int(line[1]), int(line[2]))
                assert place not in stored, "one place, one message"
                stored[place] = line[3]
            else:
                held.setdefault(int(line[1]), int(line[2]))
        log, begins = await whole_log(path)
        assert stored.items() <= log.items()
        assert len(set(log.values())) == len(log), "nothing is stored twice"
        for queue in begins:
            offsets = sorted(offset for place, offset in log if place == queue)
            assert offsets == list(range(len(offsets))), "no holes"
            assert begins[queue] <= held.get(queue, len(offsets)), "what is held is not committed"
            assert not last or begins[queue] == held[queue], "what is resolved for so long is"
