"""What a history is made of: each event as load, backend and faults saw it, and the lines of a journal that carry it.

Times are seconds since 1970 by the clock of this machine, on which everything runs; the broker's store time has it too.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Published(NamedTuple):
    """A device sent a PUBLISH (or a server app a message: then node and packet_id are 0), for the first time or again."""

    at: float
    id: str
    by: str
    topic: str
    qos: int
    node: int
    packet_id: int
    dup: bool


class Acknowledged(NamedTuple):
    """The PUBACK or PUBREC has come; for a server app: the broker says that it has stored it."""

    at: float
    id: str
    by: str


class Connected(NamedTuple):
    """CONNACK 0. session: grows with each clean session of the device, so that two of them are told apart; 0 for persistent ones."""

    at: float
    device: str
    node: int
    clean: bool
    present: bool
    session: int


class Disconnected(NamedTuple):
    """reason: hop (its own decision), lost (the other side closed), silent (no PINGRESP in time), end."""

    at: float
    device: str
    node: int
    reason: str


class Subscribed(NamedTuple):
    """The SUBACK has come."""

    at: float
    device: str
    filter: str
    qos: int
    clean: bool
    session: int


class Delivered(NamedTuple):
    """A PUBLISH has come and is acknowledged at once. again: at QoS 2, its packet id is not released yet, so MQTT's receiver does not
    take it for a new message (method A of figure 4.3)."""

    at: float
    id: str
    device: str
    node: int
    packet_id: int
    dup: bool
    qos: int
    again: bool
    session: int


class Pinged(NamedTuple):
    """A PINGRESP has come after `took` seconds."""

    at: float
    device: str
    took: float


class Stored(NamedTuple):
    """The backend holds it. at: the broker's store time. key: UNIQ_KEY."""

    at: float
    id: str
    queue: str
    offset: int
    key: str


class Fault(NamedTuple):
    """begin: just before the signal. struck: the process is dead or stands still. end: it answers again. part: gateway, redis, broker,
    namesrv, or none. node: number of the gateway, 0 for other parts."""

    begin: float
    struck: float
    end: float
    name: str
    part: str
    node: int
    alone: bool  # a gateway that is the only node


Event = Published | Acknowledged | Connected | Disconnected | Subscribed | Delivered | Pinged | Stored | Fault

_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Published, Acknowledged, Connected, Disconnected, Subscribed, Delivered, Pinged, Stored, Fault)
}


def to_line(event: Event) -> str:
    """One line of a journal, with its end."""
    return json.dumps([type(event).__name__, *event], separators=(",", ":")) + "\n"


def from_line(line: str) -> Event:
    """The event of a whole line. Raises ValueError or KeyError for anything else."""
    name, *values = json.loads(line)
    event: Event = _KINDS[name](*values)
    return event


def payload(id: str, size: int) -> bytes:
    """A body of at least `size` bytes that carries the id."""
    return id.encode().ljust(size - 1) + b"."


def id_of(body: bytes) -> str:
    """The id in a body that `payload` made."""
    return body.split(b" ", 1)[0].rstrip(b".").decode(errors="replace")
