"""The port `Store`: what survives of sessions, messages that wait, retained messages and lifecycle events (design sections 4 and 5).
Times are milliseconds since 1970 unless a name says otherwise; every callback runs on the trio thread."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

from gateway.ports.backend import Health, Message, Queue
from gateway.ports.cluster import Cluster


class StoreError(Exception):
    """The store can't do it now (server gone, disk full, ...). The text names the store and the cure."""


class Subscription(NamedTuple):
    """since: ms, when it was made; messages stored before are not for it when they are re-read after a crash."""

    filter: str
    qos: int
    since: int


class Retained(NamedTuple):
    """The retained message of `topic`."""

    topic: str
    payload: bytes
    qos: int
    id: str
    stored_at: int


@dataclass(slots=True)
class Will:
    """A will as it lies in the store: the backend message, ready to be submitted, and whether it is retained as well (on `topic`)."""

    message: Message
    retained: Retained | None


class Event(NamedTuple):
    """A lifecycle event (contract section 7). The store sets `time` (strictly growing per client) and `seq` (growing by 1 per client) in
    the step that makes the event; `id` is its `UNIQ_KEY`."""

    id: str
    client_id: str
    type: str  # connect, disconnect, tcpclean
    time: int
    seq: int
    channel_id: str
    client_ip: str
    reason: str
    node: str


class OutboxItem(NamedTuple):
    """What waits for the backend: an event, or a will that is due. position grows; items of one client are in order."""

    position: int
    client_id: str
    event: Event | None
    will: Will | None


@dataclass(slots=True)
class Claim:
    """CONNECT: take the session of `client_id` (contract sections 1 and 7)."""

    client_id: str
    node: str
    channel_id: str
    client_ip: str
    persistent: bool  # cleanSession = false
    will: Will | None
    now: int
    event_ids: tuple[str, str]  # UNIQ_KEYs: `connect`, and the `tcpclean` of an older owner if there is one
    gentle: bool = False  # when another node is the owner, change nothing and say which (`Owned`)


class Owned(NamedTuple):
    """The answer to a gentle claim: this node's connection has the session, and has to hand it over first."""

    node: str
    channel_id: str


@dataclass(slots=True)
class Claimed:
    """epoch: the fencing number of this owner; an operation with an older one changes nothing. present: a stored session was there and is
    kept (the session-present flag). inbound: QoS 2 packet ids of the device -> (UNIQ_KEY, stored in the backend). inflight: what was sent
    and not finished, in the order of sending. backlog: stored messages that were not sent yet. dropped: filters of a stored session that
    this claim deleted."""

    epoch: int
    present: bool
    subscriptions: list[Subscription] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    inbound: dict[int, tuple[str, bool]] = field(default_factory=dict)
    inflight: list[Waiting] = field(default_factory=list)
    backlog: int = 0


@dataclass(slots=True)
class Release:
    """The connection is gone. polite: the device sent DISCONNECT (its will is discarded, and a `disconnect` event goes before the
    `tcpclean`). Not polite: the will, if any, goes to the outbox. A clean session is deleted. epoch: 0 when the claim's answer never came;
    then channel_id tells whether it had become the owner."""

    client_id: str
    epoch: int
    channel_id: str
    node: str
    polite: bool
    reason: str
    now: int
    event_ids: tuple[str, str]  # UNIQ_KEYs: `disconnect`, `tcpclean`


class OfflineMessage(NamedTuple):
    """The body that waits, stored once however many sessions wait for it. id: its UNIQ_KEY; (id, topic) is its identity."""

    id: str
    topic: str  # as the device sees it
    payload: bytes
    stored_at: int


class Phase(Enum):
    """How far the delivery of a waiting message is."""

    WAITING = 0  # never sent
    SENT = 1  # PUBLISH sent: waits for PUBACK or PUBREC
    RELEASED = 2  # PUBREL sent: waits for PUBCOMP


@dataclass(slots=True)
class Waiting:
    """One message that waits for one session. position: its place in that session's queue, growing; 0 until stored.
    source: for QoS 2, the queue and offset whose commit ends the memory of its UNIQ_KEY; None otherwise. epoch: of the connection that has
    it, 0 for none: when the session has another epoch by now, a new entry is put as never sent and an update changes nothing. alone: as far
    as is known no other session wants this message, so that its body need not be shared."""

    client_id: str
    message: OfflineMessage
    qos: int
    packet_id: int = 0
    phase: Phase = Phase.WAITING
    position: int = 0
    source: tuple[Queue, int] | None = None
    retain: bool = False
    epoch: int = 0
    alone: bool = False


class Put(NamedTuple):
    """What became of one entry. position: 0 when it was not put (it waits already, or had been delivered). owner: the node whose connection
    has the session at that moment, "" when it has none; None when there is no stored session."""

    position: int
    owner: str | None


Done = Callable[[Any], None]  # called with the result, or a StoreError


class StoreStats(NamedTuple):
    sessions: int
    subscriptions: int
    offline: int
    retained: int
    outbox: int


class Expired(NamedTuple):
    """What `expire` removed. sessions: client ids whose session is gone, with the filters it had."""

    sessions: dict[str, list[str]]
    offline: int


