"""`make faults`: kill and freeze each part under load, and account for every message.

    python -m tests.faults.harness [--store redis|sqlite] [--nodes 2] [--only kill-gateway,freeze-redis-20] [--seconds 10] [--rate 240]

It starts servers of its own on free ports and ends them; logs and journals stay in a folder that it prints. Exit code 1: a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from deploy.services import ROCKETMQ_VERSION, ROOT
from tests.faults.harness import backpressure, table
from tests.faults.harness.account import Account
from tests.faults.harness.faults import Plan, catalogue, parse
from tests.faults.harness.scene import Effort, Scene
from tests.faults.harness.stage import Stage


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parse(arguments)
    folder = Path(chosen.folder) if chosen.folder else ROOT / "faults" / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=chosen.json, width=None if sys.stdout.isatty() else 150, highlight=False, soft_wrap=True)
    console.print(f"logs and journals: {folder}")
    stage = Stage(folder.resolve(), chosen.store, chosen.nodes, chosen.version, lambda text: _say(console, text))
    wrong: list[str] = []
    try:
        stage.start()
        sound = _backpressure(stage, folder, chosen, console) if chosen.only == "backpressure" else _faults(stage, folder, chosen, console)
        wrong = stage.end()
    finally:
        stage.kill()
        for data in ("rocketmq/broker-0", "rocketmq/store", "redis/appendonlydir"):
            shutil.rmtree(folder / data, ignore_errors=True)
    for problem in wrong:
        console.print(f"BROKEN at the end: {problem}")
    console.print(f"logs and journals: {folder}")
    return 0 if sound and not wrong else 1


def _faults(stage: Stage, folder: Path, chosen: argparse.Namespace, console: Console) -> bool:
    """Each fault in turn; whether all bounds hold."""
    effort = Effort(seconds=chosen.seconds, rate=chosen.rate, patience=chosen.patience, calm=chosen.calm)
    accounts: list[Account] = []
    for number, plan in enumerate(chosen.plans):
        victim = number % chosen.nodes
        scene = Scene(stage, folder / f"{number}-{plan.name}", f"f{number}", effort, lambda text: _say(console, text))
        account = scene.play(plan, victim)
        accounts.append(account)
        where = f"gateway {victim}" if plan.part == "gateway" else plan.part
        table.show(console, account, scene.history, where)
        if chosen.json:
            print(json.dumps(table.as_json(account, scene.history)), flush=True)
    if len(accounts) > 1:
        table.summary(console, accounts)
    return not any(account.broken for account in accounts)


def _backpressure(stage: Stage, folder: Path, chosen: argparse.Namespace, console: Console) -> bool:
    account, history = backpressure.play(stage, folder / "backpressure", lambda text: _say(console, text))
    table.show(console, account, history, "broker and name server")
    if chosen.json:
        print(json.dumps(table.as_json(account, history)), flush=True)
    return not account.broken


def _say(console: Console, text: str) -> None:
    console.print(f"{time.strftime('%H:%M:%S')} {text}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.harness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", choices=("redis", "sqlite"), default="redis", help="redis: real and of its own; sqlite: one node")
    parser.add_argument("--nodes", type=int, help="gateways (redis: 2, sqlite: 1)")
    parser.add_argument("--only", help="kill-PART[-SECONDS], freeze-PART-SECONDS, none, ... with commas between; or backpressure")
    parser.add_argument("--seconds", type=float, default=10.0, help="of load before each fault, and again after it (10)")
    parser.add_argument("--rate", type=float, default=240.0, help="messages a second, of all senders together (240)")
    parser.add_argument("--patience", type=float, default=90.0, help="seconds until everything due must have arrived (90)")
    parser.add_argument("--calm", type=float, default=6.0, help="seconds after that in which repeats may still come (6)")
    parser.add_argument("--version", default=ROCKETMQ_VERSION, help=f"of RocketMQ ({ROCKETMQ_VERSION})")
    parser.add_argument("--folder", help="for logs and journals; default: a new one")
    parser.add_argument("--json", action="store_true", help="one JSON object for each fault on stdout, the tables on stderr")
    chosen = parser.parse_args(arguments)
    chosen.nodes = chosen.nodes or (2 if chosen.store == "redis" else 1)
    if chosen.store == "sqlite" and chosen.nodes != 1:
        parser.error("--nodes: an embedded store serves one node; take --store redis for more")
    chosen.plans = []
    try:
        if chosen.only != "backpressure":
            chosen.plans = plans(chosen.only.split(",") if chosen.only else catalogue(chosen.store, chosen.nodes), chosen.store)
    except ValueError as error:
        parser.error(f"--only: {error}")
    return chosen


def plans(names: Sequence[str], store: str) -> list[Plan]:
    """Raises ValueError for a fault that is not known, or whose part is not there."""
    found = [parse(name) for name in names]
    if store != "redis" and any(plan.part == "redis" for plan in found):
        raise ValueError("there is no Redis with --store sqlite")
    return found


if __name__ == "__main__":
    sys.exit(main())
