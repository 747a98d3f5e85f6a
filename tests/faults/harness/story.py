"""What is known of a message, in the order of time, for who has to find out at night what became of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from tests.faults.harness.account import Account, Offender, Row
from tests.faults.harness.history import History

SHOWN = 3  # offenders of a broken row whose story is told
LISTED = 20  # offenders of a broken row that are named
BEFORE_SECONDS, AFTER_SECONDS = 1.0, 6.0  # around a message: which of a device's connections are told


def clock(at: float, fault_begin: float) -> str:
    """The time as gateway logs have it (UTC), and how far from the fault."""
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S.%f}"[:-3] + f"Z ({at - fault_begin:+8.3f} s)"


def story(history: History, offender: Offender, begin: float) -> list[str]:
    """Lines about one offender."""
    name = " ".join(word for word in (offender.id, offender.device and f"for {offender.device}") if word)
    lines = [f"{name}{': ' if name and offender.why else ''}{offender.why}"]
    found = list(_message(history, offender)) if offender.id else []
    if offender.device:
        moments = [at for at, _ in found] or [begin]
        found += _device(history, offender.device, min(moments) - BEFORE_SECONDS, max(moments) + AFTER_SECONDS)
    lines += [f"    {clock(at, begin)} {text}" for at, text in sorted(found)]
    if offender.id:
        others = sum(of == offender.id and device != offender.device for device, of in history.delivered)
        lines.append(f"    delivered to {others} {'other ' if offender.device else ''}devices")
        if offender.id not in history.stored:
            lines.append("    never seen in the backend")
        if offender.id not in history.acknowledged:
            lines.append("    never acknowledged to its sender")
    return lines


def _message(history: History, offender: Offender) -> Iterator[tuple[float, str]]:
    id = offender.id
    for sent in history.published.get(id, ()):
        how = f" packet id {sent.packet_id}{' DUP' if sent.dup else ''} to node {sent.node}" if sent.packet_id else " (server app)"
        yield sent.at, f"published by {sent.by} to {sent.topic} QoS {sent.qos}{how}"
        if sent.packet_id:
            yield from _ends(history, sent.by, sent.at, history.acknowledged.get(id, sent.at + AFTER_SECONDS))
    if id in history.acknowledged:
        yield history.acknowledged[id], "acknowledged"
    for copy in history.stored.get(id, ()):
        yield copy.at, f"stored at {copy.queue}/{copy.offset} UNIQ_KEY {copy.key}"
    for one in history.delivered.get((offender.device, id), ()):
        marks = f"{' DUP' if one.dup else ''}{' (repeat of an unreleased packet id)' if one.again else ''}"
        yield one.at, f"delivered to {one.device} by node {one.node} QoS {one.qos} packet id {one.packet_id}{marks}"


def _ends(history: History, device: str, since: float, until: float) -> Iterator[tuple[float, str]]:
    """Connections that ended while the message was on its way."""
    for end in history.ends.get(device, ()):
        if since <= end.at <= until:
            yield end.at, f"{device} disconnected from node {end.node}: {end.reason}"


def _device(history: History, device: str, since: float, until: float) -> Iterator[tuple[float, str]]:
    """Its subscriptions up to the message, and its connections around it."""
    before = [one for one in history.subscriptions if one.device == device and one.at <= until]
    last = max((one.at for one in before if one.at <= since), default=0.0)
    for one in before:
        if one.at >= last:
            yield one.at, f"{device} subscribed {one.filter} QoS {one.qos}{' clean' if one.clean else ''}"
    for connection in history.connections(device):
        if connection.end >= since and connection.begin <= until:
            yield connection.begin, f"{device} connected to node {connection.node}"
            if connection.end <= until:
                yield connection.end, f"{device} disconnected from node {connection.node}: {connection.reason or 'replaced'}"


def stories(history: History, account: Account) -> list[str]:
    """Of every broken row: the names of the first offenders, and the stories of the very first."""
    lines: list[str] = []
    for row in account.broken:
        lines += [f"BROKEN {account.fault.name}: {row.title}: {shown(row)}", *_named(row)]
        for offender in row.offenders[:SHOWN]:
            lines += story(history, offender, account.fault.begin)
        lines.append("")
    return lines


def _named(row: Row) -> list[str]:
    names = [f"{one.id}>{one.device}" if one.id and one.device else one.id or one.device for one in row.offenders]
    names = [name for name in names if name]
    more = f" ... {len(names) - LISTED} more" if len(names) > LISTED else ""
    return [f"  {' '.join(names[:LISTED])}{more}"] if names else []


def shown(row: Row) -> str:
    """`7 (at most 0)`."""
    number = f"{row.value:.1f}" if row.unit else f"{row.value:.0f}"
    limit = "" if row.bound is None else f" (at most {row.bound:.1f})" if row.unit else f" (at most {row.bound:.0f})"
    return f"{number}{' ' + row.unit if row.unit else ''}{limit}"
