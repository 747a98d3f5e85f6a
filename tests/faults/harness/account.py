"""The account of one fault: events in, rows with bounds out (contract sections 5 and 6, design sections 4 and 5). Pure.

A row is broken when its value passes its bound; its offenders say which messages and devices to look at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from tests.faults.harness.events import Delivered, Fault
from tests.faults.harness.history import FOREVER, History

# Offsets are committed 2 s after a message is resolved, and a broker writes committed ones down every 5 s; 1 s for the way.
RESOLVED_SECONDS = 8.0
AFTER_SECONDS = 15.0  # a dead or frozen node's queues go on within so long
RETURN_SECONDS = 8.0  # until a node that was away has joined again and queues have moved to it
HOP_SECONDS = 2.0  # an acknowledgement may still be on its way when its own connection ends


class Offender(NamedTuple):
    """What broke a bound. id or device may be "", when it is about all messages or no device. why: in words, what the row can't tell."""

    id: str
    device: str = ""
    why: str = ""


@dataclass
class Row:
    """value: what was counted, or seconds. bound: the most that it may be; None: told, not judged. offenders: the first ones first."""

    name: str
    title: str
    value: float
    bound: float | None = None
    offenders: list[Offender] = field(default_factory=list)
    unit: str = ""

    @property
    def broken(self) -> bool:
        return self.bound is not None and self.value > self.bound


