"""All events of one fault, by message and by device, and what follows from them alone: who was to get what. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.faults.harness.events import (
    Acknowledged,
    Connected,
    Delivered,
    Disconnected,
    Event,
    Fault,
    Pinged,
    Published,
    Stored,
    Subscribed,
)

FOREVER = float("inf")


class Due(NamedTuple):
    """A message that a device was to get. qos: the smaller of the message's and the subscription's [MQTT-3.8.4-6]."""

    id: str
    device: str
    qos: int
    clean: bool
    session: int


class Connection(NamedTuple):
    """From the CONNACK to the end, FOREVER while it lasts."""

    begin: float
    end: float
    node: int
    session: int
    reason: str


class History:
    """Events in any order. published: id -> each time it was sent. acknowledged: id -> when first. stored: id -> each copy.
    delivered: (device, id) -> each PUBLISH."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.published: dict[str, list[Published]] = defaultdict(list)
        self.acknowledged: dict[str, float] = {}
        self.stored: dict[str, list[Stored]] = defaultdict(list)
        self.delivered: dict[tuple[str, str], list[Delivered]] = defaultdict(list)
        self.connects: dict[str, list[Connected]] = defaultdict(list)
        self.ends: dict[str, list[Disconnected]] = defaultdict(list)
        self.subscriptions: list[Subscribed] = []
        self.pings: list[Pinged] = []
        self.fault: Fault | None = None
        self._places: set[tuple[str, int]] = set()
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """One more event; a copy in the backend that is known already changes nothing."""
        match event:
            case Published():
                self.published[event.id].append(event)
            case Acknowledged():
                self.acknowledged[event.id] = min(event.at, self.acknowledged.get(event.id, FOREVER))
            case Delivered():
                self.delivered[event.device, event.id].append(event)
            case Stored():
                if (event.queue, event.offset) not in self._places:
                    self._places.add((event.queue, event.offset))
                    self.stored[event.id].append(event)
            case Connected():
                self.connects[event.device].append(event)
            case Disconnected():
                self.ends[event.device].append(event)
            case Subscribed():
                self.subscriptions.append(event)
            case Pinged():
                self.pings.append(event)
            case Fault():
                self.fault = event

    def connections(self, device: str) -> list[Connection]:
        """In the order of time."""
        begun = sorted(self.connects.get(device, ()))
        ended = sorted(self.ends.get(device, ()))
        found: list[Connection] = []
        for number, connect in enumerate(begun):
            until = begun[number + 1].at if number + 1 < len(begun) else FOREVER
            end = next((end for end in ended if connect.at <= end.at <= until), None)
            found.append(Connection(connect.at, end.at if end else until, connect.node, connect.session, end.reason if end else ""))
        return found

    def due(self) -> Iterator[Due]:
        """What was stored after a SUBACK for a filter that matches it: for a persistent session always; for a clean one when the connection
        of that SUBACK has lasted to the end."""
        listeners: dict[str, list[Subscribed]] = {}
        lasting = self._lasting()
        for id, copies in self.stored.items():
            sent = self.published.get(id)
            if not sent or not sent[0].qos:
                continue
            topic, first = sent[0].topic, min(copy.at for copy in copies)
            if topic not in listeners:
                listeners[topic] = [one for one in self.subscriptions if matches(one.filter, topic)]
            for one in listeners[topic]:
                if one.qos and first > one.at and (not one.clean or lasting.get(one.device) == one.session):
                    yield Due(id, one.device, min(one.qos, sent[0].qos), one.clean, one.session)

    def _lasting(self) -> dict[str, int]:
        """The session of each device's connection that has not ended, or ended because the run did."""
        last = {device: self.connections(device)[-1] for device in self.connects}
        return {device: one.session for device, one in last.items() if one.end == FOREVER or one.reason == "end"}

    def missing(self) -> Iterator[Due]:
        """What was due and has not come."""
        return (due for due in self.due() if not self.delivered.get((due.device, due.id)))


def last_arrival(history: History) -> float:
    """When the last thing due to a persistent session came for the first time; FOREVER while one is missing."""
    first = (
        min((one.at for one in history.delivered.get((due.device, due.id), ())), default=FOREVER) for due in history.due() if not due.clean
    )
    return max(first, default=0.0)


def matches(filter: str, topic: str) -> bool:
    """Whether a topic filter matches a topic name (clause 4.7), for topics that do not begin with $."""
    wanted, levels = filter.split("/"), topic.split("/")
    for number, level in enumerate(wanted):
        if level == "#":
            return True
        if number >= len(levels) or level not in ("+", levels[number]):
            return False
    return len(wanted) == len(levels)
