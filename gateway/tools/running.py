"""Run a command's coroutine: signals end it cleanly, the user's mistakes become one line, and only our own faults a traceback."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import trio

from gateway import observe
from gateway.ports import BackendError, StoreError
from gateway.settings import SettingsError

INTERRUPTED = 130  # what shells use for SIGINT


class ToolError(Exception):
    """A command can't do it. The text names the thing and the cure."""


def run(
    body: Callable[[], Awaitable[int]],
    *,
    as_json: bool,
    endless: bool = False,
    own_signals: bool = False,
    expected: tuple[type[Exception], ...] = (),
) -> int:
    """The command's exit code. endless: a signal ends it in the regular way. own_signals: the body minds them itself. expected: further
    errors that are told in one line."""
    mistakes = (ToolError, SettingsError, BackendError, StoreError, *expected)
    try:
        return trio.run(body) if own_signals else trio.run(_with_signals, body, 0 if endless else INTERRUPTED)
    except BaseException as error:
        found = leaves(error)
        if any(isinstance(leaf, BrokenPipeError) for leaf in found):
            # the reader of our output has enough; nothing may be flushed into the pipe at exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if all(isinstance(leaf, KeyboardInterrupt) for leaf in found):
            return INTERRUPTED  # before or after the time in which signals are received
        if all(isinstance(leaf, mistakes) for leaf in found):
            complain(found[0], as_json=as_json)
            return 1
        raise


def quiet() -> None:
    """Commands other than `serve` log errors only: what they have to say is their output."""
    observe.configure("error")


def complain(error: BaseException, *, as_json: bool) -> None:
    """Tell a mistake on stderr."""
    text = str(error)
    print(json.dumps({"error": text}, ensure_ascii=False) if as_json else f"error: {text}", file=sys.stderr)


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in nested groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


async def _with_signals(body: Callable[[], Awaitable[int]], interrupted: int) -> int:
    code = interrupted
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def wait_for_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_signal)
            code = await body()
            nursery.cancel_scope.cancel()
    return code
