"""The port `Cluster`: what the nodes of one instance share beyond sessions (design section 5); only a shared store has it.

A node is named `<node_id>/<incarnation>`; each start is a new incarnation. Every `done` gets the result or a StoreError. Operations of
this port that name one node, or one parent, take effect in the order of their submission.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


class Member(NamedTuple):
    """One node of the instance. beats: its lease, a counter that it raises. lost: declared dead; what it left is being cared for by the
    node in `heir`. serving: it has begun, and takes its part of the queues and shards."""

    node: str
    beats: int
    lost: bool
    heir: str
    serving: bool = False


@dataclass(slots=True)
class Parcel:
    """What one node sends another, kept until the receiver removes it. head: small, of JSON's types; both sides are the runtime's."""

    head: Mapping[str, Any]
    body: bytes = b""


class Arrived(NamedTuple):
    """A parcel in an inbox. position: grows."""

    position: str
    parcel: Parcel


class Place(NamedTuple):
    """Where a client is. node: whose connection it has, "" for none. persistent: it has a stored session."""

    node: str
    persistent: bool


class Entry(NamedTuple):
    """One listener of a filter: a stored session (client_id), or a node (client_id "") some of whose clean sessions have it.

    node: where the session's connection is, as far as the index was told, "" for nowhere (a hint); or the node that listens.
    """

    client_id: str
    node: str
    qos: int = 0
    since: int = 0


@dataclass(slots=True)
class Listed:
    """Who listens to one filter. sessions: by Client ID."""

    sessions: dict[str, Entry] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)


class Wide(NamedTuple):
    """Whether devices' own messages of a parent are to be pulled. version: grows with each change."""

    on: bool
    version: int


@dataclass(slots=True)
class Look:
    """What has changed in a parent's index since a version. changed: filters whose listeners are others now; None: too many to tell, forget
    everything. shapes: all shapes, when they changed. listed: of the filters that were asked for, those that have listeners."""

    version: int
    changed: list[str] | None
    shapes: list[str] | None
    wide: Wide
    listed: dict[str, Listed]


class Cluster(Protocol):
    """Membership, inboxes and the index of subscriptions. Awaited operations raise StoreError."""

    # -- membership
    async def join(self, node_id: str) -> str:
        """A new incarnation with an open inbox: its node name."""

    async def beat(self, node: str, serving: bool) -> bool:
        """Raise the lease. False: declared dead, or gone."""

    async def members(self) -> list[Member]:
        """All that joined and have not left, as they are now, the lost ones too."""

    async def declare_lost(self, node: str, beats: int, heir: str) -> bool:
        """Mark it lost if its lease still stands at `beats` (or it is lost already, and its heir is no living member), and close its inbox.
        False: somebody else was first, or it lives."""

    async def leave(self, node: str) -> None:
        """Remove the member with its (empty or abandoned) inbox and what the index says of it as a node that listens."""

    # -- inboxes
    def send(self, node: str, parcels: Sequence[Parcel], done: Any) -> None:
        """Append to its inbox. Result: True; False when there is no open inbox, or it is full (100,000 parcels or 256 MiB)."""

    async def inbox(self, node: str, after: str, limit: int) -> list[Arrived]:
        """Parcels with a position greater than `after` ("" from the first), oldest first; waits up to 1 s for the first one."""

    def inbox_remove(self, node: str, positions: Sequence[str], done: Any) -> None: ...

    # -- who listens below a parent topic
    def index(self, parent: str, add: Sequence[tuple[str, Entry]], remove: Sequence[tuple[str, Entry]], done: Any) -> None:
        """Add or replace, and remove, (filter, entry): of a session or of a node. The first listener of a parent turns it wide.
        Result: `Wide`. Of entries to remove only client_id (or node) counts."""

    async def look(self, parent: str, since: int, filters: Iterable[str]) -> Look:
        """What has changed since version `since`, and who listens to `filters`."""

    def pulled(self, parent: str, node: str, version: int, done: Any) -> None:
        """This node pulls `parent` as version `version` of `Wide` says."""

    async def pulling(self, parent: str) -> dict[str, int]:
        """By node, the version that it pulls with."""

    async def narrow(self, parent: str, version: int) -> Wide:
        """Turn it narrow if nobody listens and the version is still this one."""

    # -- where clients are
    async def locate(self, client_ids: Iterable[str]) -> dict[str, Place]:
        """Those that are connected or have a stored session."""
