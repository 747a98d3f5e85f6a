"""A parent of tiny workers: `tiny_parent.py PORT HTTP_PORT WORKERS`. Its lines on stdout: `started`, `reloaded`. TINY_ENDING: seconds that
workers have to end."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import trio

from gateway import observe, workers
from gateway.settings import Settings, load
from gateway.workers import crew


def settings() -> Settings:
    port, http, number = sys.argv[1:4]
    places: dict[str, Any] = {"mqtt.tcp": f"127.0.0.1:{port}", "http.listen": f"127.0.0.1:{http}" if http != "0" else ""}
    servers = {"store.url": "redis://host", "backend.url": "rocketmq://host:9876"}
    return load(None, {**places, **servers, "gateway.workers": number, "gateway.shutdown_grace_seconds": "0", "gateway.drain_seconds": "0"})


def reload() -> Settings:
    fresh = settings()
    print("reloaded", flush=True)
    return fresh


async def main() -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(workers.supervise, settings(), [sys.executable, "-m", "tests.kit.tiny_worker"], reload))
        print("started", flush=True)


if __name__ == "__main__":
    observe.configure("info", True)
    crew.ENDING_SECONDS = float(os.environ.get("TINY_ENDING", crew.ENDING_SECONDS))
    try:
        trio.run(main)
    except* workers.RefusedError as group:
        (error,) = group.exceptions
        assert isinstance(error, workers.RefusedError)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
