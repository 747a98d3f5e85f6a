"""The catalogue of faults: what is done to which part, for how long."""

from __future__ import annotations

import time
from typing import NamedTuple

from tests.faults.harness import parts
from tests.faults.harness.events import Fault
from tests.faults.harness.stage import Stage

PARTS = ("gateway", "redis", "broker", "namesrv")
AWAY_SECONDS = 1.0  # between a SIGKILL and the new start, unless the name says more
DEAD_SECONDS = 20  # longer than other nodes wait before they declare a node dead
FREEZES = (4, 20)


class Plan(NamedTuple):
    """action: kill, freeze or none. seconds: how long it is away, or stands still."""

    name: str
    action: str
    part: str
    seconds: float


def parse(name: str) -> Plan:
    """`none`, `kill-broker`, `kill-gateway-20`, `freeze-redis-4`. Raises ValueError that says what is known."""
    action, _, rest = name.partition("-")
    part, _, seconds = rest.partition("-")
    known = action in ("kill", "freeze") and part in PARTS and (seconds.replace(".", "", 1).isdigit() or (not seconds and action == "kill"))
    if name == "none":
        return Plan(name, "none", "none", AWAY_SECONDS)
    if not known:
        raise ValueError(f"{name!r} is no fault: write kill-PART, kill-PART-SECONDS or freeze-PART-SECONDS with PART of {', '.join(PARTS)}")
    return Plan(name, action, part, float(seconds or AWAY_SECONDS))


def catalogue(store: str, nodes: int) -> list[str]:
    """What a full run does, in turn."""
    there = [part for part in PARTS if part != "redis" or store == "redis"]
    kills = [f"kill-{part}" for part in there]
    if nodes > 1:
        kills.insert(1, f"kill-gateway-{DEAD_SECONDS}")
    return kills + [f"freeze-{part}-{seconds}" for seconds in FREEZES for part in there]


def strike(plan: Plan, stage: Stage, number: int) -> Fault:
    """Do it; returns when it is over. number: of the gateway, if it is one."""
    begin = struck = time.time()
    if plan.action == "none":
        time.sleep(plan.seconds)
        return Fault(begin, struck, time.time(), plan.name, "none", 0, False)
    victim = stage.part(plan.part, number)
    if plan.action == "kill":
        victim.kill()
        struck = time.time()
        time.sleep(plan.seconds)
        victim.start()
    else:
        parts.freeze(victim)
        struck = time.time()
        try:
            time.sleep(plan.seconds)
        finally:
            parts.thaw(victim)
    gateway = plan.part == "gateway"
    return Fault(begin, struck, time.time(), plan.name, plan.part, number if gateway else 0, gateway and len(stage.nodes) == 1)
