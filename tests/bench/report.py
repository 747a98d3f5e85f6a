"""Writes benchmarks.md, its plots and the figures of every round."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deploy import services
from tests.bench import plots
from tests.bench.bars import Outcome, Round, judge, median, total
from tests.bench.names import TITLES
from tests.bench.scenarios import DEVICE_WINDOW, FAN_AHEAD, FAN_BATCH, SCENARIOS, Plan
from tests.kit.server import HOST

INTRO = """# Benchmarks

Written by `make bench` ({command}) on {day}: {rounds} rounds after one that is not counted, {minutes:.0f} minutes. In each round every
target is measured in turn, so that what disturbs the machine disturbs all. Figures are medians over the rounds; ratios are computed within
each round first.

* Machine: {cores} cores ({cpu}), {memory:.0f} GiB of memory, Linux {kernel}. Everything runs on it: servers, gateway, load.
* Software: Python {python}, trio {trio}, RocketMQ {rocketmq}, {mosquitto}.
* Load: {processes} processes with raw sockets; {seconds:g} s counted for throughput and {calm:g} s for latency, each after {warm:g} s
  of the same load. Payloads have 100 bytes. One gateway process, any Client ID, no signature (but in the row that says so).
"""

NOTES = """
## How it is measured

* Uplink: 100 devices, each with 1 or 16 messages in flight, nobody subscribes. The order of the PUBACKs is checked byte by byte. mosquitto
  stores nothing here; both gateways have stored each message before they acknowledge it.
* Bare RocketMQ: one loop on one socket with the standard library alone (`tests/bench/reference.py`): one batch in flight for each of 8
  queues, 13 (200) messages in each, so that about as many messages are under way as with the 100 devices. "A message a request" has batches
  of one, 104 under way.
* Fan-out: the publisher sends {batch} messages at once and has at most {ahead} on their way, so that no broker has to drop any. Each
  subscriber counts, checks and, at QoS 1, acknowledges what it gets.
* Device to device: 100 publishers, 1,000 topics with one subscriber each; flat out, a publisher has {window} messages that are not
  delivered or not acknowledged. Times run from the moment at which a message was due to be sent, so a late sender counts against the
  latency, in all targets alike.
* Server app: a producer on a raw socket sends with tag `MQ2MQTT` to 100 devices. "Send to pulled" is that producer and a consumer with a
  long poll on each of 8 queues, at the same rate, in the same round.
* Memory: resident bytes of a fresh process with 10,000 connections that have one subscription each, less the bytes before, over 10,000.
* CPU: user and system time of the process in the counted seconds over the messages of these seconds. "Missing" is what never arrived or was
  never acknowledged after all load had ended; "repeated" is what came with DUP.
