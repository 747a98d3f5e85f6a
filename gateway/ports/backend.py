"""The port `Backend`: the message log, RocketMQ or the embedded one (design sections 3, 4 and 6). No word of MQTT's is needed to
implement it. Times are milliseconds since 1970 unless a name says otherwise; every callback runs on the trio thread."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple, Protocol


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
