"""`make bench`: everything is measured in one run, in rounds that go over all targets in turn.

    python -m tests.bench [--rounds 5] [--only uplink16,fanout] [--targets gateway-rocketmq,mosquitto] [--quick] [--profile]

A full run takes about 20 minutes and writes docs/benchmarks.md and its plots. --quick, --only and --targets print their figures only; they
leave RocketMQ and mosquitto running for the next time, until `--stop`. A bar that is not reached is printed, and is no error.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.bars import Round, judge
from tests.bench.crew import Failed
from tests.bench.scenarios import SCENARIOS, Plan, Scenario
from tests.bench.targets import FOLDER, TARGETS, Yard, raise_file_limit, remove_servers

SETTLE = 0.5  # seconds: RocketMQ indexes what a flood stored for so long after it
QUICK = Plan(seconds=1.5, calm_seconds=2.0, warm=0.7)
Figures = dict[tuple[str, str], dict[str, float]]


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parse(arguments)
    if chosen.stop:
        remove_servers()
        return 0
    partly = bool(chosen.quick or chosen.only or chosen.targets or chosen.profile)
    scenarios = [one for one in SCENARIOS if not chosen.only or any(one.name.startswith(word) for word in chosen.only.split(","))]
    plan = (QUICK if chosen.quick else Plan())._replace(processes=chosen.processes)
    limit = raise_file_limit()
    began = time.monotonic()
    print(f"files: {limit}; generator: {plan.processes} processes", flush=True)
    sampled = FOLDER / "profiles" if chosen.profile else None
    if sampled:
        sampled.mkdir(parents=True, exist_ok=True)
    yard = Yard(keep=partly, sampled=sampled)
    rounds: list[Round] = []
    try:
        for number in range(0 if not chosen.quick else 1, chosen.rounds + 1):
            print(f"-- round {number} of {chosen.rounds}{'' if number else ' (warm-up, not counted)'}", flush=True)
            figures = _round(yard, scenarios, chosen.targets, plan if number else QUICK._replace(processes=plan.processes), number)
            if number:
                rounds.append(figures)
    finally:
        yard.close()
    _print_bars(rounds)
    print(f"{time.monotonic() - began:.0f} s", flush=True)
    if sampled:
        for file in sorted(sampled.glob("*.txt")):
            print(f"\n==== {file}\n{file.read_text()}")
    if not partly or chosen.write:
        from tests.bench.report import write

        write(rounds, plan, Path(chosen.output), time.monotonic() - began)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="counted rounds (5; with --quick 1)")
    parser.add_argument("--only", help=f"beginnings of names: {', '.join(one.name for one in SCENARIOS)}")
    parser.add_argument("--targets", help=f"some of: {', '.join(TARGETS)}")
    parser.add_argument("--quick", action="store_true", help="short windows, one round, no warm-up round")
    parser.add_argument("--profile", action="store_true", help="run the gateways under a sampling profiler, print where their CPU goes")
    parser.add_argument("--processes", type=int, default=2, help="of the generator (2)")
    parser.add_argument("--write", action="store_true", help="write the report, however little was measured")
    parser.add_argument("--output", default="docs", help="folder of benchmarks.md (docs)")
    parser.add_argument("--stop", action="store_true", help="end the servers that a short run left running")
    chosen = parser.parse_args(arguments)
    unknown = set((chosen.targets or "").split(",")) - {"", *TARGETS}
    if unknown:
        parser.error(f"--targets: no such target: {', '.join(sorted(unknown))}")
    chosen.rounds = chosen.rounds or (1 if chosen.quick else 5)
    return chosen


def _round(yard: Yard, scenarios: Sequence[Scenario], targets: str | None, plan: Plan, number: int) -> Figures:
    """Every scenario on each of its targets; which target comes first changes with the round."""
    figures: Figures = {}
    for scenario in scenarios:
        if scenario.fresh and not number:
            continue  # nothing to warm
        wanted = [name for name in scenario.targets if not targets or name in targets.split(",")]
        turn = number % len(wanted) if wanted else 0
        for name in wanted[turn:] + wanted[:turn]:
            target = yard.start(name) if scenario.fresh else yard.target(name)
            try:
                found = scenario.measure(target, plan)
            except Failed as failure:
                print(f"{scenario.name:12}{name:18}VOID: {failure}\n{target.log()}", file=sys.stderr, flush=True)
                found = {"void": 1}
            time.sleep(SETTLE)
            figures[scenario.name, name] = found
            print(f"{scenario.name:12}{name:18}{'  '.join(f'{key} {value:,.4g}' for key, value in found.items())}", flush=True)
    return figures


def _print_bars(rounds: Sequence[Round]) -> None:
    for outcome in judge(rounds):
        bar = outcome.bar
        void = f" ({outcome.void} rounds void)" if outcome.void else ""
        word = "reached" if outcome.reached else "NOT REACHED"
        print(f"{word:12}{outcome.median:8.2f} ({'>=' if bar.at_least else '<='} {bar.limit:g})  {bar.title}{void}")


if __name__ == "__main__":
    sys.exit(main())
