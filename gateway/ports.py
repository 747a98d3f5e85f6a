"""The two ports of the gateway, `Backend` and `Store`, and the values that cross them (design section 3).

Both ports are shaped for batches: what is asked for while one batch is under way is the next batch. Operations of the hot path take a
`done` callback and never block; the others are coroutines. Every callback runs on the trio thread. Times are milliseconds since 1970
unless a name says otherwise. No word of MQTT's is needed to implement `Backend`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

# ---------------------------------------------------------------- Backend: values


class Queue(NamedTuple):
    """One queue of a topic: RocketMQ's (topic, broker name, queue id)."""

    topic: str
    broker: str
    id: int


class Properties(dict[str, str]):
    """User properties of a message. Shared by many messages and never changed once submitted.

    `wire` is a place where an adapter keeps its own encoding, so that messages that share the object are encoded once.
    """

    __slots__ = ("wire",)
    wire: bytes | None

    def __init__(self, *args: Any, **kwargs: str) -> None:
        super().__init__(*args, **kwargs)
        self.wire = None


class Message:
    """A message to be stored in the backend.

    topic: the RocketMQ topic. body: any bytes, the empty ones too. tag: "" for none. key: messages with the same key share one queue and
    keep their order. id: `UNIQ_KEY`, from `Backend.new_id`. ordered: while the broker of its queue is down it waits for it, instead of
    moving to the next queue.
    """

    __slots__ = ("body", "id", "key", "ordered", "properties", "tag", "topic")

    def __init__(self, topic: str, body: bytes, tag: str, properties: Properties, key: str, id: str, ordered: bool = False) -> None:
        self.topic = topic
        self.body = body
        self.tag = tag
        self.properties = properties
        self.key = key
        self.id = id
        self.ordered = ordered


class Receipt(NamedTuple):
    """The backend has stored the message, at this place."""

    queue: Queue
    offset: int


class Refusal(Enum):
    """Why a backend will never store a message, or can't serve a topic. Everything else is retried inside the adapter."""

    TOO_LARGE = "too_large"
    NO_SUCH_TOPIC = "no_such_topic"
    NOT_PERMITTED = "not_permitted"
    INVALID = "invalid"
    UNAVAILABLE = "unavailable"  # of awaited calls only (topic, lag, ...): no server answered in time
    CLOSED = "closed"


class BackendError(Exception):
    """A definite failure. The text names the server, the thing and the cure; it holds no secret."""

    def __init__(self, refusal: Refusal, text: str) -> None:
        super().__init__(text)
        self.refusal = refusal


Stored = Callable[[Receipt | BackendError], None]


class Received:
    """A message that was read from the backend.

    stored_at, born_at: ms, the broker's and the producer's clock. replayed: it was already in the queue when the queue was assigned, so it
    may have been read before. A listener that needs the message after `received` returned calls `hold`, once for each reason; when the
    last hold is released the message is resolved. What is not held when `received` returns is resolved.
    """

    __slots__ = ("_settled", "body", "born_at", "holds", "id", "offset", "properties", "queue", "replayed", "stored_at", "tag")

    def __init__(
        self,
        queue: Queue,
        offset: int,
        tag: str,
        body: bytes,
        properties: dict[str, str],
        id: str,
        stored_at: int,
        born_at: int,
        replayed: bool,
        settled: Callable[[], None],
    ) -> None:
        self.queue = queue
        self.offset = offset
        self.tag = tag
        self.body = body
        self.properties = properties
        self.id = id
        self.stored_at = stored_at
        self.born_at = born_at
        self.replayed = replayed
        self.holds = 0
        self._settled = settled

    def hold(self) -> None:
        """One more reason not to commit past this message."""
        self.holds += 1

    def release(self) -> None:
        """One reason less; the last one resolves the message (its tracker moves the committable offset)."""
        self.holds -= 1
        if not self.holds:
            self._settled()


class Listener(Protocol):
    """Who consumes a topic. `received` is called for one queue at a time per queue, in ascending offsets, never concurrently for one
    queue."""

    def assigned(self, queue: Queue, position: int) -> None: ...
    def revoked(self, queue: Queue) -> None: ...
    async def received(self, messages: list[Received]) -> None: ...


