"""Runs the gateway under a sampling profiler: where its CPU time goes, at almost no cost.

    python -m tests.bench.sampler OUTPUT serve --config FILE

A signal for each millisecond of CPU time; the stacks are counted in the process and written when it ends.
"""

from __future__ import annotations

import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

INTERVAL = 0.001  # seconds of CPU time
START_UP = 1.0  # seconds of CPU time that are not looked at: imports
DEPTH = 60
SHOWN = 45


class Samples:
    """Stacks seen so far."""

    def __init__(self) -> None:
        self.stacks: Counter[tuple[tuple[CodeType, int], ...]] = Counter()

    def take(self, _number: int, frame: FrameType | None) -> None:
        stack: list[tuple[CodeType, int]] = []
        while frame is not None and len(stack) < DEPTH:
            stack.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        self.stacks[tuple(stack)] += 1

    def text(self) -> str:
        """Three tables: by function, by line, and by function with everything that it calls."""
        whole = max(1, self.stacks.total())
        own: Counter[str] = Counter()
        lines: Counter[str] = Counter()
        reach: Counter[str] = Counter()
        for stack, count in self.stacks.items():
            names = [_name(code) for code, _ in stack]
            own[names[0]] += count
            lines[f"{names[0]} line {stack[0][1]}"] += count
            for name in set(names):
                reach[name] += count
        parts = [f"{whole} samples of {INTERVAL * 1000:g} ms CPU"]
        for title, table in (("own time by function", own), ("own time by line", lines), ("with callees", reach)):
            parts += ["", title, *(f"{count / whole:7.1%}  {name}" for name, count in table.most_common(SHOWN))]
        return "\n".join(parts) + "\n"


def _name(code: CodeType) -> str:
    return f"{'/'.join(Path(code.co_filename).parts[-2:])}:{code.co_qualname}"


def main(arguments: list[str]) -> None:
    output = Path(arguments[1])
    samples = Samples()
    signal.signal(signal.SIGPROF, samples.take)
    signal.setitimer(signal.ITIMER_PROF, START_UP, INTERVAL)
    sys.argv = ["mqtt-gateway", *arguments[2:]]
    try:
        runpy.run_module("gateway.cli", run_name="__main__", alter_sys=True)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        output.write_text(samples.text())


if __name__ == "__main__":
    main(sys.argv)
