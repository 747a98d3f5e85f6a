"""A process that makes load: devices or a server app, told by its standard input what comes next, with a journal of all that happened.

    python -m tests.faults.harness.load SPEC JOURNAL      (SPEC: JSON of `Spec`; lines on stdin: go, quiet, over)

It says `ready` when everything is connected and subscribed, and `quiet` when nothing of its own is unacknowledged any more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import trio

from tests.faults.harness import receivers, senders, server_app
from tests.faults.harness.events import Event, to_line
from tests.faults.harness.line import Identity
from tests.faults.harness.senders import Orders

WRITE_SECONDS = 0.1


class Spec(NamedTuple):
    """ports: of the nodes. namesrv: for talkers. senders: (Client ID, node, Manner). receivers: (Client ID, clean, node, Manner).
    talkers: (name, Manner)."""

    ports: list[int]
    namesrv: str
    senders: Sequence[tuple[str, int, senders.Manner]] = ()
    receivers: Sequence[tuple[str, bool, int, receivers.Manner]] = ()
    talkers: Sequence[tuple[str, server_app.Manner]] = ()

    @classmethod
    def read(cls, text: str) -> Spec:
        """From the JSON of its fields."""
        raw: dict[str, Any] = json.loads(text)
        return cls(
            raw["ports"],
            raw["namesrv"],
            [(name, node, senders.Manner(*manner)) for name, node, manner in raw["senders"]],
            [(name, clean, node, receivers.Manner(*manner)) for name, clean, node, manner in raw["receivers"]],
            [(name, server_app.Manner(*manner)) for name, manner in raw["talkers"]],
        )


class Journal:
    """Events on their way to a file; whole lines only."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        self._lines: list[str] = []

    def note(self, event: Event) -> None:
        self._lines.append(to_line(event))

    def write(self) -> None:
        """To the file, for whoever reads along."""
        lines, self._lines = self._lines, []
        self._file.write("".join(lines))
        self._file.flush()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(WRITE_SECONDS)
            self.write()


async def _obey(orders: Orders) -> None:
    """Lines of standard input. Its end (the run is dead) ends everything at once."""
    async with trio.lowlevel.FdStream(0) as stream:
        rest = b""
        while data := await stream.receive_some(64):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                {b"go": orders.go, b"quiet": orders.quiet, b"over": orders.over}[line].set()
                if line == b"over":
                    return
    sys.exit(1)


async def main(spec: Spec, journal: Journal) -> None:
    """Until `over`."""
    orders = Orders()
    crew: list[Any] = [
        *(senders.Sender(Identity(name, False, spec.ports), manner, node, orders, journal.note) for name, node, manner in spec.senders),
        *(server_app.Talker(name, spec.namesrv, manner, orders, journal.note) for name, manner in spec.talkers),
    ]
    audience = [
        receivers.Receiver(Identity(name, clean, spec.ports), manner, node, orders, journal.note)
        for name, clean, node, manner in spec.receivers
    ]
    async with trio.open_nursery() as outer:
        outer.start_soon(journal.run)
        outer.start_soon(_obey, orders)
        async with trio.open_nursery() as listening:
            async with trio.open_nursery() as starting:
                for receiver in audience:
                    starting.start_soon(listening.start, receiver.run)
            async with trio.open_nursery() as publishing:
                async with trio.open_nursery() as starting:
                    for one in crew:
                        starting.start_soon(publishing.start, one.run)
                print("ready", flush=True)
            await orders.quiet.wait()
            journal.write()
            print("quiet", flush=True)
        await orders.over.wait()
        outer.cancel_scope.cancel()
    journal.write()


if __name__ == "__main__":
    trio.run(main, Spec.read(Path(sys.argv[1]).read_text()), Journal(Path(sys.argv[2])))