class Start(Enum):
    """Where a consumer without a committed offset begins."""

    FIRST = "first"  # the queue's min offset
    LAST = "last"  # the queue's max offset: only what comes from now on


class Consumer(Protocol):
    """A running subscription of one topic."""

    async def retag(self, tags: frozenset[str] | None) -> None:
        """Change the tags (None: all). Returns when every assigned queue reads from its position with the new ones; an answer of an
        older, held pull is discarded, since it would jump over what it did not match."""

    async def lag(self) -> dict[Queue, int]:
        """Messages between the committed offset and the end, per assigned queue. Raises BackendError (UNAVAILABLE)."""

    def committed(self, queue: Queue) -> int:
        """The offset last committed for `queue`, or -1."""

    def reassign(self) -> None:
        """Ask `owns` again for every queue (the set of live nodes changed)."""

    async def close(self) -> None:
        """Stop pulling, commit what is resolved (deadline 3 s), call `revoked` for each queue."""


class TopicInfo(NamedTuple):
    """What the backend knows of a topic."""

    name: str
    queues: tuple[Queue, ...]  # readable and writable ones, sorted


class Health(NamedTuple):
    """One server's or port's state, as `/readyz` and `check` show it. cure: what to do about it, "" when ok."""

    name: str
    ok: bool
    detail: str
    cure: str = ""


class Capabilities(NamedTuple):
    ordered: bool
    offsets: bool
    delay: bool


class Backend(Protocol):
    """The message log: RocketMQ, or the embedded one. Sends are retried inside until they are stored or definitely refused."""

    capabilities: Capabilities

    async def run(self, *, task_status: Any) -> None:
        """Serve until cancelled. `task_status.started()` when calls are accepted; the servers need not be there yet."""

    def new_id(self) -> str:
        """A new `UNIQ_KEY`: 32 hex digits in the layout of RocketMQ's own, unique over nodes and restarts."""

    def submit(self, message: Message, done: Stored) -> None:
        """Store a message; never blocks. Messages with one key are stored in the order of their submission, and their `done` are called in
        that order. Callers look at `full` first and stop taking more work while it is true."""

    @property
    def full(self) -> bool:
        """The backlog (messages submitted and unstored) is at its bound in count or bytes."""

    async def room(self) -> None:
        """Wait until not `full`."""

    async def drain(self) -> None:
        """Wait until the backlog is empty."""

    async def topic(self, name: str) -> TopicInfo | None:
        """None: no such topic. Raises BackendError (UNAVAILABLE, NOT_PERMITTED)."""

    async def create_topic(self, name: str, queues: int = 8) -> TopicInfo:
        """Create it if it isn't there. Raises BackendError."""

    async def commit_end(self, topic: str, group: str) -> None:
        """Commit the end of each queue of `topic` for `group`, so that what is stored already is never read. Raises BackendError."""

    async def members(self, group: str) -> list[str]:
        """Other live clients that consume in `group`, on any machine. Raises BackendError (UNAVAILABLE, NOT_PERMITTED)."""

    async def consume(
        self,
        topic: str,
        tags: frozenset[str] | None,
        group: str | None,
        listener: Listener,
        *,
        start: Start | int = Start.FIRST,
        owns: Callable[[Queue], bool] | None = None,
    ) -> Consumer:
        """Begin to read `topic`. group None: no offsets are kept (a reader). start: where queues without a committed offset begin, an int
        being a time in ms; queues that appear later begin at their first offset. owns: which queues this node reads, None all.
        Returns when the first assignment is done. Raises BackendError."""

    async def health(self) -> list[Health]:
        """Each server and whether it answers; never raises, takes 3 s at most."""

    def metrics(self) -> dict[str, float]:
        """Gauges and counters by name, for `/metrics`: backlog, unresolved, retries, ..."""


# ---------------------------------------------------------------- Store: values


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