"""


def write(rounds: Sequence[Round], plan: Plan, folder: Path, seconds: float) -> None:
    """Write folder/benchmarks.md and folder/benchmarks/."""
    pictures = folder / "benchmarks"
    pictures.mkdir(parents=True, exist_ok=True)
    outcomes = judge(rounds)
    drawn = plots.draw(rounds, outcomes, pictures)
    parts = [_intro(rounds, plan, seconds), _bars(outcomes)]
    if "bars.png" in drawn:
        parts.append("![Median ratio over its bar, in the good direction](benchmarks/bars.png)\n")
    parts += [_throughput(rounds, drawn), _latency(rounds, drawn), _memory(rounds), _generator(rounds)]
    parts.append(NOTES.format(batch=FAN_BATCH, ahead=FAN_AHEAD, window=DEVICE_WINDOW))
    (folder / "benchmarks.md").write_text("\n".join(part.strip("\n") + "\n" for part in parts if part))
    flat = [{f"{scenario} {target}": figures for (scenario, target), figures in one.items()} for one in rounds]
    (pictures / "figures.json").write_text(json.dumps(flat, indent=1) + "\n")


def _intro(rounds: Sequence[Round], plan: Plan, seconds: float) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return INTRO.format(
        command="`python -m tests.bench`",
        day=time.strftime("%Y-%m-%d"),
        rounds=len(rounds),
        minutes=seconds / 60,
        cores=os.cpu_count(),
        cpu=_cpu_model(),
        memory=memory,
        kernel=platform.release().split("-")[0],
        python=platform.python_version(),
        trio=version("trio"),
        rocketmq=services.ROCKETMQ_VERSION,
        mosquitto=_mosquitto(),
        processes=plan.processes,
        seconds=plan.seconds,
        calm=plan.calm_seconds,
        warm=plan.warm,
    )


def _cpu_model() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else platform.machine()


def _mosquitto() -> str:
    done = subprocess.run([services.program("mosquitto"), "-h"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip() or "mosquitto"


def loopback_cost() -> float:
    """CPU microseconds of one send and one receive of 115 bytes on a loopback TCP connection."""
    with socket.create_server((HOST, 0)) as door, socket.create_connection(door.getsockname()) as here:
        there = door.accept()[0]
        with there:
            here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            data, count, began = bytes(115), 20_000, time.process_time()
            for _ in range(count):
                here.send(data)
                there.recv(4096)
            return (time.process_time() - began) / count * 1e6


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)]) + "\n"


def _number(value: float | None, form: str = ",.0f") -> str:
    return "" if value is None else format(value, form)


def _bars(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
        bar, values = outcome.bar, outcome.values or (outcome.median,)
        verdict = "reached" if outcome.reached else "**not reached**"
        if outcome.void:
            verdict += f" ({outcome.void} rounds void: the load failed)"
        limit = f"{'≥' if bar.at_least else '≤'} {bar.limit:g}"
        rows.append([bar.title, limit, f"{outcome.median:.2f}", f"{min(values):.2f} to {max(values):.2f}", verdict])
    return "## The bars\n\n" + _table(["measure", "bar", "median", "rounds", "result"], rows)


def _throughput(rounds: Sequence[Round], drawn: Sequence[str]) -> str:
    head = ["target", "per second", "CPU of its process, us each", "CPU of RocketMQ, us each", "missing", "repeated"]
    text = "## Throughput\n"
    for scenario in SCENARIOS:
        rows = []
        for target in scenario.targets:
            rate = median(rounds, scenario.name, target, "rate")
            if rate is None or target == "sink":
                continue
            cpu, broker = (median(rounds, scenario.name, target, name) for name in ("cpu_us", "broker_us"))
            lost, again = (total(rounds, scenario.name, target, name) for name in ("missing", "repeats"))
            row = [TITLES[target], _number(rate), "" if target == "rocketmq" else _number(cpu, ".1f")]
            rows.append([*row, _number(cpu if target == "rocketmq" else broker, ".1f"), str(lost), str(again)])
        if rows:
            text += f"\n### {TITLES[scenario.name]}\n\n" + _table(head, rows)
    for name in ("uplink.png", "fanout.png", "devices.png"):
        if name in drawn:
            text += f"\n![{TITLES[name]}](benchmarks/{name})\n"
    return text


def _latency(rounds: Sequence[Round], drawn: Sequence[str]) -> str:
    rows = []
    for scenario in SCENARIOS:
        for target in scenario.targets:
            values = [median(rounds, scenario.name, target, name) for name in ("p50_ms", "p99_ms", "late_p99_ms")]
            if values[0] is not None:
                lost = total(rounds, scenario.name, target, "missing")
                rows.append([f"{TITLES[scenario.name]}: {TITLES[target]}", *(_number(value, ".2f") for value in values), str(lost)])
    text = "## Latency\n\n" + _table(["what", "p50, ms", "p99, ms", "sender late, p99, ms", "missing"], rows)
    return text + ("\n![Latency](benchmarks/latency.png)\n" if "latency.png" in drawn else "") if rows else ""


def _memory(rounds: Sequence[Round]) -> str:
    rows = []
    for target in ("fresh-gateway", "fresh-mosquitto"):
        each, base = (median(rounds, "memory", target, name) for name in ("bytes", "base_mib"))
        if each is not None:
            rows.append([TITLES[target], f"{each / 1024:.1f}", _number(base, ".1f")])
    return "## Memory\n\n" + _table(["target", "KiB for each idle connection", "MiB before"], rows) if rows else ""


def _generator(rounds: Sequence[Round]) -> str:
    rows: list[list[Any]] = []
    for scenario in ("uplink1", "uplink16", "fanout0", "fanout1"):
        ceiling, scale = (median(rounds, scenario, target, "rate") for target in ("sink", "mosquitto"))
        if ceiling and scale:
            busy = [median(rounds, scenario, target, "load_cores") for target in ("sink", "mosquitto", "gateway-rocketmq")]
            rows.append([TITLES[scenario], _number(ceiling), f"{ceiling / scale:.1f}", *(_number(value, ".2f") for value in busy)])
    if not rows:
        return ""
    text = (
        "## The generator itself\n\nAgainst a sink that acknowledges and copies without looking. With one message in flight both ends\n"
        "pay for a send and a receive of each message; such a pair on a loopback socket costs\n"
        f"{loopback_cost():.1f} us of CPU here, nearly all in the kernel. That is what limits the first row, whatever the generator is\n"
        "written in.\n\n"
    )
    head = ["load", "per second into the sink", "times mosquitto", "cores busy: sink", "mosquitto", "gateway on RocketMQ"]
    return text + _table(head, rows)
