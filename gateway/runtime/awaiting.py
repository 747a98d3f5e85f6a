"""From the ports' callbacks to coroutines, for the cold path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from gateway.ports import Done, StoreError


async def call(submit: Callable[[Done], None]) -> Any:
    """Wait for an operation of the store that takes a callback: its result. Raises StoreError."""
    answered = trio.Event()
    results: list[Any] = []

    def done(result: Any) -> None:
        results.append(result)
        answered.set()

    submit(done)
    await answered.wait()
    if isinstance(results[0], StoreError):
        raise results[0]
    return results[0]
