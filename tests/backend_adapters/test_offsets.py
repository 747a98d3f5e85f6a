"""OffsetTracker against a naive model: what is committed never passes a message that is not resolved."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backend_adapters import offsets
from backend_adapters.offsets import OffsetTracker
from gateway.ports import Queue, Received

QUEUE = Queue("t", "b", 0)


def message(tracker: OffsetTracker, offset: int, body: bytes = b"12345") -> Received:
    return Received(QUEUE, offset, "", body, {}, f"{offset:032X}", 0, 0, False, tracker.settled)


def deliver(tracker: OffsetTracker, first: int, count: int, hold: set[int]) -> list[Received]:
    batch = [message(tracker, offset) for offset in range(first, first + count)]
    tracker.receive(batch)
    for each in batch:
        if each.offset in hold:
            each.hold()
    tracker.advance(first + count)
    return batch


def test_what_is_not_held_is_resolved_when_the_listener_returns() -> None:
    tracker = OffsetTracker(5)
    tracker.receive([message(tracker, 5), message(tracker, 6)])
    assert (tracker.resolved, tracker.unresolved, tracker.unresolved_bytes) == (5, 2, 10)
    tracker.advance(7)
    assert (tracker.resolved, tracker.unresolved, tracker.unresolved_bytes) == (7, 0, 0)


def test_released_while_the_listener_is_busy_is_resolved_only_when_it_returns() -> None:
    tracker = OffsetTracker(0)
    batch = [message(tracker, 0), message(tracker, 1)]
    tracker.receive(batch)
    batch[0].hold()
    batch[0].release()
    assert tracker.resolved == 0
    tracker.advance(2)
    assert tracker.resolved == 2


def test_fully_filtered_ranges_advance() -> None:
    tracker = OffsetTracker(0)
    tracker.receive([])
    tracker.advance(900)
    assert tracker.resolved == 900


def test_the_delay_counts_from_the_call_that_saw_the_resolution() -> None:
    tracker = OffsetTracker(0)
    batch = deliver(tracker, 0, 3, {1})
    assert tracker.committable(10.0) == 0
    assert tracker.committable(11.9) == 0
    assert tracker.committable(12.0) == 1
    batch[1].release()
    assert tracker.committable(13.0) == 1
    assert tracker.committable(14.9) == 1
    assert tracker.committable(15.0) == 3


def test_a_tick_in_every_millisecond_delays_by_an_eighth_at_most() -> None:
    tracker = OffsetTracker(0)
    now = 0.0
    for offset in range(3000):
        deliver(tracker, offset, 1, set())
        tracker.committable(now)
        now += 0.001
    assert 3000 - 2000 - 250 <= tracker.committable(now) <= 1000


def test_one_slow_receiver_pins_neither_memory_nor_the_bound() -> None:
    tracker = OffsetTracker(0)
    slow = deliver(tracker, 0, 1, {0})[0]
    for first in range(1, 50_001, 100):
        for each in deliver(tracker, first, 100, set(range(first, first + 100))):
            each.release()
    assert (tracker.resolved, tracker.unresolved) == (0, 1)
    assert tracker.unresolved_bytes < 1000
    assert not tracker.full
    slow.release()
    assert tracker.resolved == 50_001


def test_full_at_the_bound_in_messages_and_in_bytes() -> None:
    tracker = OffsetTracker(0)
    batch = deliver(tracker, 0, offsets.DEFAULT_UNRESOLVED.messages, set(range(offsets.DEFAULT_UNRESOLVED.messages)))
    assert tracker.full
    batch[7].release()
    assert not tracker.full
    tracker = OffsetTracker(0)
    big = message(tracker, 0, bytes(offsets.DEFAULT_UNRESOLVED.bytes))
    tracker.receive([big])
    assert tracker.full
    tracker.advance(1)
    assert not tracker.full


def test_changed_is_called_when_a_hold_goes_and_when_the_listener_returns() -> None:
    calls: list[int] = []
    tracker = OffsetTracker(0, changed=lambda: calls.append(tracker.resolved))
    batch = deliver(tracker, 0, 2, {0})
    batch[0].release()
    assert calls == [0, 2]


class AgainstTheModel(RuleBasedStateMachine):
    """The model keeps every message for ever and looks at all of them each time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.tracker = OffsetTracker(10)
        self.next = 10
        self.boundary = 10
        self.all: list[Received] = []
        self.busy: list[Received] = []
        self.history: list[tuple[float, int]] = [(self.now, 10)]  # (time, low water from then on)
        self.last_commit = 10

    def low_water(self) -> int:
        return min((m.offset for m in self.all if m.holds), default=self.boundary)

    def note(self) -> None:
        self.history.append((self.now, self.low_water()))

    @precondition(lambda self: not self.busy)
    @rule(gaps=st.lists(st.integers(0, 3), max_size=60))
    def receive(self, gaps: list[int]) -> None:
        for gap in gaps:
            self.busy.append(message(self.tracker, self.next + gap))
            self.next += gap + 1
        self.tracker.receive(tuple(self.busy))

    @precondition(lambda self: bool(self.busy))
    @rule(data=st.data(), times=st.integers(1, 3))
    def hold(self, data: st.DataObject, times: int) -> None:
        for each in data.draw(st.lists(st.sampled_from(self.busy), unique_by=id, min_size=1)):
            for _ in range(times):
                each.hold()

    @precondition(lambda self: any(m.holds > 1 for m in self.busy))
    @rule(data=st.data())
    def release_early(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([m for m in self.busy if m.holds > 1])).release()

    @rule(filtered=st.integers(0, 5))
    def advance(self, filtered: int) -> None:
        self.next += filtered
        self.tracker.advance(self.next)
        self.all += self.busy
        self.busy = []
        self.boundary = self.next
        self.note()

    @precondition(lambda self: any(m.holds for m in self.all))
    @rule(data=st.data(), count=st.integers(1, 80))
    def release(self, data: st.DataObject, count: int) -> None:
        held = [m for m in self.all if m.holds]
        start = data.draw(st.integers(0, len(held) - 1))
        for each in held[start : start + count]:
            each.release()
        self.note()

    @rule(seconds=st.floats(0, 5))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        committable = self.tracker.committable(self.now)
        assert committable >= self.last_commit
        assert committable <= max(low for time, low in self.history if time <= self.now - 2.0 or low == 10)
        self.last_commit = committable

    @rule()
    def settle_down(self) -> None:
        """With ticks a delay and an eighth apart everything resolved becomes committable."""
        for _ in range(3):
            self.now += 2.25
            self.last_commit = self.tracker.committable(self.now)
        assert self.last_commit == self.tracker.resolved

    @invariant()
    def same_as_the_model(self) -> None:
        assert self.tracker.resolved == self.low_water()
        unresolved = [m for m in self.all if m.holds] + self.busy
        assert self.tracker.unresolved == len(unresolved)
        assert sum(len(m.body) for m in unresolved) <= self.tracker.unresolved_bytes
        assert self.tracker.unresolved_bytes <= 2 * sum(len(m.body) for m in unresolved) + 5 * 40


TestAgainstTheModel = AgainstTheModel.TestCase
TestAgainstTheModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_bounds_are_parameters() -> None:
    """`limits.unresolved_count` and `limits.unresolved_bytes` of the settings."""
    few = OffsetTracker(0, bounds=offsets.Unresolved(messages=2, bytes=100))
    assert not few.full
    deliver(few, 0, 2, {0, 1})
    assert few.full
