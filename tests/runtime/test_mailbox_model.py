"""Whatever happens to a mailbox in whatever order: the backend's holds are released exactly once, nothing is lost, the window holds."""

from __future__ import annotations

from collections import deque

import trio
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from gateway.runtime.mailbox import Bounds, Mailbox
from gateway.runtime.offline import Offline
from gateway.runtime.outbound import Outbound
from tests.runtime.kit import Device, Log, settings
from tests.runtime.scripted import ScriptedStore

ID = "GID_test@@@dev1"
WINDOW, COUNT = 3, 4


class Mailboxes(RuleBasedStateMachine):
    """One mailbox from CONNACK to the end of its connection; the store answers, fails or makes wait as it likes."""

    @initialize(persistent=st.booleans())
    def begin(self, persistent: bool) -> None:
        self.store = ScriptedStore()
        self.store.holding.add("offline_put")
        self.offline = Offline(self.store, settings())
        self.device = Device()
        self.log = Log()
        self.persistent = persistent
        self.overflowed = False
        self.mailbox = Mailbox(ID, persistent, self.device, Bounds(WINDOW, COUNT, 2000, 10), self.offline, self._overflow)
        self.due: dict[int, str] = {}  # payload -> id of what must not be lost
        self.acknowledged: set[int] = set()
        self.gathers = 0
        self.ended = False

    def _overflow(self) -> None:
        self.overflowed = True

    # ------------------------------------------------------------ what may happen

    @rule(qos=st.integers(0, 2), volatile=st.booleans(), size=st.sampled_from([0, 0, 900]))
    def comes(self, qos: int, volatile: bool, size: int) -> None:
        number = len(self.log.made)
        received = self.log.message(number.to_bytes(4, "big") + bytes(size))
        received.hold()  # as the backend does while it gives it
        self.mailbox.deliver(Outbound("known/a", received.body, qos, received.id, 1, received, volatile=volatile), qos)
        if qos and self.persistent and not volatile and not self.ended:
            self.due[number] = received.id
        received.release()

    @rule(place=st.integers(0, WINDOW))
    def acknowledges(self, place: int) -> None:
        inflight = self.mailbox.inflight or {}
        for packet_id in list(inflight)[place : place + 1]:
            entry = inflight[packet_id]
            published = {packet.packet_id for packet in self.device.published}
            if packet_id not in published:
                return  # the device doesn't know it yet
            number = int.from_bytes(entry.message.payload[:4], "big")
            if entry.qos == 1:
                self.mailbox.puback(packet_id)
            else:
                self.mailbox.pubrec(packet_id)
                self.mailbox.pubcomp(packet_id)
            self.acknowledged.add(number)

    @rule(packet_id=st.integers(1, 12))
    def acknowledges_anything(self, packet_id: int) -> None:
        entry = (self.mailbox.inflight or {}).get(packet_id)
        if entry is None or entry.qos == 2:
            self.mailbox.puback(packet_id)
        if entry is None:
            self.mailbox.pubrec(packet_id)
            self.mailbox.pubcomp(packet_id)

    @rule(buffered=st.sampled_from([0, 0, 11]))
    def socket_is_behind(self, buffered: int) -> None:
        self.device.buffered = buffered

    @precondition(lambda self: self.gathers < 2)
    @rule()
    def gathers_live_ones(self) -> None:
        self.mailbox.gather()
        self.gathers += 1

    @precondition(lambda self: self.gathers)
    @rule()
    def resumes(self) -> None:
        self.mailbox.resume()
        self.gathers -= 1

    @rule()
    def sweeps(self) -> None:
        if self.persistent and not self.ended:
            overdue = self.mailbox.overdue(trio.current_time() + 1)
            if overdue:
                self.offline.keep(ID, overdue, self.mailbox.safe)

    @rule(number=st.integers(1, 3), fails=st.booleans())
    def store_answers(self, number: int, fails: bool) -> None:
        if fails:
            self.store.failing.add("offline_put")
        self.store.answer(number)
        self.store.failing.clear()

    @rule()
    def store_is_asked_again(self) -> None:
        failed, self.offline._failed = self.offline._failed, deque()
        for again in failed:
            again()

    @precondition(lambda self: not self.ended and len(self.log.made) > 5)
    @rule()
    def connection_ends(self) -> None:
        self.ended = True
        kept = self.mailbox.end()
        if kept:
            self.offline.keep(ID, kept)

    # ------------------------------------------------------------ what always holds

    @invariant()
    def holds_are_sane(self) -> None:
        held = self.log.held  # raises when one is released twice
        if not self.persistent and not self.gathers:
            assert held == 0

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.mailbox.inflight or ()) <= WINDOW
        assert self.mailbox.depth <= WINDOW + COUNT

    @invariant()
    def each_is_sent_once_in_order(self) -> None:
        sent = [int.from_bytes(packet.payload[:4], "big") for packet in self.device.published if packet.qos]
        assert sent == sorted(set(sent))

    @invariant()
    def qos_2_is_stored_before_it_is_sent(self) -> None:
        stored = {message_id for _, message_id in self.store.had}
        for packet in self.device.published:
            number = int.from_bytes(packet.payload[:4], "big")
            if packet.qos == 2 and number in self.due:
                assert self.due[number] in stored

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        if not self.ended:
            self.connection_ends()
        while self.store.unanswered or self.offline._failed:
            self.store.answer()
            self.store_is_asked_again()
        assert self.log.held == 0
        stored = {message_id for _, message_id in self.store.had}
        lost = [number for number, message_id in self.due.items() if number not in self.acknowledged and message_id not in stored]
        assert lost == []
        assert sorted(self.log.resolved) == list(range(len(self.log.made)))


async def test_any_order_of_events() -> None:
    run_state_machine_as_test(Mailboxes, settings=profile(max_examples=80, stateful_step_count=40))
