"""One fault, from the first CONNECT to the account."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.faults.harness import backend, receivers, senders, server_app
from tests.faults.harness.account import Account, Offender, Row, settle
from tests.faults.harness.crew import Crew
from tests.faults.harness.events import Stored
from tests.faults.harness.faults import Plan, strike
from tests.faults.harness.history import History, last_arrival
from tests.faults.harness.load import Spec
from tests.faults.harness.stage import Stage

POLL_SECONDS = 0.5
READY_SECONDS = 90.0


@dataclass(frozen=True)
class Effort:
    """seconds: of load before the fault, and again after it. rate: messages a second, a third each from devices to the backend alone, from
    device to device, and from the server app. groups: of receivers. patience: seconds until everything due must have arrived. calm:
    seconds after that, in which repeats may still come (a push that is not acknowledged is given up after 5 s)."""

    seconds: float = 10.0
    rate: float = 240.0
    groups: int = 4
    senders: int = 8
    window: int = 20
    size: int = 100
    hop: float = 3.0
    patience: float = 90.0
    calm: float = 6.0


def specs(stage: Stage, prefix: str, effort: Effort) -> dict[str, Spec]:
    """The load processes of one fault. Names and topics begin with `prefix`, so that no other fault's are mixed up with them."""
    parent, third = stage.parent, effort.rate / 3
    plain = Spec(stage.ports, stage.namesrv)
    mutual = [f"{parent}/{prefix}/dd/{group}" for group in range(effort.groups)]
    devices: list[tuple[str, int, senders.Manner]] = []
    for number in range(effort.senders):
        up, qos = number % 2 == 0, 1 + number // 2 % 2
        topics = [f"{parent}/{prefix}/up/{number}"] if up else mutual
        rate = third / ((effort.senders + 1) // 2 if up else effort.senders // 2)
        devices.append(
            (f"{prefix}-{'up' if up else 'dd'}{number}q{qos}", number, senders.Manner(topics, qos, rate, effort.window, effort.size))
        )
    audience: list[tuple[str, bool, int, receivers.Manner]] = []
    kinds = [("p1", False, 1, 0.0), ("p1h", False, 1, effort.hop), ("p2", False, 2, 0.0), ("p2h", False, 2, effort.hop)]
    kinds += [("c1", True, 1, 0.0), ("c2h", True, 2, effort.hop)]
    for group in range(effort.groups):
        exact = [f"{parent}/{prefix}/dd/{group}", f"{parent}/{prefix}/down/{group}"]
        filters = exact if group % 2 else [f"{parent}/{prefix}/+/{group}"]
        for kind, clean, qos, hop in kinds:
            manner = receivers.Manner([(name, qos) for name in filters], hop)
            audience.append((f"{prefix}-{kind}-{group}", clean, len(audience), manner))
    talk = server_app.Manner(parent, [f"/{prefix}/down/{group}" for group in range(effort.groups)], third / 2, effort.size)
    return {
        "receivers": plain._replace(receivers=audience),
        "senders": plain._replace(senders=devices),
        "server-app": plain._replace(talkers=[(f"{prefix}-app{number}", talk) for number in range(2)]),
    }


class Scene:
    """say: a line for who watches."""

    def __init__(self, stage: Stage, folder: Path, prefix: str, effort: Effort, say: Callable[[str], None]) -> None:
        self.history = History()
        self._stage = stage
        self._folder = folder
        self._prefix = prefix
        self._effort = effort
        self._say = say
        self._began = time.time()

    def play(self, plan: Plan, victim: int) -> Account:
        """Load, fault, load, quiet, everything due, account. victim: number of the gateway. Raises LoadError, AssertionError, ServiceError
        when the run itself does not work."""
        effort = self._effort
        self._stage.complaints()  # what came before is not this fault's
        crew = Crew(self._folder, specs(self._stage, self._prefix, effort))
        try:
            crew.hear("ready", READY_SECONDS)
            self._say(f"{plan.name}: everybody is connected; {effort.seconds:g} s of load")
            crew.tell("go")
            time.sleep(effort.seconds)
            self._say(f"{plan.name}: now")
            fault = strike(plan, self._stage, victim)
            self.history.add(fault)
            self._say(f"{plan.name}: over after {fault.end - fault.begin:.1f} s; {effort.seconds:g} s of load")
            time.sleep(effort.seconds)
            crew.tell("quiet")
            crew.hear("quiet", effort.patience)
            quiet = time.time()
            self._until_settled(crew, plan)
            crew.tell("over")
            crew.join(READY_SECONDS)
            crew.read(self.history)
        finally:
            crew.kill()
        self._read_backend()
        account = settle(self.history)
        caught_up = max(0.0, last_arrival(self.history) - quiet)
        account.rows.append(Row("caught_up", "until everything due had arrived, after the load's end", caught_up, None, [], "s"))
        complaints = [Offender("", why=line) for line in self._stage.complaints()]
        account.rows.append(Row("complaints", "faults of its own in the gateways' logs", len(complaints), 0, complaints))
        return account

    def _until_settled(self, crew: Crew, plan: Plan) -> None:
        """Until everything due has arrived, or `patience`; then the calm in which repeats may come."""
        began = time.monotonic()
        self._read_backend()
        while True:
            crew.read(self.history)
            missing = sum(not due.clean for due in self.history.missing())
            waited = time.monotonic() - began
            if not missing or waited > self._effort.patience:
                break
            time.sleep(POLL_SECONDS)
        self._say(f"{plan.name}: {f'{missing} deliveries are missing' if missing else 'everything due is there'} after {waited:.1f} s")
        time.sleep(self._effort.calm)
        crew.read(self.history)

    def _read_backend(self) -> None:
        def wanted(id: str) -> bool:
            return id.startswith(self._prefix + "-")

        async def read() -> list[Stored]:
            return await backend.read(self._stage.namesrv, self._stage.parent, self._began - 1, wanted)

        for copy in trio.run(read):
            self.history.add(copy)