@dataclass
class Account:
    """rows in the order of the table."""

    fault: Fault
    rows: list[Row]

    @property
    def broken(self) -> list[Row]:
        return [row for row in self.rows if row.broken]

    def row(self, name: str) -> Row:
        """By name; raises KeyError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)


def settle(history: History) -> Account:
    """The account of a history that has its fault in it."""
    fault = history.fault
    assert fault is not None, "a history without a fault"
    rows = [
        *_volume(history),
        lost(history),
        *_undelivered(history),
        _twice(history),
        _identities(history),
        _order(history),
        *_repeats_up(history, fault),
        *_repeats_down(history, fault),
        _sessions(history),
        _downlink_goes_on(history, fault),
        _uplink_goes_on(history, fault),
        Row("reconnects", "connections that devices did not end themselves", sum(_lost_connections(history).values())),
    ]
    return Account(fault, rows)


def _counted(name: str, title: str, offenders: list[Offender], bound: float | None = 0) -> Row:
    return Row(name, title, len(offenders), bound, offenders)


def _volume(history: History) -> list[Row]:
    """How much went through: a row of zeros means a harness that proves nothing, so these have a least value, as "missing" ones."""
    acknowledged = len(history.acknowledged)
    delivered = sum(len(found) for found in history.delivered.values())
    due = sum(1 for _ in history.due())
    idle = [
        name
        for name, n in (("acknowledged", acknowledged), ("stored", len(history.stored)), ("delivered", delivered), ("due", due))
        if not n
    ]
    return [
        Row("published", "messages published", len(history.published)),
        Row("acknowledged", "acknowledged to their senders", acknowledged),
        Row("stored", "in the backend", len(history.stored)),
        Row("due", "deliveries due", due),
        Row("delivered", "deliveries, repeats included", delivered),
        _counted("idle", "kinds of traffic of which there was none", [Offender("", why=f"nothing was {name}") for name in idle]),
    ]


def lost(history: History) -> Row:
    """Acknowledged means stored (contract section 5)."""
    lost = [Offender(id) for id in history.acknowledged if id not in history.stored]
    return _counted("lost", "acknowledged, and not in the backend", sorted(lost))


def _undelivered(history: History) -> list[Row]:
    """A persistent session gets everything that was stored after its SUBACK; a clean one while it is connected (section 5, last table)."""
    missing: dict[str, list[Offender]] = {"1": [], "2": [], "clean": []}
    for due in history.missing():
        missing["clean" if due.clean else str(due.qos)].append(Offender(due.id, due.device))
    return [
        _counted("undelivered_1", "due to a persistent session at QoS 1, never delivered", sorted(missing["1"])),
        _counted("undelivered_2", "due to a persistent session at QoS 2, never delivered", sorted(missing["2"])),
        _counted("undelivered_clean", "due to a clean session that stayed connected, never delivered", sorted(missing["clean"])),
    ]


def _twice(history: History) -> Row:
    """QoS 2 is delivered to a session once."""
    offenders: list[Offender] = []
    for (device, id), found in history.delivered.items():
        times: dict[int, int] = {}
        for one in found:
            if one.qos == 2 and not one.again:
                times[one.session] = times.get(one.session, 0) + 1
        offenders += [Offender(id, device, f"delivered {n} times") for n in times.values() if n > 1]
    return _counted("twice", "QoS 2 delivered to a session more than once", sorted(offenders))


def _qos(history: History, id: str) -> int:
    sent = history.published.get(id)
    return sent[0].qos if sent else 0


def _of_device(history: History, id: str) -> bool:
    """Published over MQTT (and not by a server app)."""
    sent = history.published.get(id)
    return sent is not None and sent[0].packet_id > 0


def _identities(history: History) -> Row:
    """However often a QoS 2 PUBLISH lies in the backend, it has one UNIQ_KEY."""
    offenders = []
    for id, copies in history.stored.items():
        keys = {copy.key for copy in copies}
        if len(keys) > 1 and _qos(history, id) == 2:
            offenders.append(Offender(id, why=f"UNIQ_KEYs {', '.join(sorted(keys))}"))
    return _counted("identities", "QoS 2 PUBLISHes with more than one UNIQ_KEY", sorted(offenders))


def _order(history: History) -> Row:
    """What a device publishes keeps its order in the backend: one queue, in order after repeats are dropped."""
    first: dict[str, list[tuple[float, str, int, str]]] = {}  # by sender: (first sent, queue, offset, id)
    for id, copies in history.stored.items():
        if _of_device(history, id):
            sent = min(history.published[id])
            copy = min(copies, key=lambda copy: (copy.at, copy.offset))
            first.setdefault(sent.by, []).append((sent.at, copy.queue, copy.offset, id))
    offenders = []
    for by, places in first.items():
        places.sort()
        for before, after in pairwise(places):
            if before[1] != after[1] or before[2] > after[2]:
                why = f"{before[3]} was published before it and lies at {before[1]}/{before[2]}, this one at {after[1]}/{after[2]}"
                offenders.append(Offender(after[3], by, why))
    return _counted("order", "out of order, or in another queue than the device's other messages", offenders)


def _repeats_up(history: History, fault: Fault) -> list[Row]:
    """More than one copy in the backend. QoS 2: told (they have one UNIQ_KEY). QoS 1: only what was on its way at the fault."""
    at_risk = {id for id in history.published if _of_device(history, id) and _qos(history, id) == 1 and _risked_up(history, id, fault)}
    repeats: list[Offender] = []
    strangers: list[Offender] = []
    same = 0
    for id, copies in sorted(history.stored.items()):
        if len(copies) < 2 or not _of_device(history, id):
            continue
        if _qos(history, id) == 2:
            same += len(copies) - 1
            continue
        repeats += [Offender(id)] * (len(copies) - 1)
        if id not in at_risk:
            strangers.append(Offender(id, why="it was acknowledged long before the fault, or published long after it"))
    return [
        Row("repeats_up_2", "QoS 2: further copies in the backend with the same UNIQ_KEY", same),
        Row("repeats_up_1", "QoS 1: further copies in the backend (bound: on their way at the fault)", len(repeats), len(at_risk), repeats),
        _counted("strange_up", "QoS 1: further copies of what was not on its way at the fault", strangers),
    ]


def _risked_up(history: History, id: str, fault: Fault) -> bool:
    """On its way at some moment of the fault, or acknowledged in the last seconds before it; or on its way when its connection ended."""
    sent, acknowledged = min(history.published[id]), history.acknowledged.get(id, FOREVER)
    around = sent.at <= fault.end and acknowledged >= fault.begin - RESOLVED_SECONDS
    return around or _connection_ended(history, sent.by, sent.at, acknowledged)


def _connection_ended(history: History, device: str, since: float, until: float) -> bool:
    """A connection of the device ended between the two moments: what was not acknowledged then is sent again [MQTT-4.4.0-1]."""
    return any(since <= end.at <= until for end in history.ends.get(device, ()))


def _repeats_down(history: History, fault: Fault) -> list[Row]:
    """QoS 1 delivered to a session more often than it lies in the backend. Only what was unresolved at the fault, or resolved in the last
    seconds before it, may be; what was on its way when the device's own connection ended; and the same when a node comes back and takes
    queues over."""
    at_fault = at_return = 0
    repeats: list[Offender] = []
    moved: list[Offender] = []
    strangers: list[Offender] = []
    for (device, id), found in sorted(history.delivered.items()):
        stored = min((copy.at for copy in history.stored.get(id, ())), default=FOREVER)
        copies = max(1, len(history.stored.get(id, ())))
        for mine in _by_session(found):
            earlier = mine[:-1] or mine  # the last one was followed by nothing
            risked = sum(_risked_at_fault(history, one, stored, fault) for one in earlier)
            movable = sum(_risked_at_return(one, stored, fault) for one in earlier)
            at_fault, at_return = at_fault + risked, at_return + movable
            extra = max(0, len(mine) - copies)
            repeats += [Offender(id, device)] * min(extra, risked)
            moved += [Offender(id, device)] * min(max(0, extra - risked), movable)
            if extra > risked + movable:
                strangers.append(Offender(id, device, "it had acknowledged it long before the fault, or it was stored after the fault"))
    return [
        Row("repeats_down_1", "QoS 1: delivered again (bound: unresolved, or resolved in the last 8 s)", len(repeats), at_fault, repeats),
        Row("repeats_return_1", "QoS 1: delivered again as the node came back (bound: the same, then)", len(moved), at_return, moved),
        _counted("strange_down", "QoS 1: delivered again though resolved long before, or stored after the fault", strangers),
    ]


def _by_session(found: list[Delivered]) -> list[list[Delivered]]:
    """The deliveries at QoS 1, in the order of time, of each session."""
    sessions: dict[int, list[Delivered]] = {}
    for one in sorted(found):
        if one.qos == 1:
            sessions.setdefault(one.session, []).append(one)
    return list(sessions.values())


def _risked_at_fault(history: History, one: Delivered, stored: float, fault: Fault) -> bool:
    """This delivery may be followed by another one."""
    at_fault = stored <= fault.struck and one.at >= fault.begin - RESOLVED_SECONDS
    return at_fault or _connection_ended(history, one.device, one.at, one.at + HOP_SECONDS)


def _risked_at_return(one: Delivered, stored: float, fault: Fault) -> bool:
    """The same for the moment at which the node that was away takes queues back."""
    returns = fault.part == "gateway" and not fault.alone
    return returns and fault.end - RESOLVED_SECONDS <= one.at and stored <= fault.end + RETURN_SECONDS


def _sessions(history: History) -> Row:
    """A persistent session that was there once is there at each later CONNECT."""
    offenders = []
    for device, connects in sorted(history.connects.items()):
        ordered = sorted(connects)
        lost = [later for later in ordered[1:] if not later.clean and not later.present]
        offenders += [Offender("", device, f"no session present at {one.at:.3f} on node {one.node}") for one in lost]
    return _counted("sessions", "persistent sessions that were gone", offenders)


def _downlink_goes_on(history: History, fault: Fault) -> Row:
    """Of each queue the first message stored after the fault that reached any device: the slowest queue's, in seconds after the fault.
    Judged for gateways: after the fault when other nodes are there, after its end when there is none."""
    when: dict[str, float] = {}
    arrived: dict[str, float] = {}
    for (_, id), found in history.delivered.items():
        arrived[id] = min(arrived.get(id, FOREVER), *(one.at for one in found))
    wanted = {due.id for due in history.due()}
    sample: dict[str, str] = {}
    for id in wanted:
        for copy in history.stored[id]:
            if copy.at >= fault.struck:
                when[copy.queue] = min(when.get(copy.queue, FOREVER), arrived.get(id, FOREVER))
                sample.setdefault(copy.queue, id)
    slowest = max(when.values(), default=fault.struck)
    bound = None
    if fault.part == "gateway":
        bound = AFTER_SECONDS + (fault.end - fault.begin if fault.alone else 0)
    late = sorted(queue for queue, at in when.items() if bound is not None and at - fault.begin > bound)
    offenders = [Offender(sample[queue], why=f"queue {queue} went on {when[queue] - fault.begin:.1f} s after the fault") for queue in late]
    title = "downlink of all queues goes on after" + (" (bound: counted from the restart)" if fault.alone and bound else "")
    return Row("goes_on", title, max(0.0, slowest - fault.begin), bound, offenders, "s")


def _uplink_goes_on(history: History, fault: Fault) -> Row:
    """Until each device that publishes after the fault has an acknowledgement of something that it published after it."""
    first: dict[str, float] = {}
    for id, sent in history.published.items():
        if _of_device(history, id) and min(sent).at >= fault.struck:
            by = sent[0].by
            first[by] = min(first.get(by, FOREVER), history.acknowledged.get(id, FOREVER))
    return Row("uplink", "uplink of all devices goes on after", max(first.values(), default=fault.struck) - fault.begin, None, [], "s")


def _lost_connections(history: History) -> dict[str, int]:
    return {device: sum(end.reason in ("lost", "silent") for end in ends) for device, ends in history.ends.items()}
