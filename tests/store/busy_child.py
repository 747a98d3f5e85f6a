"""A process that writes to a store for ever and says on stdout what was confirmed, for a test that kills it."""

from __future__ import annotations

import os
import sys
from typing import Any

import trio

from gateway.ports import Retained, StoreError
from gateway.store.sqlite import SqliteStore
from tests.ports.stores import connect, waiting


def confirmed(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # unbuffered: said before the kill means confirmed before the kill


async def write(store: SqliteStore) -> None:
    await connect(store, "a")
    n = 0
    while True:
        room = trio.Event()
        for _ in range(50):
            n += 1

            def retained(result: Any, n: int = n) -> None:
                if not isinstance(result, StoreError):
                    confirmed(f"retained t{n}")

            def put(result: Any, n: int = n, room: trio.Event = room) -> None:
                if not isinstance(result, StoreError):
                    confirmed(f"put M{n}")
                room.set()

            store.retain(f"t{n}", Retained(f"t{n}", b"x" * 50, 0, "ID", 1), retained)
            store.offline_put([waiting("a", f"M{n}")], put)
        await connect(store, f"c{n}")
        confirmed(f"claimed c{n}")
        await room.wait()


async def main(path: str, synchronous: str) -> None:
    store = SqliteStore(path, synchronous=synchronous)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: store.run(task_status=task_status))
        await write(store)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
