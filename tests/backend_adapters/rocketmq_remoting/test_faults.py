"""Brokers killed and frozen under load, with an account of every message: nothing acknowledged is missing, ids are distinct, and the order
of each key holds once repeats are dropped (design section 3, point 3)."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from backend_adapters.rocketmq_remoting import RocketMQ
from gateway.ports import BackendError, Message, Properties, Queue, Receipt, Received, Start
from tests.kit.services import StartRocketMQ

pytestmark = [pytest.mark.services, pytest.mark.slow]
WINDOW = 10  # messages of one key
KEYS = [f"key{number}" for number in range(40)]


class Load:
    """Sends numbered messages over forty keys, at most `WINDOW` unfinished of each, and notes what became of them."""

    def __init__(self, backend: RocketMQ, topic: str, ordered: Callable[[str], bool] = lambda key: False) -> None:
        self.backend = backend
        self.topic = topic
        self.ordered = ordered
        self.sent: dict[str, list[int]] = {}
        self.finished: dict[str, list[int]] = {}
        self.receipts: dict[str, list[Receipt]] = {}
        self.errors: list[BackendError] = []
        self.ids: set[str] = set()
        self.unfinished = 0
        self.stopping = False
        self._numbers = itertools.count()
        self._properties = Properties(origin="load")

        for key in KEYS:
            self.add(key)

    def add(self, key: str) -> None:
        self.sent[key], self.finished[key], self.receipts[key] = [], [], []

    async def run(self) -> None:
        while not self.stopping:
            for key in KEYS:
                if len(self.sent[key]) - len(self.finished[key]) < WINDOW:
                    self.submit(key)
            await trio.sleep(0.002)

    def submit(self, key: str) -> None:
        number = next(self._numbers)
        id = self.backend.new_id()
        self.ids.add(id)
        self.sent[key].append(number)
        self.unfinished += 1

        def done(outcome: Receipt | BackendError) -> None:
            self.unfinished -= 1
            self.finished[key].append(number)
            if isinstance(outcome, Receipt):
                self.receipts[key].append(outcome)
            else:
                self.errors.append(outcome)

        body = f"{key} {number}".encode()
        self.backend.submit(Message(self.topic, body, "T", self._properties, key, id, self.ordered(key)), done)

    @property
    def count(self) -> int:
        return sum(len(numbers) for numbers in self.finished.values())


class Account:
    """Reads the whole topic."""

    def __init__(self) -> None:
        self.messages: list[Received] = []

    def assigned(self, queue: Queue, position: int) -> None: ...

    def revoked(self, queue: Queue) -> None: ...

    async def received(self, messages: list[Received]) -> None:
        self.messages += messages

    def check(self, load: Load, single_queue: bool) -> None:
        """single_queue: every key stayed in one queue, so its order there must be the order of sending."""
        assert not load.errors
        assert load.finished == load.sent, "each `done` once, in the order of submission per key"
        first_of: dict[str, Received] = {}
        for message in sorted(self.messages, key=lambda each: (each.queue, each.offset)):
            first_of.setdefault(message.id, message)
        assert load.ids == set(first_of), f"{len(load.ids - set(first_of))} acknowledged messages are missing"
        for key, numbers in load.sent.items():
            mine = [message for message in first_of.values() if message.body.startswith(f"{key} ".encode())]
            assert sorted(int(message.body.split()[1]) for message in mine) == numbers
            queues = {message.queue for message in mine}
            assert len(queues) == 1 or not single_queue
            for queue in queues:
                in_queue = [int(message.body.split()[1]) for message in mine if message.queue == queue]
                assert in_queue == sorted(in_queue), f"the order of {key} in {queue}"


@asynccontextmanager
async def running(namesrv: str) -> AsyncIterator[RocketMQ]:
    backend = RocketMQ.open(f"rocketmq://{namesrv}")
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: backend.run(task_status=task_status))
        yield backend
        nursery.cancel_scope.cancel()


async def read_all(backend: RocketMQ, topic: str, load: Load) -> Account:
    account = Account()
    consumer = await backend.consume(topic, None, None, account, start=Start.FIRST)
    with trio.move_on_after(60):
        while not load.ids <= {message.id for message in account.messages}:
            await trio.sleep(0.2)
    await consumer.close()
    return account


async def until(true: Callable[[], bool], seconds: float) -> None:
    with trio.fail_after(seconds):
        while not true():
            await trio.sleep(0.05)


async def test_a_killed_broker_loses_nothing(rocketmq_cluster: StartRocketMQ) -> None:
    cluster = await trio.to_thread.run_sync(lambda: rocketmq_cluster(brokers=1))
    async with running(cluster.namesrv) as backend, trio.open_nursery() as nursery:
        topic = (await backend.create_topic("killed", 4)).name
        load = Load(backend, topic)
        nursery.start_soon(load.run)
        await until(lambda: load.count > 2000, 30)
        await trio.to_thread.run_sync(cluster.brokers[0].kill)
        before = load.count
        await trio.sleep(2)
        assert load.unfinished == WINDOW * len(KEYS)
        assert load.count - before < WINDOW * len(KEYS)
        await trio.to_thread.run_sync(cluster.brokers[0].start)
        resumed = load.count
        await until(lambda: load.count > resumed + 2000, 60)
        load.stopping = True
        await until(lambda: load.unfinished == 0, 30)
        (await read_all(backend, topic, load)).check(load, single_queue=True)


async def test_a_frozen_broker_is_noticed_and_the_other_one_goes_on(rocketmq_cluster: StartRocketMQ) -> None:
    cluster = await trio.to_thread.run_sync(lambda: rocketmq_cluster(brokers=2))
    frozen = cluster.brokers[1]
    async with running(cluster.namesrv) as backend, trio.open_nursery() as nursery:
        topic = (await backend.create_topic("frozen", 4)).name
        load = Load(backend, topic, ordered=lambda key: int(key[3:]) % 4 == 0)
        nursery.start_soon(load.run)
        await until(lambda: load.count > 2000, 30)
        frozen.pause()
        at = trio.current_time()
        await until(lambda: backend.metrics()["brokers_down"] == 1, 15)
        assert trio.current_time() - at < 12
        paused = {key: len(numbers) for key, numbers in load.finished.items()}
        await trio.sleep(12)  # longer than the patience with an answer, counted from the pause
        moved = [key for key in KEYS if len(load.finished[key]) > paused[key]]
        assert moved, "queues of the living broker go on"
        rows = {row.name: row for row in await backend.health()}
        assert sum(not row.ok for row in rows.values()) == 1
        frozen.resume()
        await until(lambda: backend.metrics()["brokers_down"] == 0, 30)
        resumed = load.count
        await until(lambda: load.count > resumed + 2000, 60)
        load.stopping = True
        await until(lambda: load.unfinished == 0, 60)
        account = await read_all(backend, topic, load)
        account.check(load, single_queue=False)
        for key in KEYS:
            if load.ordered(key):
                assert len({receipt.queue for receipt in load.receipts[key]}) == 1, "what is ordered waits for its broker"


async def test_of_two_brokers_one_is_killed(rocketmq_cluster: StartRocketMQ) -> None:
    cluster = await trio.to_thread.run_sync(lambda: rocketmq_cluster(brokers=2))
    async with running(cluster.namesrv) as backend, trio.open_nursery() as nursery:
        topic = (await backend.create_topic("one_of_two", 2)).name
        load = Load(backend, topic, ordered=lambda key: key.startswith("fresh") and int(key[5:]) % 2 == 0)
        nursery.start_soon(load.run)
        await until(lambda: load.count > 2000, 30)
        await trio.to_thread.run_sync(cluster.brokers[0].kill)
        await until(lambda: backend.metrics()["brokers_down"] == 1, 15)
        fresh = [f"fresh{number}" for number in range(40)]  # with nothing in a batch whose outcome is unknown
        for key in fresh:
            load.add(key)
            load.submit(key)
        patient = [key for key in fresh if load.ordered(key)]
        await until(lambda: all(load.finished[key] for key in fresh if key not in patient), 10)
        assert 0 < sum(bool(load.finished[key]) for key in patient) < len(patient), "ordered ones wait for their broker"
        await trio.to_thread.run_sync(cluster.brokers[0].start)
        resumed = load.count
        await until(lambda: load.count > resumed + 2000, 60)
        load.stopping = True
        await until(lambda: load.unfinished == 0, 30)
        (await read_all(backend, topic, load)).check(load, single_queue=False)
