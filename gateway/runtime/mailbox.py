"""The outbound side of one connected client: its window of unacknowledged messages, and the queue behind it (clauses 4.3, 4.4, 4.6).

A mailbox never waits: the router appends, the link's acknowledgements make room. What can't be held goes to the offline store when the
session
is persistent; a clean session that falls behind is closed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from gateway import observe
from gateway.mqtt import encode
from gateway.mqtt.inflight import next_free
from gateway.ports import Phase, Waiting
from gateway.runtime.once import Once
from gateway.runtime.outbound import ENTRY_BYTES, Entry, Outbound, stored_entry
from gateway.runtime.pulling import Asking

PACKET_IDS = 65535


class Wire(Protocol):
    """What a mailbox needs of its connection."""

    buffered: int

    def write(self, data: bytes) -> None: ...


class Keeper(Protocol):
    """What a mailbox needs of the offline store (runtime/offline.py).

    keep: store or update the entries, then release their holds and call `then(entry, kept)` for each; kept is False for a message that was
    there before. overflowed: the entry has no place in the mailbox; it is fetched again with the backlog.
    """

    def keep(
        self, client_id: str, entries: Sequence[Entry], then: Callable[[Entry, bool], None] | None = None, owner: Mailbox | None = None
    ) -> None: ...
    def remove(self, client_id: str, position: int) -> None: ...
    def overflowed(self, mailbox: Mailbox, entry: Entry) -> None: ...


class Bounds:
    """The limits of every mailbox, as settings give them. window: messages; buffer: bytes written and not yet sent."""

    __slots__ = ("buffer", "bytes", "count", "window")

    def __init__(self, window: int, count: int, bytes: int, buffer: int) -> None:
        self.window = window
        self.count = count
        self.bytes = bytes
        self.buffer = buffer


class Mailbox:
    """The outbound state of one connection's session. `overflow` closes a clean session's link."""

    __slots__ = (
        "_bounds",
        "_gathered",
        "_gathering",
        "_keeper",
        "_last_id",
        "_once",
        "_queue",
        "_queued_bytes",
        "_unwritten",
        "_wire",
        "asking",
        "client_id",
        "divert",
        "epoch",
        "inflight",
        "on_stored_done",
        "overflow",
        "persistent",
    )

    def __init__(self, client_id: str, persistent: bool, wire: Wire, bounds: Bounds, keeper: Keeper, overflow: Callable[[], None]) -> None:
        self.client_id = client_id
        self.persistent = persistent
        self.inflight: dict[int, Entry] | None = None  # in the order of sending [MQTT-4.6.0-1]; made when first needed
        self.epoch = 0  # of the connection
        self.divert = False  # strict offline order: live messages join the stored backlog
        self.asking: Asking | None = None  # when set, nothing stored comes unasked
        self.on_stored_done: Callable[[], None] | None = None  # an offline message is acknowledged: paces the batches
        self.overflow = overflow
        self._wire = wire
        self._bounds = bounds
        self._keeper = keeper
        self._queue: deque[Entry] | None = None
        self._queued_bytes = 0
        self._gathering = 0
        self._gathered: list[tuple[Outbound, int]] | None = None
        self._last_id = 0
        self._once: Once | None = None
        self._unwritten: deque[Entry] | None = None  # have an id, and wait until it is stored or behind such a one

    # ------------------------------------------------------------ from the router

    def deliver(self, message: Outbound, qos: int) -> None:
        """Send or queue a live message at `qos` (the smaller of the subscription's and the message's [MQTT-3.8.4-6])."""
        if self._gathering:
            self._gather(message, qos)
        else:
            self.push(message, qos)

    def push(self, message: Outbound, qos: int) -> None:
        """Like `deliver`, before what is gathered: a retained message."""
        if not qos:
            if self._wire.buffered > self._bounds.buffer:
                observe.count(observe.Fact.QOS0_DROPPED)
            else:
                self._wire.write(message.packet0())
        elif not self._repeated(message, qos):
            entry = self._entry(message, qos)
            if self.divert:
                self._keeper.overflowed(self, entry)
            else:
                self.add(entry)

    def _repeated(self, message: Outbound, qos: int) -> bool:
        """A QoS 2 message that this clean session was sent before."""
        if qos != 2 or self.persistent or message.received is None:
            return False
        if self._once is None:
            self._once = Once()
        return self._once.had(message.id)

    def _entry(self, message: Outbound, qos: int) -> Entry:
        entry = Entry(message, qos, trio.current_time())
        if self.persistent and message.received is not None and not message.volatile:
            message.received.hold()
            entry.holding = True
        return entry

    def add(self, entry: Entry) -> bool:
        """Send or queue an entry whose hold or position is set. False: there is no room for it (or the mailbox has ended)."""
        if self.ended:
            return False
        inflight = self.inflight
        if inflight is None:
            inflight = self.inflight = {}
        queue = self._queue
        if not queue and self._may_send(inflight):
            self._send(entry)
            return True
        if queue is None:
            queue = self._queue = deque()
        size = len(entry.message.payload) + ENTRY_BYTES
        if len(queue) >= self._bounds.count or self._queued_bytes + size > self._bounds.bytes:
            self._full(entry)
            return False
        queue.append(entry)
        self._queued_bytes += size
        return True

    def _full(self, entry: Entry) -> None:
        """Bounded (design section 3.5): a persistent session's message moves to the offline store, a clean session ends."""
        if entry.position:
            return  # it lies in the store already and is fetched again with the backlog
        observe.count(observe.Fact.MAILBOX_FULL)
        if self.persistent and not entry.message.volatile:
            self._keeper.overflowed(self, entry)
        elif self.persistent:  # P2P of a clean sender: not kept (contract section 5)
            observe.count(observe.Fact.MESSAGE_DROPPED, reason="mailbox_full")
        else:
            self.overflow()

    def _may_send(self, inflight: dict[int, Entry]) -> bool:
        # one is always let through: its acknowledgement is what moves the queue on
        return not inflight or (len(inflight) < self._bounds.window and self._wire.buffered <= self._bounds.buffer)

    def _send(self, entry: Entry) -> None:
        inflight = self.inflight
        assert inflight is not None
        packet_id = next_free(self._last_id, inflight)  # there is one: the window is smaller than 65,535
        self._last_id = packet_id
        inflight[packet_id] = entry
        entry.packet_id = packet_id
        entry.epoch = self.epoch
        entry.phase = Phase.SENT
        if entry.qos == 2 and self.persistent and not entry.message.volatile:
            if self._unwritten is None:
                self._unwritten = deque()
            self._unwritten.append(entry)
            if not entry.storing:  # else `safe` follows
                self._keeper.keep(self.client_id, [entry], self._kept, self)  # design section 4: the id is stored before the first send
        elif self._unwritten:
            self._unwritten.append(entry)
        else:
            self._wire.write(entry.message.packet(entry.qos, packet_id))

    def _kept(self, entry: Entry, kept: bool) -> None:
        inflight, unwritten = self.inflight, self._unwritten
        if inflight is None or not unwritten or inflight.get(entry.packet_id) is not entry:
            return
        if not kept:  # a repeat of a message that this session has or had [MQTT-4.3.3-1]
            del inflight[entry.packet_id]
            unwritten.remove(entry)
        while unwritten and not unwritten[0].storing:
            first = unwritten.popleft()
            self._wire.write(first.message.packet(first.qos, first.packet_id))
        if not kept:
            self.pump()

    # ------------------------------------------------------------ from the link

    def puback(self, packet_id: int) -> None:
        """PUBACK: the QoS 1 message is the device's [MQTT-4.3.2-1]. An unknown id is ignored: it was answered before."""
        inflight = self.inflight
        if inflight is None:
            return
        entry = inflight.get(packet_id)
        if entry is not None and entry.qos == 1:
            del inflight[packet_id]
            self._finish(entry)

    def pubrec(self, packet_id: int) -> None:
        """PUBREC: from now on only PUBREL is sent for this id [MQTT-4.3.3-1]; it leaves when that is stored. An unknown id gets its PUBREL
        too:
        it was finished before, and the device must be able to forget it."""
        entry = self.inflight.get(packet_id) if self.inflight else None
        if entry is not None and entry.qos == 2 and entry.phase is not Phase.RELEASED:
            entry.phase = Phase.RELEASED
            if entry.position:
                self._keeper.keep(self.client_id, [entry], self._released, self)
                return
        self._wire.write(encode.pubrel(packet_id))

    def _released(self, entry: Entry, kept: bool) -> None:
        if self.inflight is not None:
            self._wire.write(encode.pubrel(entry.packet_id))

    def pubcomp(self, packet_id: int) -> None:
        """PUBCOMP: the QoS 2 message is done."""
        inflight = self.inflight
        if inflight is None:
            return
        entry = inflight.get(packet_id)
        if entry is not None and entry.phase is Phase.RELEASED:
            del inflight[packet_id]
            self._finish(entry)

    def _finish(self, entry: Entry) -> None:
        entry.finished = True
        entry.release()
        if entry.position:
            self._keeper.remove(self.client_id, entry.position)
            if self.on_stored_done is not None:
                self.on_stored_done()
        if self._queue:
            self.pump()

    def pump(self) -> None:
        """Send what the window has room for."""
        queue = self._queue
        if not queue:
            return
        inflight = self.inflight
        assert inflight is not None
        while queue and self._may_send(inflight):
            entry = queue.popleft()
            self._queued_bytes -= len(entry.message.payload) + ENTRY_BYTES
            self._send(entry)

    def resend(self, waiting: Sequence[Waiting]) -> None:
        """After CONNACK: what the last connection left unacknowledged, with its ids, in order, DUP set [MQTT-4.4.0-1], [MQTT-3.3.1-1]."""
        if not waiting:
            return
        inflight: dict[int, Entry] = {}
        now = trio.current_time()
        for item in in_sending_order(waiting):
            entry = stored_entry(item, now)
            entry.epoch = self.epoch
            if item.packet_id in inflight:
                continue  # two with one id can't be told apart on the wire [MQTT-2.3.1-4]: this one waits for the next connection
            inflight[item.packet_id] = entry
            if item.phase is Phase.RELEASED:
                self._wire.write(encode.pubrel(item.packet_id))
            else:
                self._wire.write(entry.message.packet(item.qos, item.packet_id, dup=True))
            self._last_id = item.packet_id
        self.inflight = inflight

    # ------------------------------------------------------------ gathering: live messages wait behind retained or stored ones

    def gather(self) -> None:
        """Hold back live messages until `resume` (nests)."""
        if not self.ended:
            self._gathering += 1

    def _gather(self, message: Outbound, qos: int) -> None:
        if self.ended:
            return
        gathered = self._gathered
        if gathered is None:
            gathered = self._gathered = []
        if len(gathered) >= self._bounds.count:
            if not qos:
                observe.count(observe.Fact.QOS0_DROPPED)
            else:
                self._full(self._entry(message, qos))
            return
        if qos and message.received is not None:
            message.received.hold()
        gathered.append((message, qos))

    def resume(self) -> None:
        """Deliver what was gathered."""
        if self.ended:
            return
        self._gathering -= 1
        if self._gathering or not self._gathered:
            return
        gathered, self._gathered = self._gathered, None
        for message, qos in gathered:
            self.deliver(message, qos)
            if qos and message.received is not None:
                message.received.release()

    # ------------------------------------------------------------ overdue and end

    def overdue(self, before: float) -> list[Entry]:
        """Entries that hold the backend's offset since before `before` (monotonic seconds): to be made safe in the offline store."""
        found: list[Entry] = []
        for entry in (self.inflight or {}).values():
            if entry.holding and not entry.storing:
                if entry.entered > before:
                    return found
                found.append(entry)
        for entry in self._queue or ():
            if entry.holding and not entry.storing:
                if entry.entered > before:
                    break
                found.append(entry)
        return found

    def safe(self, entry: Entry, _kept: bool) -> None:
        """An overdue entry is in the store. One of QoS 2 whose turn came meanwhile is sent when its id is there too."""
        if entry.qos == 2 and self.inflight and self.inflight.get(entry.packet_id) is entry and entry.phase is Phase.SENT:
            self._keeper.keep(self.client_id, [entry], self._kept, self)

    def positions(self) -> set[int]:
        """The places in the offline store of what is here."""
        return {entry.position for entry in [*(self.inflight or {}).values(), *(self._queue or ())]}

    @property
    def ended(self) -> bool:
        """`end` was called."""
        return self._gathering < 0

    @property
    def crowded(self) -> bool:
        """Half full: what is not urgent waits."""
        bounds = self._bounds
        full = len(self._queue or ()) * 2 >= bounds.count or self._queued_bytes * 2 >= bounds.bytes
        return full or self._wire.buffered * 2 >= bounds.buffer

    @property
    def depth(self) -> int:
        """Messages that are sent and unacknowledged, or queued."""
        return len(self.inflight or ()) + len(self._queue or ())

    def end(self) -> list[Entry]:
        """The connection is over. What a persistent session must keep, in the order in which it has to be sent; nothing for a clean one."""
        left = list((self.inflight or {}).values()) + list(self._queue or ())
        gathered, self._gathered = self._gathered or [], None
        self.inflight = None
        self._queue = None
        self._gathering = -1
        for message, qos in gathered:
            if qos:
                entry = Entry(message, qos, 0.0)
                entry.holding = message.received is not None  # the hold of `_gather` is the entry's from now on
                left.append(entry)
        kept: list[Entry] = []
        for entry in left:
            if self.persistent and not entry.message.volatile:
                kept.append(entry)
            else:
                entry.release()
        return kept


def in_sending_order(waiting: Sequence[Waiting]) -> list[Waiting]:
    """Ids are given in a circle, so the order of sending begins behind the widest gap between them. (The store's order is another one: a
    QoS 2
    message is stored before it is sent, a QoS 1 message when its connection ends.)"""
    ordered = sorted(waiting, key=lambda item: item.packet_id)
    ids = [item.packet_id for item in ordered]
    gaps = [(id - before) % PACKET_IDS for before, id in zip(ids[-1:] + ids[:-1], ids, strict=True)]
    start = gaps.index(max(gaps)) if len(gaps) > 1 else 0
    return ordered[start:] + ordered[:start]
