"""The load processes of one fault: started, told what comes next, and their journals read along."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.harness.events import from_line
from tests.faults.harness.history import History
from tests.faults.harness.load import Spec


class LoadError(Exception):
    """A load process ended or did not get ready: nothing is proved. The text has the end of its output."""


class _Worker:
    def __init__(self, folder: Path, name: str, spec: Spec) -> None:
        path = folder / f"{name}.json"
        path.write_text(json.dumps(spec._asdict()))
        self.journal = folder / f"{name}.journal"
        self.journal.touch()
        self.output = folder / f"{name}.log"
        self.name = name
        self.read = 0
        with self.output.open("wb") as log:
            command = [sys.executable, "-m", "tests.faults.harness.load", str(path), str(self.journal)]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0)
        self.said = b""

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(word.encode() + b"\n")
        except BrokenPipeError:
            raise self.failed("ended") from None

    def failed(self, what: str) -> LoadError:
        return LoadError(f"load process {self.name} {what}; {self.output}:\n{self.output.read_text(errors='replace')[-3000:]}")


class Crew:
    """Processes by name. Always `kill` it in the end."""

    def __init__(self, folder: Path, specs: dict[str, Spec]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._workers = [_Worker(folder, name, spec) for name, spec in specs.items()]

    def hear(self, word: str, patience: float) -> None:
        """Until all have said it. Raises LoadError."""
        deadline = time.monotonic() + patience
        with selectors.DefaultSelector() as selector:
            for each in self._workers:
                assert each.process.stdout is not None
                if word.encode() not in each.said.split():
                    selector.register(each.process.stdout, selectors.EVENT_READ, each)
            while selector.get_map():
                left = deadline - time.monotonic()
                if left <= 0:
                    late = [key.data for key in selector.get_map().values()]
                    raise late[0].failed(f"did not say {word!r} within {patience:.0f} s")
                for key, _ in selector.select(left):
                    worker: _Worker = key.data
                    data = os.read(key.fd, 4096)
                    if not data:
                        raise worker.failed("ended")
                    worker.said += data
                    if word.encode() in worker.said.split():
                        selector.unregister(key.fileobj)

    def tell(self, word: str) -> None:
        """All of them. Raises LoadError."""
        for worker in self._workers:
            worker.tell(word)

    def read(self, history: History) -> None:
        """What is new in the journals. Raises LoadError when a process has failed."""
        for worker in self._workers:
            code = worker.process.poll()
            if code:
                raise worker.failed(f"ended with exit code {code}")
            with worker.journal.open("rb") as file:
                file.seek(worker.read)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            worker.read += len(whole)
            for line in whole.decode().splitlines():
                history.add(from_line(line))

    def join(self, patience: float) -> None:
        """Until all have ended by themselves. Raises LoadError."""
        for worker in self._workers:
            try:
                code = worker.process.wait(patience)
            except subprocess.TimeoutExpired:
                raise worker.failed("did not end") from None
            if code:
                raise worker.failed(f"ended with exit code {code}")

    def kill(self) -> None:
        """Those that still run."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()
            for pipe in (worker.process.stdin, worker.process.stdout):
                if pipe is not None:
                    pipe.close()
