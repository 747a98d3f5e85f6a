"""The embedded backend against a naive model, over any sequence of sending, consuming, holding, releasing, retagging and restarting."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from zlib import crc32

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.ports import Backend, Consumer, Message, Properties, Queue, Received
from tests.ports.backends import PATIENCE, Recorder, local_site, send

QUEUES = 2
TAGS = ["", "A", "B"]
FILTERS = [None, frozenset({"A"}), frozenset({"A", "B"}), frozenset({""})]


class Send(NamedTuple):
    """So many messages at once: (key, tag, body)."""

    messages: Sequence[tuple[str, str, bytes]]


class Consume(NamedTuple):
    """Begin to read, unless it is being read. hold: one of so many messages is held, 0 = none."""

    group: int
    tags: frozenset[str] | None
    hold: int


class Retag(NamedTuple):
    group: int
    tags: frozenset[str] | None


class Release(NamedTuple):
    """The n-th of the held ones, n modulo how many there are."""

    group: int
    n: int


class Close(NamedTuple):
    group: int


class Restart(NamedTuple):
    """The backend ends, without a close of its consumers, and is opened again."""


Step = Send | Consume | Retag | Release | Close | Restart
_messages = st.tuples(st.sampled_from("abcdef"), st.sampled_from(TAGS), st.binary(max_size=40))
_groups = st.integers(0, 1)
_steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(Send, st.lists(_messages, min_size=1, max_size=30)),
    st.builds(Consume, _groups, st.sampled_from(FILTERS), st.sampled_from([1, 2, 3, 0])),
    st.builds(Retag, _groups, st.sampled_from(FILTERS)),
    st.builds(Release, _groups, st.integers(0, 50)),
    st.builds(Close, _groups),
    st.builds(Restart),
)


class _Group:
    """A group as the model sees it. low, latest: per queue, where the next consumer may begin: at the lowest unresolved message, or before
    it where only messages lie that were never wanted. Everything from where it begins is expected."""

    def __init__(self, queues: Sequence[Queue]) -> None:
        self.low = dict.fromkeys(queues, 0)
        self.latest = dict.fromkeys(queues, 0)
        self.consumer: Consumer | None = None
        self.listener = Recorder()
        self.expected: set[tuple[Queue, int]] = set()
        self.possible: set[tuple[Queue, int]] = set()  # not wanted when stored; it comes if it was not passed yet when the tags changed
        self.tags: frozenset[str] | None = None

    def wants(self, message: Message) -> bool:
        return self.tags is None or message.tag in self.tags

    def held(self) -> list[Received]:
        return [message for message in self.listener.messages if message.holds]


class _Run:
    def __init__(self, folder: Path) -> None:
        self.site = local_site(folder)
        self.stack = AsyncExitStack()
        self.backend: Backend
        self.log: dict[Queue, list[Message]] = {}
        self.groups: list[_Group] = []

    async def begin(self) -> None:
        self.backend = await self.stack.enter_async_context(self.site.open())
        if not self.log:
            topic = await self.backend.create_topic("t", QUEUES)
            self.log = {queue: [] for queue in topic.queues}
            self.groups = [_Group(topic.queues), _Group(topic.queues)]

    async def do(self, step: Step) -> None:
        match step:
            case Send(messages):
                await self.send(messages)
            case Consume(group, tags, hold):
                await self.consume(self.groups[group], f"g{group}", tags, hold)
            case Retag(group, tags):
                if (known := self.groups[group]).consumer is not None:
                    await known.consumer.retag(tags)
                    known.tags = tags
                    known.possible |= self.wanted(known, dict.fromkeys(self.log, 0))
            case Release(group, n):
                if held := self.groups[group].held():
                    held[n % len(held)].release()
            case Close(group):
                await self.close(self.groups[group])
            case Restart():
                await self.stack.aclose()
                for known in self.groups:
                    self.ended(known)
                await self.begin()

    async def send(self, items: Sequence[tuple[str, str, bytes]]) -> None:
        sent = [Message("t", body, tag, Properties(n=str(n)), key, self.backend.new_id()) for n, (key, tag, body) in enumerate(items)]
        for message, receipt in zip(sent, await send(self.backend, sent), strict=True):
            queue = list(self.log)[crc32(message.key.encode()) % QUEUES]
            assert receipt == (queue, len(self.log[queue]))
            self.log[queue].append(message)
            for group in self.groups:
                if group.consumer is not None and group.wants(message):
                    group.expected.add((queue, receipt.offset))
        await self.settle()

    async def consume(self, group: _Group, name: str, tags: frozenset[str] | None, hold: int) -> None:
        if group.consumer is not None:
            return
        group.listener = Recorder(hold=lambda message: bool(hold) and message.offset % hold == 0)
        group.tags = tags
        group.consumer = await self.backend.consume("t", tags, name, group.listener)
        for queue, position in group.listener.positions.items():
            assert group.low[queue] <= position <= group.latest[queue]
        group.low = dict(group.listener.positions)
        group.expected, group.possible = self.wanted(group, group.low), set()
        await self.settle()

    def wanted(self, group: _Group, begins: dict[Queue, int]) -> set[tuple[Queue, int]]:
        """What lies in the log from there on and has one of the group's tags."""
        return {
            (queue, offset)
            for queue, messages in self.log.items()
            for offset, message in enumerate(messages)
            if offset >= begins[queue] and group.wants(message)
        }

    async def settle(self) -> None:
        """Everybody got what was expected, as it was sent. That offsets ascend the listener sees itself."""
        for group in self.groups:
            if group.consumer is None:
                continue
            listener, expected = group.listener, group.expected
            await listener.when(lambda: expected <= {(m.queue, m.offset) for m in listener.messages} and not listener.busy)  # noqa: B023
            assert {(m.queue, m.offset) for m in listener.messages} <= expected | group.possible
            for got in listener.messages:
                sent = self.log[got.queue][got.offset]
                assert (got.id, got.tag, got.body, got.properties) == (sent.id, sent.tag, sent.body, dict(sent.properties))

    async def close(self, group: _Group) -> None:
        if group.consumer is not None:
            await group.consumer.close()
            self.ended(group)

    def ended(self, group: _Group) -> None:
        """The next one begins at the lowest held offset of each queue, or after the last message that was given to this one."""
        if group.consumer is None:
            return
        group.consumer = None
        for queue, messages in self.log.items():
            given = [message.offset + 1 for message in group.listener.messages if message.queue == queue]
            held = [message.offset for message in group.held() if message.queue == queue]
            group.latest[queue] = min(held, default=len(messages))
            group.low[queue] = min(held, default=max([group.low[queue], *given]))
        group.listener = Recorder()


async def _play(steps: Sequence[Step]) -> None:
    with TemporaryDirectory() as folder, trio.fail_after(PATIENCE):
        run = _Run(Path(folder))
        async with run.stack:
            await run.begin()
            for step in [*steps, Restart(), *(Consume(group, None, 0) for group in range(2))]:
                await run.do(step)


@settings(max_examples=50, deadline=None)
@given(st.lists(_steps, min_size=5, max_size=20))
def test_any_sequence_of_steps_does_what_the_model_does(steps: Sequence[Step]) -> None:
    trio.run(_play, steps)
