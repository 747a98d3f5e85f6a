"""What is known of a message, in the order of time, for who has to find out at night what became of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from tests.faults.harness.account import Account, Offender, Row
from tests.faults.harness.history import FOREVER, History

SHOWN = 3  # offenders of a broken row whose story is told
LISTED = 20  # offenders of a broken row that are named


def clock(at: float, fault_begin: float) -> str:
    """The time as gateway logs have it (UTC), and how far from the fault."""
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S.%f}"[:-3] + f"Z ({at - fault_begin:+8.3f} s)"


def story(history: History, offender: Offender, begin: float) -> list[str]:
    """Lines about one offender."""
    name = " ".join(word for word in (offender.id, offender.device and f"for {offender.device}") if word)
    lines = [f"{name}{': ' if name and offender.why else ''}{offender.why}"]
    found = [*_message(history, offender.id)] if offender.id else []
    if offender.device:
        found += _device(history, offender, [at for at, _ in found])
    lines += [f"    {clock(at, begin)} {text}" for at, text in sorted(found)]
    if offender.id and offender.id not in history.stored:
        lines.append("    never seen in the backend")
    if offender.id and offender.id not in history.acknowledged:
        lines.append("    never acknowledged to its sender")
    return lines


def _message(history: History, id: str) -> Iterator[tuple[float, str]]:
    for sent in history.published.get(id, ()):
        how = f" packet id {sent.packet_id}{' DUP' if sent.dup else ''} to node {sent.node}" if sent.packet_id else " (server app)"
        yield sent.at, f"published by {sent.by} to {sent.topic} QoS {sent.qos}{how}"
    if id in history.acknowledged:
        yield history.acknowledged[id], "acknowledged"
    for copy in history.stored.get(id, ()):
        yield copy.at, f"stored at {copy.queue}/{copy.offset} UNIQ_KEY {copy.key}"
    for (device, of), found in history.delivered.items():
        if of == id:
            for one in found:
                marks = f"{' DUP' if one.dup else ''}{' (repeat of an unreleased packet id)' if one.again else ''}"
                yield one.at, f"delivered to {device} by node {one.node} QoS {one.qos} packet id {one.packet_id}{marks}"


def _device(history: History, offender: Offender, moments: list[float]) -> Iterator[tuple[float, str]]:
    """Its subscriptions, and its connections around the message."""
    device = offender.device
    for one in history.subscriptions:
        if one.device == device:
            yield one.at, f"{device} subscribed {one.filter} QoS {one.qos}{' clean' if one.clean else ''}"
    first, last = min(moments, default=0.0) - 1, max(moments, default=FOREVER) + 30
    for connection in history.connections(device):
        if connection.end >= first and connection.begin <= last:
            yield connection.begin, f"{device} connected to node {connection.node}"
            if connection.end != FOREVER:
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
