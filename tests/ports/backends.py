"""The backends under test, a listener that remembers, and short ways to send. Nothing here knows how a backend is built, but for `Site`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from uuid import uuid4

import trio

from backend_adapters.local import LocalBackend
from gateway.ports import Backend, BackendError, Message, Properties, Queue, Receipt, Received, Start, TopicInfo

PATIENCE = 30.0  # seconds until something that must happen is taken for a failure
_numbers = count(1)


class Site:
    """Where a backend's topics lie: each `open` finds what the one before left. Names are new ones, since servers are shared."""

    def __init__(self, name: str, make: Callable[[], Backend]) -> None:
        self.name = name
        self._make = make

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Backend]:
        backend = self._make()
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: backend.run(task_status=task_status))
            yield backend
            nursery.cancel_scope.cancel()


def local_site(folder: Path) -> Site:
    return Site("local", lambda: LocalBackend(folder / "log.db", synchronous="normal"))


def rocketmq_site(namesrv: str) -> Site:
    from backend_adapters.rocketmq_remoting.client import RocketMQ

    return Site("rocketmq", lambda: RocketMQ.open(f"rocketmq://{namesrv}", "", ""))


def new_name(kind: str = "t") -> str:
    """A topic or group that no other test run uses."""
    return f"{kind}_{uuid4().hex[:12]}_{next(_numbers)}"


async def new_topic(backend: Backend, queues: int = 4) -> TopicInfo:
    with trio.fail_after(PATIENCE):
        return await backend.create_topic(new_name(), queues)


def message_of(
    backend: Backend, topic: str | TopicInfo, body: bytes = b"body", *, tag: str = "", key: str = "key", **properties: str
) -> Message:
    name = topic if isinstance(topic, str) else topic.name
    return Message(name, body, tag, Properties(properties), key, backend.new_id())


class Answers:
    """Collects what `done` is called with, in that order."""

    def __init__(self) -> None:
        self.all: list[tuple[Message, Receipt | BackendError]] = []
        self._more = trio.Event()

    def of(self, message: Message) -> Callable[[Receipt | BackendError], None]:
        def done(answer: Receipt | BackendError) -> None:
            self.all.append((message, answer))
            self._more.set()
            self._more = trio.Event()

        return done

    async def until(self, many: int) -> None:
        with trio.fail_after(PATIENCE):
            while len(self.all) < many:
                await self._more.wait()

    def receipts(self) -> list[Receipt]:
        receipts = [answer for _, answer in self.all if isinstance(answer, Receipt)]
        assert len(receipts) == len(self.all), [answer for _, answer in self.all if isinstance(answer, BackendError)]
        return receipts


async def send(backend: Backend, messages: Iterable[Message]) -> list[Receipt]:
    """Submit all at once, and wait until all are stored; the receipts, in the order of `messages`."""
    answers = Answers()
    ordered = list(messages)
    for message in ordered:
        backend.submit(message, answers.of(message))
    await answers.until(len(ordered))
    answers.receipts()
    by_id = {message.id: answer for message, answer in answers.all}
    return [receipt for message in ordered if isinstance(receipt := by_id[message.id], Receipt)]


async def send_one(backend: Backend, message: Message) -> Receipt | BackendError:
    answers = Answers()
    backend.submit(message, answers.of(message))
    await answers.until(1)
    return answers.all[0][1]


class Recorder:
    """A listener that remembers, and that asserts what the port promises to every listener.

    hold: which messages it holds. gate: when set, `received` waits for it after it took the messages.
    """

    def __init__(self, hold: Callable[[Received], bool] = lambda _: False) -> None:
        self.hold = hold
        self.gate: trio.Event | None = None
        self.positions: dict[Queue, int] = {}
        self.gone: list[Queue] = []
        self.messages: list[Received] = []
        self.busy: set[Queue] = set()
        self.returned = 0  # calls of `received` that came to their end
        self._last: dict[Queue, int] = {}
        self._more = trio.Event()

    def assigned(self, queue: Queue, position: int) -> None:
        assert queue not in self.positions, "assigned twice"
        self.positions[queue] = position
        self._last[queue] = position - 1

    def revoked(self, queue: Queue) -> None:
        del self.positions[queue]
        self.gone.append(queue)
        self._tell()

    async def received(self, messages: list[Received]) -> None:
        queue = messages[0].queue
        assert queue in self.positions, "received before assigned, or after revoked"
        assert queue not in self.busy, "received while received"
        self.busy.add(queue)
        try:
            for message in messages:
                assert message.queue == queue, "one call, one queue"
                assert message.offset > self._last[queue], "offsets must ascend"
                self._last[queue] = message.offset
                if self.hold(message):
                    message.hold()
            self.messages += messages
            self._tell()
            if self.gate is not None:
                await self.gate.wait()
            else:
                await trio.lowlevel.checkpoint()
            self.returned += 1
        finally:
            self.busy.discard(queue)
            self._tell()

    def _tell(self) -> None:
        self._more.set()
        self._more = trio.Event()

    async def until(self, many: int) -> list[Received]:
        """Wait for so many messages, and until `received` returned; more messages than that are a failure."""
        await self.when(lambda: len(self.messages) >= many and (not self.busy or self.gate is not None))
        assert len(self.messages) == many, f"{len(self.messages)} messages instead of {many}"
        return self.messages

    async def when(self, true: Callable[[], bool]) -> None:
        """Wait for a condition that messages or revocations bring about."""
        with trio.fail_after(PATIENCE):
            while not true():
                await self._more.wait()

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.messages]

    @property
    def ids(self) -> list[str]:
        return [message.id for message in self.messages]


async def send_bodies(backend: Backend, topic: TopicInfo, first: int, many: int, tag: str = "", keys: int = 5) -> list[Receipt]:
    """Messages whose bodies are the numbers from `first` on. They are readable when it returns."""
    messages = [message_of(backend, topic, b"%d" % n, tag=tag, key=f"k{n % keys}") for n in range(first, first + many)]
    receipts = await send(backend, messages)
    await readable(backend, topic, {message.id for message in messages})
    return receipts


async def readable(backend: Backend, topic: TopicInfo, ids: set[str]) -> None:
    """Wait until these messages can be read. RocketMQ acknowledges a message some milliseconds before its queue's end moves."""
    reader = Recorder()
    consumer = await backend.consume(topic.name, None, None, reader, start=Start.FIRST)
    await reader.when(lambda: ids <= set(reader.ids))
    await consumer.close()


def numbers(listener: Recorder) -> list[int]:
    """The bodies that are numbers, sorted."""
    return sorted(int(body) for body in listener.bodies if body.isdigit())


async def eventually(true: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Look every 50 ms until it is so."""
    with trio.fail_after(seconds):
        while not true():
            await trio.sleep(0.05)


async def quiet(backend: Backend, topic: TopicInfo, listener: Recorder, tag: str = "") -> None:
    """Wait until `listener` got a message that is sent now on every queue: whatever was to come before has come by then."""
    marks: dict[Queue, Message] = {}
    for number in count():
        mark = message_of(backend, topic, b"mark", tag=tag, key=f"mark{number}")
        receipt = (await send(backend, [mark]))[0]
        marks.setdefault(receipt.queue, mark)
        if len(marks) == len(topic.queues):
            break
    wanted = {mark.id for mark in marks.values()}
    await listener.when(lambda: wanted <= set(listener.ids))
    listener.messages = [message for message in listener.messages if message.body != b"mark"]
