"""The account of the fault harness finds each kind of loss and repeat: broken histories go in. A harness that can't fail proves nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from tests.faults.harness.account import settle
from tests.faults.harness.events import (
    Acknowledged,
    Connected,
    Delivered,
    Disconnected,
    Event,
    Fault,
    Published,
    Stored,
    Subscribed,
    from_line,
    id_of,
    payload,
    to_line,
)
from tests.faults.harness.faults import Plan, catalogue, parse
from tests.faults.harness.history import FOREVER, History, last_arrival, matches
from tests.faults.harness.story import stories

BEGIN = 1000.0
FAULT = Fault(BEGIN, BEGIN + 0.1, BEGIN + 2, "kill-gateway", "gateway", 0, False)


@dataclass(frozen=True)
class Trip:
    """One message all the way, times in seconds. device: "" when nobody is subscribed."""

    id: str
    at: float
    qos: int = 1
    sender: str = "s"
    topic: str = "p/dd/1"
    acknowledged: float | None = 0.01
    stored: tuple[tuple[int, str], ...] = ((0, "K"),)  # (offset behind the usual one, UNIQ_KEY)
    queue: str = "b/0"
    after: float = 0.005  # from the PUBLISH until it is stored
    deliveries: tuple[float, ...] = (0.02,)  # after it was published
    device: str = "d"
    packet_id: int = 1
    again: tuple[bool, ...] = field(default=())
    session: int = 0

    def events(self) -> list[Event]:
        offset = int((self.at - BEGIN + 100) * 1000)
        found: list[Event] = [Published(self.at, self.id, self.sender, self.topic, self.qos, 0, self.packet_id, False)]
        if self.acknowledged is not None:
            found.append(Acknowledged(self.at + self.acknowledged, self.id, self.sender))
        found += [Stored(self.at + self.after, self.id, self.queue, offset + more, key + self.id) for more, key in self.stored]
        for number, delay in enumerate(self.deliveries):
            again = bool(self.again) and self.again[number]
            found.append(Delivered(self.at + delay, self.id, self.device, 0, 7 + number, number > 0, self.qos, again, self.session))
        return found


def world(*trips: Trip, clean: bool = False, more: tuple[Event, ...] = (), fault: Fault = FAULT) -> History:
    """A persistent device `d` with a subscription at QoS 2, connected long before, a message of each QoS that went well before the fault
    and one after it, and `trips`."""
    fine = [Trip("fine1", BEGIN - 20), Trip("fine2", BEGIN - 19, 2, "s2"), Trip("late1", BEGIN + 5), Trip("late2", BEGIN + 6, 2, "s2")]
    events: list[Event] = [
        Connected(BEGIN - 50, "d", 0, clean, False, 0),
        Subscribed(BEGIN - 49, "d", "p/dd/#", 2, clean, 0),
        fault,
        *(event for trip in (*fine, *trips) for event in trip.events()),
        *more,
    ]
    return History(events)


def broken(history: History) -> set[str]:
    return {row.name for row in settle(history).broken}


def test_a_sound_history_breaks_nothing() -> None:
    assert broken(world()) == set()


LOSSES: dict[str, tuple[Trip, set[str]]] = {
    "acknowledged and not stored": (Trip("x", BEGIN - 5, stored=(), deliveries=()), {"lost"}),
    "acknowledged at QoS 2 and not stored": (Trip("x", BEGIN - 5, 2, "s2", stored=(), deliveries=()), {"lost"}),
    "never delivered at QoS 1": (Trip("x", BEGIN - 5, deliveries=()), {"undelivered_1"}),
    "never delivered at QoS 2": (Trip("x", BEGIN - 5, 2, "s2", deliveries=()), {"undelivered_2"}),
    "from a server app, never delivered": (Trip("x", BEGIN - 5, packet_id=0, sender="app", deliveries=()), {"undelivered_1"}),
    "stored, not even acknowledged, never delivered": (Trip("x", BEGIN - 5, acknowledged=None, deliveries=()), {"undelivered_1"}),
    "QoS 2 twice": (Trip("x", BEGIN - 0.05, 2, "s2", deliveries=(0.01, 3.0)), {"twice"}),
    "QoS 2 with two UNIQ_KEYs": (Trip("x", BEGIN - 0.05, 2, "s2", stored=((0, "K"), (5, "L"))), {"identities"}),
    "QoS 1 again, resolved long before": (Trip("x", BEGIN - 15, deliveries=(0.02, 16.0)), {"strange_down"}),
    "QoS 1 again, stored after the fault": (Trip("x", BEGIN + 30, deliveries=(0.02, 4.0)), {"strange_down"}),
    "QoS 1 stored twice, long before": (Trip("x", BEGIN - 15, stored=((0, "K"), (900, "L"))), {"strange_up"}),
    "QoS 1 stored twice, long after": (Trip("x", BEGIN + 4, stored=((0, "K"), (3, "L"))), {"repeats_up_1", "strange_up"}),
    "in another queue": (Trip("x", BEGIN - 5, queue="b/1"), {"order"}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_and_each_repeat_is_found(name: str) -> None:
    """On a history in which something else was at risk, so that only the message itself can give it away."""
    trip, expected = LOSSES[name]
    at_risk = Trip("risk", BEGIN - 1, acknowledged=3.0, sender="other", queue="b/0")
    found = broken(world(trip, at_risk if not name.endswith(("fault", "after")) else Trip("calm", BEGIN - 30)))
    assert found == expected


def test_the_offender_is_named_and_its_story_told() -> None:
    history = world(Trip("x", BEGIN - 5, deliveries=()))
    account = settle(history)
    assert [(one.id, one.device) for one in account.row("undelivered_1").offenders] == [("x", "d")]
    text = "\n".join(stories(history, account))
    for known in ("x for d", "published by s to p/dd/1 QoS 1 packet id 1", "acknowledged", "stored at b/0/95000 UNIQ_KEY Kx", "subscribed"):
        assert known in text


ALLOWED: dict[str, Trip] = {
    "QoS 1 again, unresolved at the fault": Trip("x", BEGIN - 0.5, deliveries=(0.02, 3.0)),
    "QoS 1 again, resolved 7 s before the fault": Trip("x", BEGIN - 7, deliveries=(0.02, 12.0)),
    "QoS 1 stored twice, not acknowledged at the fault": Trip("x", BEGIN - 0.1, acknowledged=3.0, stored=((0, "K"), (4, "L"))),
    "as often delivered as stored": Trip("x", BEGIN - 0.1, acknowledged=3.0, stored=((0, "K"), (4, "L")), deliveries=(3.1, 3.2)),
    "QoS 2 stored twice with one UNIQ_KEY": Trip("x", BEGIN - 0.1, 2, "s2", acknowledged=3.0, stored=((0, "K"), (4, "K"))),
    "QoS 2 again before its PUBREL": Trip("x", BEGIN - 0.1, 2, "s2", deliveries=(0.02, 3.0), again=(False, True)),
    "never acknowledged, never stored": Trip("x", BEGIN - 0.1, acknowledged=None, stored=(), deliveries=()),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_allowed_breaks_nothing(name: str) -> None:
    assert broken(world(ALLOWED[name])) == set()


def test_more_repeats_than_were_at_risk() -> None:
    """Three copies of one message that was on its way are more than one."""
    up = Trip("x", BEGIN - 0.1, acknowledged=3.0, stored=((0, "K"), (4, "L"), (5, "M")))
    assert broken(world(up)) == {"repeats_up_1"}


def test_its_own_hop_explains_a_repeat_and_only_right_then() -> None:
    trip = Trip("x", BEGIN - 30, deliveries=(0.02, 1.0))
    soon, late = Disconnected(BEGIN - 29.5, "d", 0, "hop"), Disconnected(BEGIN - 25, "d", 0, "hop")
    again = Connected(BEGIN - 29.3, "d", 0, False, True, 0)
    assert broken(world(trip, more=(soon, again))) == set()
    assert broken(world(trip, more=(late,))) == {"strange_down"}


@pytest.mark.parametrize(("alone", "at", "strange"), [(False, 1.5, False), (True, 1.5, True), (False, 30.0, True)])
def test_repeats_as_the_node_comes_back(alone: bool, at: float, strange: bool) -> None:
    """Queues move to it: what was resolved just before may come again. Not where there is no other node, and not long after."""
    history = world(Trip("x", BEGIN + at, deliveries=(0.02, 4.0)), fault=FAULT._replace(alone=alone))
    account = settle(history)
    assert {row.name for row in account.broken} == ({"strange_down"} if strange else set())
    assert account.row("repeats_return_1").value == (0 if strange else 1)


def test_stored_before_the_suback_is_not_due() -> None:
    assert broken(world(Trip("x", BEGIN - 60, deliveries=()))) == set()


def test_a_clean_session_is_owed_what_came_while_it_stayed_connected() -> None:
    missed = Trip("x", BEGIN - 5, deliveries=())
    assert broken(world(missed, clean=True)) == {"undelivered_clean"}
    gone = (Disconnected(BEGIN + 1, "d", 0, "lost"), Connected(BEGIN + 2, "d", 0, True, False, 1))
    assert broken(world(missed, clean=True, more=gone)) == {"idle"}  # nothing at all is due to it
    ended = (Disconnected(BEGIN + 30, "d", 0, "end"),)
    assert broken(world(missed, clean=True, more=ended)) == {"undelivered_clean"}


def test_two_clean_sessions_may_get_a_message_once_each() -> None:
    trip = Trip("x", BEGIN - 0.1, 2, "s2", deliveries=(0.02,))
    other = Delivered(BEGIN + 3, "x", "d", 0, 1, False, 2, False, 1)
    assert broken(world(trip, clean=True, more=(other,))) == set()
    assert broken(world(trip, clean=True, more=(other._replace(session=0),))) == {"twice"}


def test_a_session_that_was_gone() -> None:
    back = (Disconnected(BEGIN, "d", 0, "lost"), Connected(BEGIN + 3, "d", 1, False, False, 0))
    assert broken(world(more=back)) == {"sessions"}


def test_order_within_a_queue() -> None:
    first, second = Trip("x", BEGIN - 5, stored=((900, "K"),)), Trip("y", BEGIN - 4.9)
    assert broken(world(first, second)) == {"order"}
    # a repeat behind it changes nothing
    repeat = replace(first, at=BEGIN - 0.1, acknowledged=3.0, stored=((0, "K"), (1200, "L")))
    assert broken(world(repeat, replace(second, at=BEGIN - 0.05))) == set()


@pytest.mark.parametrize(("alone", "went_on", "late"), [(False, 14.0, False), (False, 16.0, True), (True, 16.0, False), (True, 18.0, True)])
def test_downlink_has_to_go_on(alone: bool, went_on: float, late: bool) -> None:
    """The other queue did at once; this one took `went_on` seconds. Without other nodes the time until the restart does not count."""
    slow = Trip("x", BEGIN + 0.2, queue="b/1", sender="other", deliveries=(went_on - 0.2,))
    assert broken(world(slow, fault=FAULT._replace(alone=alone))) == ({"goes_on"} if late else set())


def test_downlink_that_never_goes_on() -> None:
    slow = Trip("x", BEGIN + 0.2, queue="b/1", sender="other", deliveries=())
    assert broken(world(slow)) == {"goes_on", "undelivered_1"}


@pytest.mark.parametrize("kind", [Published, Acknowledged, Stored, Delivered, Subscribed])
def test_a_run_without_traffic_proves_nothing(kind: type[Event]) -> None:
    events = [event for trip in (Trip("a", BEGIN - 20), Trip("b", BEGIN + 5)) for event in trip.events()]
    events += [Connected(BEGIN - 50, "d", 0, False, False, 0), Subscribed(BEGIN - 49, "d", "p/#", 2, False, 0), FAULT]
    assert "idle" not in broken(History(events))
    assert "idle" in broken(History(event for event in events if not isinstance(event, kind))) or kind is Published
    assert broken(History(event for event in events if not isinstance(event, kind)))


def test_when_everything_due_had_arrived() -> None:
    assert last_arrival(world(Trip("x", BEGIN + 3, deliveries=(9.0, 10.0)))) == pytest.approx(BEGIN + 12)
    assert last_arrival(world(Trip("x", BEGIN + 3, deliveries=()))) == FOREVER


def test_a_copy_that_is_read_twice_is_one_copy() -> None:
    trip = Trip("x", BEGIN - 30)
    history = world(trip, more=tuple(trip.events()[2:3]))
    assert len(history.stored["x"]) == 1


@pytest.mark.parametrize(
    ("filter", "topic", "expected"),
    [
        ("a/+/c", "a/b/c", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/b", "a/c", False),
        ("a/b/c", "a/b", False),
    ],
)
def test_filters(filter: str, topic: str, expected: bool) -> None:
    assert matches(filter, topic) is expected


def test_lines_and_payloads_go_both_ways() -> None:
    for event in [FAULT, *Trip("x", BEGIN).events()]:
        assert from_line(to_line(event)) == event
    for size in (0, 3, 100):
        assert id_of(payload("f1-up0-17", size)) == "f1-up0-17"


def test_faults_by_name() -> None:
    assert parse("freeze-redis-20") == Plan("freeze-redis-20", "freeze", "redis", 20)
    assert parse("kill-gateway").seconds < parse("kill-gateway-20").seconds
    for wrong in ("", "kill", "freeze-broker", "freeze-mosquitto-4", "kill-redis-x", "drown-redis-4"):
        with pytest.raises(ValueError, match="is no fault"):
            parse(wrong)
    for store, nodes in (("sqlite", 1), ("redis", 2)):
        assert all(parse(name) for name in catalogue(store, nodes))
    assert not any("redis" in name for name in catalogue("sqlite", 1))
