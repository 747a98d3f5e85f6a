"""Load: devices that publish at QoS 1, each with a fixed number in flight, or all together at a fixed rate."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from tests.bench import wire
from tests.bench.crew import Figures, Window
from tests.bench.links import Address, Link, Refused, Watch, close_all, open_links, receive, send_all

DRAIN = 15.0  # seconds for the last acknowledgements


def acknowledged(link: Link, data: bytes, acks: bytes) -> int:
    """Check a piece of the PUBACK stream against the one that is due; how many PUBACKs it completes."""
    pos = link.pos
    end = pos + len(data)
    if data != acks[pos:end]:
        raise Refused(f"not the PUBACKs in order: {data[:40].hex(' ')} instead of {acks[pos:end][:40].hex(' ')}")
    link.pos = end % (wire.RING * 4)
    return end // 4 - pos // 4


def flood(
    ready: Callable[[], Window],
    *,
    address: Address,
    login: wire.Login,
    devices: Sequence[str],
    topic: str,
    payload: int,
    window: int,
    spread: int,
) -> Figures:
    """Each device keeps `window` PUBLISHes in flight. Figures: count (acknowledged in the window of time), missing (never acknowledged)."""
    links = open_links(address, (login.connect(device) for device in devices), spread)
    flow = wire.Outflow([topic], bytes(payload), window)
    watch = Watch(links)
    when = ready()
    try:
        for link in links:
            send_all(link, flow.packets[: window * flow.size])
        counts = _flood(watch, flow, window, when)
        return {"count": counts[1] - counts[0], "missing": _drain(watch, flow, len(links) * window)}
    finally:
        watch.close()
        close_all(links)


def _flood(watch: Watch, flow: wire.Outflow, window: int, when: Window) -> tuple[int, int]:
    """Acknowledgements so far at `when.begin` and at `when.end`."""
    acks, packets, size, lap = flow.acks, flow.packets, flow.size, wire.RING * 4
    monotonic, ring = time.monotonic, wire.RING
    total = at_begin = 0
    while (now := monotonic()) < when.end:
        if not at_begin and now >= when.begin:
            at_begin = total or 1
        for link in watch.busy():
            data = link.recv(65536)
            pos = link.pos
            end = pos + len(data)
            if data != acks[pos:end] or not data:
                acknowledged(link, data, acks)
                raise Refused("the server closed a connection under load")
            done = end // 4 - pos // 4
            first = (pos // 4 + window) % ring * size
            link.pos = end % lap
            total += done
            send_all(link, packets[first : first + done * size])
    return at_begin, total


def _drain(watch: Watch, flow: wire.Outflow, expected: int) -> int:
    deadline = time.monotonic() + DRAIN
    while expected > 0 and time.monotonic() < deadline:
        for link in watch.ready(deadline):
            expected -= acknowledged(link, receive(link), flow.acks)
    return expected


def paced(
    ready: Callable[[], Window],
    *,
    address: Address,
    login: wire.Login,
    devices: Sequence[str],
    topics: Sequence[str],
    payload: int,
    rate: float,
    total: int,
    spread: int,
) -> Figures:
    """All devices together publish `total` messages, `rate` a second, evenly spread, whatever the answers: message n by device n mod their
    number to topic n mod theirs, stamped with the time at which it was due. Figures, for the messages due in the window of time: count,
    puback (ns, due to acknowledged), late (ns, due to sent: the generator's own error); and missing (of all)."""
    links = open_links(address, (login.connect(device) for device in devices), spread)
    due: dict[Link, deque[int]] = {link: deque() for link in links}
    acks = wire.puback_ring(wire.RING)
    filler = bytes(payload - wire.STAMP.size)
    watch = Watch(links)
    when = ready()
    puback: list[int] = []
    late: list[int] = []
    begin, number, step = int(when.begin * 1e9), 0, 1 / rate
    try:
        while number < total:
            moment = when.start + number * step
            for link in watch.ready(moment):
                _note_acks(link, due[link], acks, begin, puback)
            if (now := time.monotonic_ns()) < int(moment * 1e9):
                continue
            link, stamp = links[number % len(links)], int(moment * 1e9)
            body = wire.STAMP.pack(stamp, number) + filler
            send_all(link, wire.publish(topics[number % len(topics)], body, 1, number // len(links) % wire.RING + 1))
            due[link].append(stamp)
            if stamp >= begin:
                late.append(now - stamp)
            number += 1
        deadline = time.monotonic() + DRAIN
        while any(due.values()) and time.monotonic() < deadline:
            for link in watch.ready(deadline):
                _note_acks(link, due[link], acks, begin, puback)
        return {"count": len(late), "puback": puback, "late": late, "missing": sum(len(times) for times in due.values())}
    finally:
        watch.close()
        close_all(links)


def _note_acks(link: Link, times: deque[int], acks: bytes, begin: int, into: list[int]) -> None:
    data = receive(link)
    now = time.monotonic_ns()
    for _ in range(acknowledged(link, data, acks)):
        stamp = times.popleft()
        if stamp >= begin:
            into.append(now - stamp)
