"""Load: one publisher, very many subscribers of its one topic; the publisher waits for its deliveries, so that no broker has to drop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.bench import wire
from tests.bench.crew import Figures, Window
from tests.bench.links import Address, Link, Watch, close_all, open_links, receive, send_all, subscribe_all

STALL = 5.0  # seconds without a delivery after which what is missing is taken for lost
PATIENCE = 60.0  # seconds for all of what is under way at the end
SENT, OVER = 0, 1  # places in the shared counters: messages published, "no more will come"; the deliveries of process n are at 2 + n


class _Audience:
    """The subscribers of one process, and the count of what they received."""

    def __init__(self, links: Sequence[Link], flow: wire.Inflow, tell: Callable[[int], None]) -> None:
        self.links = links
        self.flow = flow
        self.tell = tell
        self.received = 0
        self.repeats = 0
        self.at_begin = -1
        self.at_end = -1

    def take(self, link: Link) -> None:
        """Read, count and acknowledge what has arrived at one subscriber."""
        data, flow = receive(link), self.flow
        if link.rest:
            data = link.rest + data
        count, cut = divmod(len(data), flow.size)
        link.rest = data[-cut:] if cut else b""
        if count:
            repeats = flow.check(data, count)
            self.repeats += repeats
            self.received += count - repeats
            if flow.qos:
                send_all(link, flow.answer(data, count))

    def clock(self, now: float, when: Window) -> None:
        """Publish the count, and note it at the edges of the window."""
        self.tell(self.received)
        if self.at_begin < 0 and now >= when.begin:
            self.at_begin = self.received
        if self.at_end < 0 and now >= when.end:
            self.at_end = self.received


def fanout(
    ready: Callable[[], Window],
    *,
    address: Address,
    login: wire.Login,
    publisher: str,
    subscribers: Sequence[str],
    everyone: int,
    topic: str,
    payload: int,
    qos: int,
    batch: int,
    ahead: int,
    counts: Any,
    place: int,
    spread: int,
) -> Figures:
    """One process of the audience; the one with a `publisher` also publishes: `batch` messages at once, at most `ahead` published and not
    delivered to all of `everyone`. counts: the crew's shared counters. place: this process's number.
    Figures: count (deliveries in the window), published, received, missing, repeats (marked DUP)."""
    links = open_links(address, (login.connect(name) for name in subscribers), spread)
    subscribe_all(links, [topic] * len(links), qos)
    source = open_links(address, [login.connect(publisher)], spread)[0] if publisher else None
    flow = wire.Inflow(topic, payload, qos)

    def tell(count: int) -> None:
        counts[2 + place] = count

    audience = _Audience(links, flow, tell)
    watch = Watch([*links, source] if source else links)
    body = bytes(payload)
    parcels = [b"".join(wire.publish(topic, body, qos, lap * batch + n + 1) for n in range(batch)) for lap in range(512 // batch)]
    when = ready()
    try:
        _perform(watch, audience, source, parcels, batch, ahead * everyone, everyone, counts, when)
        expected = counts[SENT] * len(links)
        at_end = audience.at_end if audience.at_end >= 0 else audience.received
        missing = expected - audience.received
        return {"count": at_end - max(0, audience.at_begin), "missing": missing, "repeats": audience.repeats, "published": counts[SENT]}
    finally:
        watch.close()
        close_all([*links, source] if source else links)


def _perform(
    watch: Watch,
    audience: _Audience,
    source: Link | None,
    parcels: Sequence[bytes],
    batch: int,
    ahead: int,
    everyone: int,
    counts: Any,
    when: Window,
) -> None:
    """Publish and receive until everything that was published has arrived, or nothing comes any more."""
    lap, last, seen = 0, when.end, -1
    while (now := time.monotonic()) < when.end + PATIENCE:
        audience.clock(now, when)
        if source is not None:
            if now >= when.end:
                counts[OVER] = 1
            while now < when.end and counts[SENT] * everyone - sum(counts[2:]) <= ahead - batch * everyone:
                send_all(source, parcels[lap % len(parcels)])
                counts[SENT] += batch
                lap += 1
        if audience.received != seen:
            seen, last = audience.received, max(now, when.end)
        if counts[OVER] and (audience.received >= counts[SENT] * len(audience.links) or now - last > STALL):
            return
        for link in watch.ready(now + 0.0003 if source is not None else now + 0.01):
            if link is source:
                receive(link)  # PUBACKs; that the messages arrive says more
            else:
                audience.take(link)