@dataclass(slots=True)
class Claimed:
    """epoch: the fencing number of this owner; an operation with an older one changes nothing. present: a stored session was there and is
    kept (the session-present flag). inbound: QoS 2 packet ids of the device -> (UNIQ_KEY, stored in the backend). inflight: what was sent
    and not finished, in the order of sending. backlog: stored messages that were not sent yet."""

    epoch: int
    present: bool
    subscriptions: list[Subscription] = field(default_factory=list)
    inbound: dict[int, tuple[str, bool]] = field(default_factory=dict)
    inflight: list[Waiting] = field(default_factory=list)
    backlog: int = 0


@dataclass(slots=True)
class Release:
    """The connection is gone. polite: the device sent DISCONNECT (its will is discarded, and a `disconnect` event goes before the
    `tcpclean`). Not polite: the will, if any, goes to the outbox. A clean session is deleted."""

    client_id: str
    epoch: int
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
    source: for QoS 2, the queue and offset whose commit ends the memory of its UNIQ_KEY; None otherwise."""

    client_id: str
    message: OfflineMessage
    qos: int
    packet_id: int = 0
    phase: Phase = Phase.WAITING
    position: int = 0
    source: tuple[Queue, int] | None = None
    retain: bool = False


Done = Callable[[Any], None]  # called with the result, or a StoreError


class StoreStats(NamedTuple):
    sessions: int
    subscriptions: int
    offline: int
    retained: int
    outbox: int


class Expired(NamedTuple):
    """What `expire` removed. sessions: client ids whose session is gone."""

    sessions: list[str]
    offline: int


class Store(Protocol):
    """What survives: sessions, subscriptions, QoS 2 state, offline and retained messages, the outbox.

    Operations of one client take effect in the order in which they were submitted. `done` gets the result or a StoreError. An operation
    with an epoch that is not the session's changes nothing and yields None (False for `release`).
    """

    async def run(self, *, task_status: Any) -> None:
        """Serve until cancelled; what was submitted before is finished first (deadline 5 s). `task_status.started()` when open.
        Raises StoreError when it can't be opened (locked by another process, wrong version, ...)."""

    # -- the registry: each of these is one atomic step, outbox included
    async def claim(self, claim: Claim) -> Claimed:
        """Make this node and channel the owner, with a greater epoch. Appends `tcpclean` (reason taken_over) and the will of an owner that
        did not release, then `connect`. not persistent: what was stored of the session is deleted. Replaces the will. Raises StoreError."""

    async def release(self, release: Release) -> bool:
        """False: no longer the owner; nothing is changed or published."""

    async def abandoned(self, node: str, now: int, new_id: Callable[[], str]) -> int:
        """Release everything that `node` still owns, impolitely with reason node_lost: a former life of this node, or a dead peer.
        Clean sessions are deleted. How many there were."""

    # -- the outbox
    async def outbox(self, after: int, limit: int) -> list[OutboxItem]:
        """Items with position > after, oldest first."""

    def outbox_remove(self, positions: Sequence[int], done: Done) -> None: ...

    def on_outbox(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever items were added."""

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
        (by client and message id) that waits already or whose UNIQ_KEY is remembered is not put again. Entries of sessions that don't
        exist are dropped. Result: list, per entry its position, or 0 when it was not put. Past the instance's limit the oldest go,
        counted."""

    async def offline_get(self, client_id: str, limit: int, *, newest: bool = False, after: int = 0) -> list[Waiting]:
        """Messages in phase WAITING with position > after, oldest (or newest) first. They stay until removed."""

    def offline_remove(self, client_id: str, positions: Sequence[int], done: Done) -> None:
        """Acknowledged. Of an entry with a `source` the UNIQ_KEY is remembered until `forget`."""

    def remembered(self) -> AsyncIterator[list[tuple[str, str, Queue, int]]]:
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

    async def expire(self, now: int) -> Expired:
        """Remove what is over its time: sessions without a connection, offline messages."""

    async def health(self) -> list[Health]: ...

    def stats(self) -> StoreStats: ...

    def metrics(self) -> dict[str, float]: ...
