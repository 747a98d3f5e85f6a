"""RocketMQ stands still for a minute while devices offer 5,000 messages a second, at most 20 of each in flight (design section 3.6)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import trio

from tests.faults.harness import backend, parts, senders
from tests.faults.harness.account import Account, Offender, Row, lost
from tests.faults.harness.crew import Crew
from tests.faults.harness.events import Fault, Stored
from tests.faults.harness.history import FOREVER, History
from tests.faults.harness.load import Spec
from tests.faults.harness.scene import READY_SECONDS
from tests.faults.harness.stage import Stage

RATE, WINDOW, DEVICES, SIZE = 5000, 20, 250, 100
PROCESSES = 2
STILL_SECONDS = 60.0
BEFORE_SECONDS, AFTER_SECONDS = 10.0, 20.0
GROWTH_BYTES = 200 << 20
PING_SECONDS = 3.0  # a PINGRESP comes within so long, a machine with two cores included
CAUGHT_UP = 0.9  # of the rate before
CAUGHT_UP_SECONDS = 10.0
PREFIX = "bp"


def play(
    stage: Stage,
    folder: Path,
    say: Callable[[str], None],
    *,
    still: float = STILL_SECONDS,
    before: float = BEFORE_SECONDS,
    after: float = AFTER_SECONDS,
    rate: float = RATE,
    devices: int = DEVICES,
) -> tuple[Account, History]:
    """The account of the scenario. Raises LoadError, AssertionError when the run itself does not work."""
    history, began = History(), time.time()
    crew = Crew(folder, _specs(stage, rate, devices))
    try:
        crew.hear("ready", READY_SECONDS)
        say(f"{devices} devices are connected; {rate:,.0f} messages a second for {before:g} s")
        crew.tell("go")
        time.sleep(before)
        pid = stage.nodes[0].pid
        assert pid is not None
        base = rss = parts.rss(pid)
        frozen = [stage.part("broker", 0), stage.part("namesrv", 0)]
        say(f"RocketMQ stands still for {still:g} s; the gateway has {base >> 20} MiB")
        begin = time.time()
        try:
            for part in frozen:
                parts.freeze(part)
            struck = time.time()
            while time.time() < struck + still:
                time.sleep(0.25)
                rss = max(rss, parts.rss(pid))
        finally:
            for part in frozen:
                parts.thaw(part)
        history.add(Fault(begin, struck, time.time(), "backpressure", "broker", 0, False))
        say(f"it goes on; the gateway has {parts.rss(pid) >> 20} MiB")
        end = time.monotonic() + after
        while time.monotonic() < end:
            time.sleep(0.25)
            rss = max(rss, parts.rss(pid))
        crew.tell("quiet")
        crew.hear("quiet", READY_SECONDS)
        crew.tell("over")
        crew.join(READY_SECONDS)
        crew.read(history)
    finally:
        crew.kill()
    for copy in trio.run(_stored, stage, began):
        history.add(copy)
    return _account(history, rss - base, base, stage.complaints()), history


def _specs(stage: Stage, rate: float, devices: int) -> dict[str, Spec]:
    def device(number: int) -> tuple[str, int, senders.Manner]:
        manner = senders.Manner([f"{stage.parent}/{PREFIX}/{number}"], 1, rate / devices, WINDOW, SIZE)
        return f"{PREFIX}-{number}", number, manner

    plain = Spec(stage.ports, stage.namesrv)
    return {
        f"devices-{part}": plain._replace(senders=[device(number) for number in range(part, devices, PROCESSES)])
        for part in range(PROCESSES)
    }


async def _stored(stage: Stage, began: float) -> list[Stored]:
    return await backend.read(stage.namesrv, stage.parent, began - 1, lambda id: id.startswith(PREFIX + "-"), patience=180)


def _account(history: History, growth: int, base: int, complaints: list[str]) -> Account:
    fault = history.fault
    assert fault is not None
    ended = [
        Offender("", end.device, f"{end.reason} {end.at - fault.begin:+.1f} s after the fault")
        for ends in history.ends.values()
        for end in ends
        if end.reason != "end"
    ]
    pings = [ping for ping in history.pings if fault.begin <= ping.at <= fault.end]
    slowest = max((ping.took for ping in pings), default=FOREVER)
    silent = sorted(set(history.connects) - {ping.device for ping in pings})
    usual, caught_up = _pace(history, fault)
    rows = [
        Row("published", "messages published", len(history.published)),
        Row("acknowledged", "acknowledged to their senders", len(history.acknowledged)),
        Row("usual", "acknowledged a second before the fault", usual),
        lost(history),
        Row("growth", f"growth of the gateway's memory (it had {base >> 20} MiB)", growth / (1 << 20), GROWTH_BYTES >> 20, [], "MiB"),
        Row("disconnected", "connections that ended", len(ended), 0, ended),
        Row("pings", "PINGRESPs while RocketMQ stood still", len(pings)),
        Row("unanswered", "devices that got none", len(silent), 0, [Offender("", device) for device in silent]),
        Row("slowest", "the slowest PINGRESP meanwhile", slowest, PING_SECONDS, [], "s"),
        Row("caught_up", f"until {CAUGHT_UP:.0%} of the usual pace, after RocketMQ went on", caught_up, CAUGHT_UP_SECONDS, [], "s"),
        Row("unacknowledged", "never acknowledged", sum(id not in history.acknowledged for id in history.published), 0),
        Row("complaints", "faults of its own in the gateways' logs", len(complaints), 0, [Offender("", why=one) for one in complaints]),
    ]
    return Account(fault, rows)


def _pace(history: History, fault: Fault) -> tuple[float, float]:
    """(acknowledgements a second in the 5 s before the fault, seconds from its end to the first second with 90 % of that)."""
    usual = sum(fault.begin - 5 <= at < fault.begin for at in history.acknowledged.values()) / 5
    by_second: dict[int, int] = {}
    for at in history.acknowledged.values():
        if at >= fault.end:
            second = int(at - fault.end)
            by_second[second] = by_second.get(second, 0) + 1
    good = [second for second, count in sorted(by_second.items()) if count >= CAUGHT_UP * usual]
    return usual, float(good[0] + 1) if good else FOREVER
