"""Reads on scripted servers when something is wrong or unusual, and what brokers ask of a client (design sections 4 and 6)."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock

from backend_adapters.rocketmq_remoting import codes
from backend_adapters.rocketmq_remoting.frames import ONE_WAY, Frame
from gateway.ports import BackendError, Queue, Received, Refusal, Start
from tests.backend_adapters.rocketmq_remoting.reading import ALL, QUEUE, fill, of_pulls, opened, pulled
from tests.backend_adapters.rocketmq_remoting.scripted import Answer, Broker, Cluster, Listener, Server, stored_bytes


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(queues=1)


async def test_a_queue_with_too_much_unresolved_is_not_read_further(cluster: Cluster, autojump_clock: MockClock) -> None:
    fill(cluster.brokers[0], *[b""] * 10_100)
    async with opened(cluster) as (backend, broker, _):
        listener = Listener(hold=lambda _: True)
        await backend.consume("topic", ALL, "G", listener)
        await listener.until(10_000)
        await trio.sleep(60)
        assert len(listener.messages) < 10_000 + 32
        assert backend.metrics()["unresolved"] == len(listener.messages)
        at = len(pulled(broker))
        await trio.sleep(60)
        assert len(pulled(broker)) == at
        for message in listener.messages:
            message.release()
        listener.hold = lambda _: False
        await listener.until(10_100)


async def test_a_missing_group_is_named_with_its_cure(cluster: Cluster, autojump_clock: MockClock) -> None:
    async with opened(cluster) as (backend, broker, outcomes):
        missing: Answer = (codes.GROUP_NOT_EXIST, "subscription group [G] does not exist", {}, b"")
        broker.hook = of_pulls(lambda n, _: missing)
        listener = Listener()
        await backend.consume("topic", ALL, "G", listener)
        await trio.sleep(5)
        (row,) = [row for row in await backend.health() if not row.ok]
        assert row.name == "group G on topic topic"
        assert "updateSubGroup" in row.cure
        assert "-g G" in row.cure
        broker.hook = lambda frame: None
        outcomes.send(b"1")
        await listener.until(1)
        assert all(row.ok for row in await backend.health())


async def test_a_topic_that_is_not_there(cluster: Cluster, autojump_clock: MockClock) -> None:
    async with opened(cluster) as (backend, _, _):
        assert await backend.topic("missing") is None
        with pytest.raises(BackendError, match="updateTopic") as caught:
            await backend.consume("missing", ALL, "G", Listener())
        assert caught.value.refusal is Refusal.NO_SUCH_TOPIC


async def test_servers_that_do_not_answer(cluster: Cluster, autojump_clock: MockClock) -> None:
    cluster.namesrv.freeze()
    async with opened(cluster) as (backend, broker, _):
        with pytest.raises(BackendError) as caught:
            await backend.topic("topic")
        assert caught.value.refusal is Refusal.UNAVAILABLE
        began = trio.current_time()
        (row,) = await backend.health()
        assert trio.current_time() - began <= 3
        assert not row.ok
        assert row.cure
        cluster.namesrv.thaw()
        await trio.sleep(20)
        broker.freeze()
        with pytest.raises(BackendError, match="broker-0") as caught:
            await backend.consume("topic", ALL, "G", Listener())
        assert caught.value.refusal is Refusal.UNAVAILABLE


async def test_after_a_broker_was_away_reading_goes_on(cluster: Cluster, autojump_clock: MockClock) -> None:
    async with opened(cluster) as (backend, broker, _):
        listener = Listener()
        await backend.consume("topic", ALL, "G", listener)
        fill(broker, b"1")
        broker.tell()
        await listener.until(1)
        cluster.registered = []
        await broker.kill()
        await trio.sleep(200)
        fill(broker, b"2")
        broker.refusing = False
        await listener.until(2, 10)
        broker.freeze()
        await trio.sleep(100)
        fill(broker, b"3")
        broker.thaw()
        await listener.until(3, 60)
        assert listener.bodies == [b"1", b"2", b"3"]
        assert not listener.gone


async def test_while_the_master_is_down_its_slave_is_read(cluster: Cluster, autojump_clock: MockClock) -> None:
    master = cluster.brokers[0]
    slave = Broker(master.name, "slave:10911", 1)
    slave.queues = master.queues
    master.slaves = [slave]
    async with opened(cluster) as (backend, _, _):
        listener = Listener()
        await backend.consume("topic", ALL, "G", listener)
        fill(master, b"1")
        master.tell()
        await listener.until(1)
        assert not pulled(slave)
        await master.kill()
        fill(master, b"2")
        await listener.until(2, 20)
        assert pulled(slave)
        master.refusing = False
        await trio.sleep(60)
        at = len(pulled(slave))
        fill(master, b"3")
        master.tell()
        await listener.until(3, 20)
        assert len(pulled(slave)) == at


async def test_of_several_name_servers_one_is_enough(cluster: Cluster, autojump_clock: MockClock) -> None:
    cluster.url = "rocketmq://dead:9876;namesrv:9876;dead2:9876"
    async with opened(cluster) as (backend, broker, outcomes):
        outcomes.send(b"1")
        await outcomes.until(1, 20)
        assert await backend.topic("missing") is None
        rows = await backend.health()
        assert [row.name for row in rows if not row.ok] == ["name server dead2:9876", "name server dead:9876"]
        assert broker.bodies() == [b"1"]


async def test_a_pull_that_the_broker_dropped_is_asked_again(cluster: Cluster, autojump_clock: MockClock) -> None:
    async with opened(cluster) as (backend, broker, outcomes):
        broker.hook = of_pulls(lambda n, _: Server.SILENCE if n == 0 else None)
        listener = Listener()
        await backend.consume("topic", ALL, "G", listener)
        outcomes.send(b"1")
        await listener.until(1, 40)
        assert backend.metrics()["brokers_down"] == 0


async def test_queues_are_read_by_those_who_own_them(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(brokers=1, queues=4)
    mine = {0, 1}
    async with cluster.running(monkeypatch) as backend:
        listener = Listener()
        consumer = await backend.consume("topic", ALL, "G", listener, owns=lambda queue: queue.id in mine)
        assert {queue.id for queue in listener.assigned_at} == {0, 1}
        mine.discard(0)
        mine.add(3)
        consumer.reassign()
        await trio.sleep(5)
        assert [queue.id for queue in listener.gone] == [0]
        assert {queue.id for queue in listener.assigned_at} == {0, 1, 3}
        cluster.brokers[0].asked.clear()
        await trio.sleep(20)
        pulls = {frame.fields["queueId"] for frame in cluster.brokers[0].asked if frame.code == codes.PULL_MESSAGE}
        assert pulls == {"1", "3"}


async def test_queues_that_appear_later_begin_at_their_first_offset(cluster: Cluster, autojump_clock: MockClock) -> None:
    async with opened(cluster) as (backend, broker, _):
        listener = Listener()
        await backend.consume("topic", ALL, "G", listener, start=Start.LAST)
        broker.queues[1] = []
        fill(broker, b"1", queue=1)
        await listener.until(1, 60)
        assert listener.assigned_at == {QUEUE: 0, Queue("topic", "broker-0", 1): 0}
        del broker.queues[1]
        with trio.fail_after(60):
            while not listener.gone:
                await trio.sleep(1)


async def test_what_can_not_be_unpacked_is_skipped(cluster: Cluster, autojump_clock: MockClock) -> None:
    async with opened(cluster) as (backend, broker, _):
        bodies = [stored_bytes(0, {"TAGS": "T"}, b"broken", flags=1), stored_bytes(1, {"TAGS": "T"}, b"fine")]

        def compressed(n: int, frame: Frame) -> Answer | None:
            return (codes.SUCCESS, "", {"nextBeginOffset": "2"}, b"".join(bodies)) if n == 0 else Server.SILENCE

        broker.hook = of_pulls(compressed)
        listener = Listener()
        await backend.consume("topic", ALL, "G", listener)
        await listener.until(1)
        await trio.sleep(5)
        assert listener.bodies == [b"fine"]
        assert broker.committed == {0: 2}


async def test_a_fault_of_the_listener_does_not_stop_a_queue(cluster: Cluster, autojump_clock: MockClock) -> None:
    class Faulty(Listener):
        faults = 0

        async def received(self, messages: list[Received]) -> None:
            if messages[0].body == b"poison":
                self.faults += 1
                raise RuntimeError("a fault of the listener")
            await super().received(messages)

    async with opened(cluster) as (backend, _, outcomes):
        listener = Faulty()
        await backend.consume("topic", ALL, "G", listener)
        outcomes.send(b"poison")
        await trio.sleep(10)
        outcomes.send(b"fine")
        await listener.until(1)
        assert listener.faults == 2


async def test_an_operator_resets_offsets(cluster: Cluster, autojump_clock: MockClock) -> None:
    fill(cluster.brokers[0], *[str(number).encode() for number in range(5)])
    async with opened(cluster) as (backend, broker, _):
        listener, other = Listener(), Listener()
        await backend.consume("topic", ALL, "G", listener)
        await backend.consume("topic", ALL, "H", other)
        await listener.until(5)
        await other.until(5)
        body = b'{"offsetTable":{{"brokerName":"broker-0","queueId":0,"topic":"topic"}:3}}'
        await broker.say(codes.RESET_OFFSET, {"topic": "topic", "group": "G", "timestamp": "0"}, body, ONE_WAY)
        await listener.until(7)
        await trio.sleep(5)
        assert listener.bodies[5:] == [b"3", b"4"]
        assert listener.messages[-1].replayed
        assert len(other.messages) == 5


async def test_what_brokers_ask_is_answered(cluster: Cluster, autojump_clock: MockClock) -> None:
    async with opened(cluster) as (backend, broker, _):
        await backend.consume("topic", ALL, "G", Listener())
        await trio.sleep(1)
        await broker.say(codes.CONSUMER_RUNNING_INFO, {"consumerGroup": "G"}, opaque=71)
        await broker.say(codes.CONSUMER_RUNNING_INFO, {"consumerGroup": "another"}, opaque=72)
        await broker.say(39, {}, opaque=73)
        await broker.say(codes.CONSUMER_IDS_CHANGED, {"consumerGroup": "G"}, flag=ONE_WAY, opaque=74)
        await trio.sleep(1)
        answers = {frame.opaque: frame for frame in broker.asked if frame.is_answer}
        assert {opaque: frame.code for opaque, frame in answers.items()} == {71: 0, 72: 1, 73: codes.NOT_SUPPORTED}
        info = answers[71].body.decode()
        assert '"mqTable":{{"brokerName": "broker-0", "queueId": 0, "topic": "topic"}:{"commitOffset": 0' in info
        assert (
            json.loads(info.replace(info[info.index('{{"brokerName"') : -1], "0"))["properties"]["PROP_CONSUME_TYPE"] == "CONSUME_PASSIVELY"
        )
