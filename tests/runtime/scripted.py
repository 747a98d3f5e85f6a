"""The two ports as scripts: they answer when and as a test says, and remember what they were asked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from itertools import count
from typing import Any

import trio

from gateway.ports import (
    Backend,
    BackendError,
    Capabilities,
    Claim,
    Claimed,
    Expired,
    Health,
    Listener,
    Message,
    OutboxItem,
    Put,
    Queue,
    Receipt,
    Received,
    Refusal,
    Release,
    Retained,
    Start,
    Store,
    StoreError,
    StoreStats,
    Subscription,
    TopicInfo,
    Waiting,
)

QUEUE = Queue("known", "b", 0)


# ---------------------------------------------------------------- the store


class ScriptedStore(Store):
    """Answers at once, unless the operation's name is in `failing` (a StoreError) or `holding` (its answer waits for `answer`). calls:
    every operation with its arguments. claimed, kept, backlog, items, before: what it answers to reads."""

    shards = 1
    cluster = None

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.failing: set[str] = set()
        self.holding: set[str] = set()
        self.unanswered: deque[tuple[str, Callable[[], None]]] = deque()
        self.marks: dict[str, str] = {}
        self.claimed: Callable[[Claim, int], Claimed] = lambda claim, epoch: Claimed(epoch, False)
        self.kept: list[Retained] = []
        self.backlog: list[Waiting] = []
        self.items: list[OutboxItem] = []
        self.before: list[tuple[str, Subscription]] = []
        self.had: set[tuple[str, str]] = set()
        self._numbers = count(1)
        self._wake: Callable[[int], None] = lambda _shard: None

    def of(self, name: str) -> list[Any]:
        """The arguments of every call of `name`."""
        return [arguments for called, arguments in self.calls if called == name]

    def answer(self, number: int = 1000) -> None:
        """The oldest held answers."""
        for _ in range(min(number, len(self.unanswered))):
            self.unanswered.popleft()[1]()

    def _do(self, name: str, arguments: Any, done: Callable[[Any], None], result: Callable[[], Any]) -> None:
        self.calls.append((name, arguments))
        if name in self.holding:
            self.unanswered.append((name, lambda: self._finish(name, done, result)))
        else:
            self._finish(name, done, result)

    def _finish(self, name: str, done: Callable[[Any], None], result: Callable[[], Any]) -> None:
        done(StoreError(f"{name} fails") if name in self.failing else result())

    async def _ask(self, name: str, arguments: Any, result: Callable[[], Any]) -> Any:
        answered = trio.Event()
        answers: list[Any] = []

        def done(answer: Any) -> None:
            answers.append(answer)
            answered.set()

        self._do(name, arguments, done, result)
        await answered.wait()
        if isinstance(answers[0], StoreError):
            raise answers[0]
        return answers[0]

    def shard_of(self, client_id: str) -> int:
        return 0

    def clock(self) -> int:
        return time.time_ns() // 1_000_000

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def claim(self, claim: Claim) -> Claimed:
        found = await self._ask("claim", claim, lambda: self.claimed(claim, next(self._numbers)))
        assert isinstance(found, Claimed)
        return found

    async def release(self, release: Release) -> bool:
        return bool(await self._ask("release", release, lambda: True))

    async def abandoned(self, node: str, now: int, new_id: Callable[[], str]) -> int:
        return int(await self._ask("abandoned", node, lambda: 0))

    async def outbox(self, shard: int, after: int, limit: int) -> list[OutboxItem]:
        found: list[OutboxItem] = await self._ask("outbox", after, lambda: [item for item in self.items if item.position > after][:limit])
        return found

    async def outbox_waiting(self, shards: Collection[int]) -> set[int]:
        return set(shards) if self.items else set()

    def outbox_remove(self, shard: int, positions: Sequence[int], done: Callable[[Any], None]) -> None:
        def remove() -> None:
            self.items = [item for item in self.items if item.position not in positions]

        self._do("outbox_remove", list(positions), done, remove)

    def on_outbox(self, wake: Callable[[int], None]) -> None:
        self._wake = wake

    def put_out(self, *items: OutboxItem) -> None:
        """These are in the outbox now."""
        self.items += items
        self._wake(0)

    def subscribe(self, client_id: str, epoch: int, subscriptions: Sequence[Subscription], done: Callable[[Any], None]) -> None:
        self._do("subscribe", (client_id, [each.filter for each in subscriptions]), done, lambda: True)

    def unsubscribe(self, client_id: str, epoch: int, filters: Sequence[str], done: Callable[[Any], None]) -> None:
        self._do("unsubscribe", (client_id, list(filters)), done, lambda: True)

    async def subscriptions(self) -> AsyncIterator[list[tuple[str, Subscription]]]:
        yield self.before

    async def present(self, client_ids: Iterable[str]) -> set[str]:
        return set()

    def inbound_put(self, client_id: str, epoch: int, packet_id: int, unique_key: str, done: Callable[[Any], None]) -> None:
        self._do("inbound_put", (packet_id, unique_key), done, lambda: True)

    def inbound_stored(self, client_id: str, epoch: int, packet_ids: Sequence[int], done: Callable[[Any], None]) -> None:
        self._do("inbound_stored", list(packet_ids), done, lambda: True)

    def inbound_remove(self, client_id: str, epoch: int, packet_id: int, done: Callable[[Any], None]) -> None:
        self._do("inbound_remove", packet_id, done, lambda: True)

    def offline_put(self, waiting: Sequence[Waiting], done: Callable[[Any], None]) -> None:
        copies = list(waiting)
        self._do("offline_put", copies, done, lambda: [Put(self._place(each), "") for each in copies])

    def _place(self, waiting: Waiting) -> int:
        """A message that waits already, or that `had` names, is not put again."""
        if waiting.position:
            return waiting.position
        key = (waiting.client_id, waiting.message.id)
        if key in self.had:
            return 0
        self.had.add(key)
        return next(self._numbers)

    async def offline_get(self, client_id: str, limit: int, *, newest: bool = False, after: int = 0) -> list[Waiting]:
        def read() -> list[Waiting]:
            return sorted((each for each in self.backlog if each.position > after), key=lambda each: each.position, reverse=newest)[:limit]

        found: list[Waiting] = await self._ask("offline_get", (limit, after), read)
        return found

    def offline_remove(self, client_id: str, positions: Sequence[int], done: Callable[[Any], None]) -> None:
        def remove() -> None:
            self.backlog = [each for each in self.backlog if each.position not in positions]

        self._do("offline_remove", list(positions), done, remove)

    async def remembered(self, shards: Collection[int]) -> AsyncIterator[list[tuple[str, str, Queue, int]]]:
        yield []

    def forget(self, keys: Sequence[tuple[str, str]], done: Callable[[Any], None]) -> None:
        self._do("forget", list(keys), done, lambda: None)

    def retain(self, topic: str, retained: Retained | None, done: Callable[[Any], None]) -> None:
        self._do("retain", (topic, retained), done, lambda: True)

    async def retained(self, prefix: str, matches: Callable[[str], bool], limit: int = 100_000) -> list[Retained]:
        found: list[Retained] = await self._ask("retained", prefix, lambda: [each for each in self.kept if matches(each.topic)])
        return found

    async def mark(self, name: str) -> str | None:
        found: str | None = await self._ask("mark", name, lambda: self.marks.get(name))
        return found

    async def set_mark(self, name: str, value: str) -> None:
        self.marks[name] = value

    async def expire(self, now: int, shards: Collection[int]) -> Expired:
        return Expired({}, 0)

    async def health(self) -> list[Health]:
        return []

    def stats(self) -> StoreStats:
        return StoreStats(0, 0, len(self.backlog), len(self.kept), len(self.items))

    def metrics(self) -> dict[str, float]:
        return {}


# ---------------------------------------------------------------- the backend


class ScriptedConsumer:
    """retags: every set of tags that was asked for."""

    def __init__(self, topic: str, tags: frozenset[str] | None, listener: Listener) -> None:
        self.topic = topic
        self.retags: list[frozenset[str] | None] = [tags]
        self.listener = listener
        self.behind: dict[Queue, int] = {}
        self.open = trio.Event()  # `retag` returns when it is set
        self.open.set()
        self.closed = False

    async def retag(self, tags: frozenset[str] | None) -> None:
        self.retags.append(tags)
        await self.open.wait()

    async def lag(self) -> dict[Queue, int]:
        return self.behind

    def committed(self, queue: Queue) -> int:
        return 0

    def reassign(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        self.closed = True


class ScriptedBackend(Backend):
    """Stores at once, unless `holding`. submitted: the messages with their `done`; those unanswered while `holding`."""

    capabilities = Capabilities(True, True, False)

    def __init__(self) -> None:
        self.submitted: list[Message] = []
        self.unanswered: list[tuple[Message, Callable[[Any], None]]] = []
        self.holding = False
        self.refusal: Refusal | None = None
        self.down: Refusal | None = None  # what `topic` raises
        self.absent: set[str] = set()  # topics that don't exist
        self.asked: list[str] = []
        self.consumers: dict[str, ScriptedConsumer] = {}
        self._full = False
        self._numbers = count()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    def new_id(self) -> str:
        return f"{next(self._numbers):032X}"

    def submit(self, message: Message, done: Callable[[Any], None]) -> None:
        self.submitted.append(message)
        if self.holding:
            self.unanswered.append((message, done))
        else:
            done(self._answer())

    def _answer(self) -> Receipt | BackendError:
        return BackendError(self.refusal, self.refusal.value) if self.refusal else Receipt(QUEUE, next(self._numbers))

    def answer(self, *indexes: int) -> None:
        """The unanswered ones at these places, in this order; all of them without any."""
        waiting = self.unanswered
        chosen = [waiting[index] for index in indexes] if indexes else list(waiting)
        self.unanswered = [each for each in waiting if each not in chosen]
        for _, done in chosen:
            done(self._answer())

    @property
    def full(self) -> bool:
        return self._full

    @full.setter
    def full(self, full: bool) -> None:
        self._full = full

    async def room(self) -> None:
        raise NotImplementedError

    async def drain(self) -> None:
        await trio.lowlevel.checkpoint()

    async def topic(self, name: str) -> TopicInfo | None:
        self.asked.append(name)
        await trio.lowlevel.checkpoint()
        if self.down is not None:
            raise BackendError(self.down, f"{name}: {self.down.value}")
        return None if name in self.absent else TopicInfo(name, (Queue(name, "b", 0),))

    async def create_topic(self, name: str, queues: int = 8) -> TopicInfo:
        self.absent.discard(name)
        return TopicInfo(name, (Queue(name, "b", 0),))

    async def commit_end(self, topic: str, group: str) -> None:
        await trio.lowlevel.checkpoint()

    async def members(self, group: str) -> list[str]:
        return []

    async def consume(
        self,
        topic: str,
        tags: frozenset[str] | None,
        group: str | None,
        listener: Listener,
        *,
        start: Start | int = Start.FIRST,
        owns: Callable[[Queue], bool] | None = None,
    ) -> ScriptedConsumer:
        made = self.consumers[topic] = ScriptedConsumer(topic, tags, listener)
        await trio.lowlevel.checkpoint()
        return made

    async def health(self) -> list[Health]:
        return []

    def metrics(self) -> dict[str, float]:
        return {}

    async def give(self, *messages: Received) -> None:
        """These are read from the backend now. What nobody holds is resolved, as adapters do it."""
        for message in messages:
            message.hold()
        await self.consumers[messages[0].queue.topic].listener.received(list(messages))
        for message in messages:
            message.release()