class Store(Protocol):
    """What survives: sessions, subscriptions, QoS 2 state, offline and retained messages, the outbox.

    Operations of one client take effect in the order in which they were submitted. `done` gets the result or a StoreError. An operation
    with an epoch that is not the session's changes nothing and yields None (False for `release`). shards: into how many parts clients are
    divided, each with an outbox of its own; `shard_of` a Client ID is the same on every node. cluster: what nodes share beyond sessions,
    None when the store serves one node alone.
    """

    shards: int
    cluster: Cluster | None

    def shard_of(self, client_id: str) -> int: ...

    def clock(self) -> int:
        """ms since 1970 by the store's clock, which is the same for all its nodes whatever theirs say."""

    async def run(self, *, task_status: Any) -> None:
        """Serve until cancelled; what was submitted before is finished first (deadline 5 s). `task_status.started()` when open.
        Raises StoreError when it can't be opened (locked by another process, wrong version, ...)."""

    # -- the registry: each of these is one atomic step, outbox included
    async def claim(self, claim: Claim) -> Claimed | Owned:
        """Make this node and channel the owner, with a greater epoch. Appends `tcpclean` (reason taken_over) and the will of an owner that
        did not release, then `connect`. not persistent: what was stored of the session is deleted. Replaces the will. Raises StoreError."""

    async def release(self, release: Release) -> bool:
        """False: no longer the owner; nothing is changed or published."""

    async def abandoned(self, node: str, now: int, new_id: Callable[[], str]) -> int:
        """Release everything that `node` still owns, impolitely with reason node_lost: a former life of this node, or a dead peer.
        Clean sessions are deleted. How many there were."""

    # -- the outbox
    async def outbox(self, shard: int, after: int, limit: int) -> list[OutboxItem]:
        """Items with position > after, oldest first."""

    def outbox_remove(self, shard: int, positions: Sequence[int], done: Done) -> None: ...

    def on_outbox(self, wake: Callable[[int], None]) -> None:
        """Call `wake` with the shard whenever this node's operations added items."""

    async def outbox_waiting(self, shards: Collection[int]) -> set[int]:
        """Those of `shards` whose outbox is not empty."""

    # -- persistent sessions
    def subscribe(self, client_id: str, epoch: int, subscriptions: Sequence[Subscription], done: Done) -> None:
        """Add or replace."""

    def unsubscribe(self, client_id: str, epoch: int, filters: Sequence[str], done: Done) -> None: ...

    def subscriptions(self) -> AsyncIterator[list[tuple[str, Subscription]]]:
        """All stored ones, as (client id, subscription), in chunks: to fill the router's tree at the start."""

    async def present(self, client_ids: Iterable[str]) -> set[str]:
        """Those that have a stored (persistent) session."""

    def inbound_put(self, client_id: str, epoch: int, packet_id: int, unique_key: str, done: Done) -> None:
        """A QoS 2 PUBLISH of the device: before it goes to the backend. Result: True."""

    def inbound_stored(self, client_id: str, epoch: int, packet_ids: Sequence[int], done: Done) -> None:
        """These are in the backend."""

    def inbound_remove(self, client_id: str, epoch: int, packet_id: int, done: Done) -> None:
        """PUBREL: before the PUBCOMP leaves."""

    # -- messages that wait for a session
    def offline_put(self, waiting: Sequence[Waiting], done: Done) -> None:
        """Append to the sessions' queues. An entry whose position is not 0 is there already: its packet_id and phase are updated. A message
        (by client and message id) that waits already or whose UNIQ_KEY is remembered is not put again; one that waits as just this entry
        of just this connection (epoch, packet id, phase) was put by a call whose outcome was unknown, and yields its position. Entries of
        sessions that don't
        exist are dropped. Result: list of `Put`, one per entry. Past the instance's limit the oldest go, counted."""

    async def offline_get(self, client_id: str, limit: int, *, newest: bool = False, after: int = 0) -> list[Waiting]:
        """Messages in phase WAITING with position > after, oldest (or newest) first. They stay until removed."""

    def offline_remove(self, client_id: str, positions: Sequence[int], done: Done) -> None:
        """Acknowledged. Of an entry with a `source` the UNIQ_KEY is remembered until `forget`."""

    def remembered(self, shards: Collection[int]) -> AsyncIterator[list[tuple[str, str, Queue, int]]]:
        """(client id, UNIQ_KEY, queue, offset) of all finished QoS 2 deliveries still remembered."""

    def forget(self, keys: Sequence[tuple[str, str]], done: Done) -> None:
        """(client id, UNIQ_KEY): their offsets are committed for good."""

    # -- retained messages
    def retain(self, topic: str, retained: Retained | None, done: Done) -> None:
        """Replace, or remove with None. Result: False when the limit of the instance refused it."""

    async def retained(self, prefix: str, matches: Callable[[str], bool], limit: int = 100_000) -> list[Retained]:
        """Those whose topic begins with `prefix` and `matches`, sorted by topic."""

    # -- the rest
    async def mark(self, name: str) -> str | None:
        """A small durable note, e.g. `bridged/<topic>`."""

    async def set_mark(self, name: str, value: str) -> None: ...

    async def expire(self, now: int, shards: Collection[int]) -> Expired:
        """Remove what is over its time in `shards`: sessions without a connection, offline messages."""

    async def health(self) -> list[Health]: ...

    def stats(self) -> StoreStats: ...

    def metrics(self) -> dict[str, float]: ...
