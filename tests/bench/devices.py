"""Load: devices that talk to devices, each receiver on a topic of its own; and receivers alone, for what a server app sends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tests.bench import wire
from tests.bench.crew import Figures, Window
from tests.bench.links import Address, Link, Refused, Watch, close_all, open_links, receive, send_all, subscribe_all
from tests.bench.uplink import acknowledged

STALL = 5.0  # seconds without a delivery after which what is missing is taken for lost


class _Pairs:
    """Publishers and the subscribers of their topics, in one process. Subscriber n belongs to publisher n // share."""

    def __init__(self, publishers: Sequence[Link], subscribers: Sequence[Link], topics: Sequence[str], payload: int, window: int) -> None:
        self.publishers = publishers
        self.share = len(subscribers) // len(publishers)
        self.window = window
        shares = [topics[n * self.share : (n + 1) * self.share] for n in range(len(publishers))]
        self.outflows = [wire.Outflow(share, bytes(payload), window) for share in shares]
        self.inflows = [wire.Inflow(topic, payload, 1) for topic in topics]
        self.next = [0] * len(publishers)  # place in the ring
        self.stored = {link.fd: n for n, link in enumerate(publishers)}
        self.listener = {link.fd: n for n, link in enumerate(subscribers)}
        self.unstored = [0] * len(publishers)
        self.undelivered = [0] * len(publishers)
        self.due = set(range(len(publishers)))  # those that may have room again
        self.received = 0
        self.repeats = 0

    def hear(self, link: Link) -> None:
        """Take what one socket has: PUBACKs of a publisher, or deliveries to a subscriber, which are acknowledged."""
        data = receive(link)
        number = self.stored.get(link.fd)
        if number is not None:
            self.unstored[number] -= acknowledged(link, data, self.outflows[number].acks)
            self.due.add(number)
            return
        listener = self.listener[link.fd]
        flow = self.inflows[listener]
        if link.rest:
            data = link.rest + data
        count, cut = divmod(len(data), flow.size)
        link.rest = data[-cut:] if cut else b""
        if count:
            repeats = flow.check(data, count)
            send_all(link, flow.answer(data, count))
            self.repeats += repeats
            self.received += count - repeats
            self.undelivered[listener // self.share] -= count - repeats
            self.due.add(listener // self.share)

    def fill(self) -> None:
        """Let each publisher have `window` messages on their way: neither unacknowledged nor undelivered ones exceed it."""
        window = self.window
        for number in self.due:
            room = window - max(self.unstored[number], self.undelivered[number])
            if room > 0:
                flow, place = self.outflows[number], self.next[number]
                send_all(self.publishers[number], flow.packets[place * flow.size : (place + room) * flow.size])
                self.next[number] = (place + room) % wire.RING
                self.unstored[number] += room
                self.undelivered[number] += room
        self.due.clear()


def flood(
    ready: Callable[[], Window],
    *,
    address: Address,
    login: wire.Login,
    publishers: Sequence[str],
    subscribers: Sequence[str],
    topics: Sequence[str],
    payload: int,
    window: int,
    spread: int,
) -> Figures:
    """Each publisher keeps `window` messages published and undelivered over its share of the topics; each topic has one subscriber.
    Figures: count (deliveries in the window of time), missing, repeats (marked DUP)."""
    listeners = open_links(address, (login.connect(name) for name in subscribers), spread)
    subscribe_all(listeners, topics, 1)
    talkers = open_links(address, (login.connect(name) for name in publishers), spread)
    pairs = _Pairs(talkers, listeners, topics, payload, window)
    watch = Watch([*talkers, *listeners])
    when = ready()
    at_begin, last, seen = -1, time.monotonic(), 0
    try:
        while (now := time.monotonic()) < when.end:
            if at_begin < 0 and now >= when.begin:
                at_begin = pairs.received
            pairs.fill()
            for link in watch.busy():
                pairs.hear(link)
        count = pairs.received - max(0, at_begin)
        while any(pairs.undelivered) and time.monotonic() - last < STALL:
            for link in watch.ready(time.monotonic() + 0.1):
                pairs.hear(link)
            if pairs.received != seen:
                seen, last = pairs.received, time.monotonic()
        return {"count": count, "missing": sum(pairs.undelivered), "repeats": pairs.repeats}
    finally:
        watch.close()
        close_all([*talkers, *listeners])


def listen(
    ready: Callable[[], Window],
    *,
    address: Address,
    login: wire.Login,
    devices: Sequence[str],
    topics: Sequence[str],
    payload: int,
    expected: int,
    spread: int,
) -> Figures:
    """Subscribe each device to its topic and receive stamped messages (QoS 1) until `expected` arrived, or nothing comes any more.
    Figures, for the messages due in the window: delay (ns, due to received); and of all: missing, repeats."""
    links = open_links(address, (login.connect(name) for name in devices), spread)
    subscribe_all(links, topics, 1)
    flows = [wire.Inflow(topic, payload, 1) for topic in topics]
    watch = Watch(links)
    when = ready()
    begin, arrived = int(when.begin * 1e9), 0
    delay: list[int] = []
    numbers: set[int] = set()
    last = time.monotonic()
    try:
        while len(numbers) < expected and (time.monotonic() < when.end or time.monotonic() - last < STALL):
            for link in watch.ready(time.monotonic() + 0.1):
                data = link.rest + receive(link)
                now, flow = time.monotonic_ns(), flows[link.index]
                last = now / 1e9
                count, cut = divmod(len(data), flow.size)
                link.rest = data[-cut:] if cut else b""
                if not count:
                    continue
                flow.check(data, count)
                send_all(link, flow.answer(data, count))
                arrived += count
                for start in range(flow.payload_at, count * flow.size, flow.size):
                    due, number = wire.STAMP.unpack_from(data, start)
                    if number >= expected or number < 0:
                        raise Refused(f"message {number} of {expected}")
                    if due >= begin and number not in numbers:
                        delay.append(now - due)
                    numbers.add(number)
        return {"delay": delay, "missing": expected - len(numbers), "repeats": arrived - len(numbers)}
    finally:
        watch.close()
        close_all(links)


def idle(
    ready: Callable[[], Window], *, address: Address, login: wire.Login, devices: Sequence[str], topics: Sequence[str], spread: int
) -> Figures:
    """Connect and subscribe each device to its topic, then do nothing until the end. Figures: count (connections)."""
    links = open_links(address, (login.connect(name) for name in devices), spread)
    try:
        subscribe_all(links, topics, 1)
        when = ready()
        while (left := when.end + 1 - time.monotonic()) > 0:  # a second more: the memory is read at the end
            time.sleep(left)
        return {"count": len(links)}
    finally:
        close_all(links)
