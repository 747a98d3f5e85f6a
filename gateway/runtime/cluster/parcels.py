"""What nodes write to each other: the heads of parcels, to and from JSON's types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from gateway.ports import Parcel, Queue, Received
from gateway.runtime.outbound import Outbound


class Kind(StrEnum):
    """What a parcel is."""

    MESSAGE = "message"  # for clients of the receiver
    FEED = "feed"  # something was put for a session whose connection the receiver has
    TAKE = "take"  # another node has a CONNECT for a session whose connection the receiver has
    LOOK = "look"  # a parent is to be pulled wider than before


class Carried(NamedTuple):
    """A message in a parcel. topic: what subscriptions are matched with. clients: QoS by Client ID. fleet: the receiver's clean sessions
    with a matching subscription get it too. p2p: to one client that needs no subscription."""

    message: Outbound
    topic: str
    clients: Mapping[str, int]
    fleet: bool
    replayed: bool


def pack(message: Outbound, topic: str, clients: Mapping[str, int], fleet: bool, replayed: bool) -> Parcel:
    """message: with what was received from the backend."""
    received = message.received
    assert received is not None
    head = {
        "kind": Kind.MESSAGE,
        "topic": topic,
        "shown": message.topic,
        "qos": message.qos,
        "id": message.id,
        "stored_at": message.stored_at,
        "place": [*received.queue, received.offset],
        "clients": dict(clients),
        "fleet": fleet,
        "replayed": replayed,
        "volatile": message.volatile,
    }
    return Parcel(head, message.payload)


def unpack(parcel: Parcel, settled: Callable[[], None]) -> Carried:
    """settled: called when nobody holds the message any more; the caller holds it first."""
    head: Mapping[str, Any] = parcel.head
    topic, broker, id, offset = head["place"]
    queue = Queue(topic, broker, id)
    received = Received(queue, offset, "", parcel.body, {}, head["id"], head["stored_at"], head["stored_at"], head["replayed"], settled)
    message = Outbound(head["shown"], parcel.body, head["qos"], head["id"], head["stored_at"], received, volatile=head["volatile"])
    return Carried(message, head["topic"], head["clients"], head["fleet"], head["replayed"])


def feed(client_id: str, position: int) -> Parcel:
    """position: its place in the store, 0 when it is nothing live."""
    return Parcel({"kind": Kind.FEED, "client": client_id, "position": position})


def take(client_id: str, channel_id: str) -> Parcel:
    """channel_id: of the connection that has to go."""
    return Parcel({"kind": Kind.TAKE, "client": client_id, "channel": channel_id})


def look(parent: str) -> Parcel:
    return Parcel({"kind": Kind.LOOK, "parent": parent})
