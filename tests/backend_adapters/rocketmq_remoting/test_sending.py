"""Sends on scripted servers: group commit, outcomes, order, what happens while a broker is down (design section 3, point 3)."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import pytest
import trio
from trio.testing import MockClock

from backend_adapters.rocketmq_remoting import codes
from backend_adapters.rocketmq_remoting.frames import Frame
from gateway.ports import BackendError, Message, Properties, Queue, Receipt, Refusal
from tests.backend_adapters.rocketmq_remoting.scripted import Answer, Broker, Cluster, Outcomes, Server, parse_batch


def of_sends(answer: Callable[[int, Frame], Answer | None]) -> Callable[[Frame], Answer | None]:
    """A hook that is asked for the nth send only, from 0."""
    sends = iter(range(1_000_000))
    return lambda frame: answer(next(sends), frame) if frame.code == codes.SEND_BATCH_MESSAGE else None


def batches(broker: Broker) -> list[list[bytes]]:
    return [[body for _, body in parse_batch(frame.body)] for frame in broker.asked if frame.code == codes.SEND_BATCH_MESSAGE]


async def test_what_arrives_while_a_batch_is_under_way_is_the_next_batch(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    cluster = Cluster()
    async with cluster.running(monkeypatch) as backend:
        outcomes = Outcomes(backend)
        gate = trio.Event()
        usual = cluster.brokers[0].answer

        async def slow(frame: Frame) -> Answer:
            if frame.code == codes.SEND_BATCH_MESSAGE:
                await gate.wait()
            return await usual(frame)

        monkeypatch.setattr(cluster.brokers[0], "answer", slow)
        outcomes.send(b"0")
        await trio.sleep(1)
        for number in range(1, 6):
            outcomes.send(str(number).encode())
        await trio.sleep(1)
        assert batches(cluster.brokers[0]) == [[b"0"]]
        gate.set()
        await outcomes.until(6)
        assert batches(cluster.brokers[0]) == [[b"0"], [b"1", b"2", b"3", b"4", b"5"]]
        assert [outcome.offset for _, outcome in outcomes.all if isinstance(outcome, Receipt)] == [0, 1, 2, 3, 4, 5]
        await backend.drain()


async def test_batches_have_bounds_in_messages_and_bytes(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster()
    async with cluster.running(monkeypatch, batch_messages=4, batch_bytes=1000) as backend:
        outcomes = Outcomes(backend)
        for size in (1, 1, 1, 1, 1, 300, 300, 5000, 1):
            outcomes.send(b"x" * size)
        await outcomes.until(9)
        assert [[len(body) for body in batch] for batch in batches(cluster.brokers[0])] == [[1, 1, 1, 1], [1, 300, 300], [5000], [1]]


async def test_a_message_that_surely_is_not_stored_is_sent_again(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster()
    async with cluster.running(monkeypatch) as backend:
        cluster.brokers[0].hook = of_sends(lambda n, _: (codes.SYSTEM_BUSY, "busy", {}, b"") if n < 3 else None)
        outcomes = Outcomes(backend)
        outcomes.send(b"1")
        outcomes.send(b"2")
        await outcomes.until(2)
        assert cluster.brokers[0].bodies() == [b"1", b"2"]


@pytest.mark.parametrize("code", [codes.FLUSH_DISK_TIMEOUT, codes.SLAVE_NOT_AVAILABLE, codes.FLUSH_SLAVE_TIMEOUT, codes.SYSTEM_ERROR])
async def test_after_an_unknown_outcome_the_same_batch_is_sent_again(
    code: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    cluster = Cluster()
    async with cluster.running(monkeypatch) as backend:
        cluster.brokers[0].hook = of_sends(lambda n, _: (code, "", {}, b"") if n == 0 else None)
        outcomes = Outcomes(backend)
        ids = [outcomes.send(b"1"), outcomes.send(b"2")]
        await outcomes.until(2)
        sends = [frame for frame in cluster.brokers[0].asked if frame.code == codes.SEND_BATCH_MESSAGE]
        assert sends[0].body == sends[1].body
        assert sends[0].fields["e"] == sends[1].fields["e"]
        assert [properties["UNIQ_KEY"] for properties, _ in parse_batch(sends[1].body)] == ids


async def test_an_unanswered_batch_is_not_sent_again_for_15_s_while_its_connection_lives(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    cluster = Cluster()
    async with cluster.running(monkeypatch) as backend:
        broker = cluster.brokers[0]
        broker.hook = of_sends(lambda n, _: Server.SILENCE if n == 0 else None)
        outcomes = Outcomes(backend)
        outcomes.send(b"1")
        await trio.sleep(14)
        assert broker.count(codes.SEND_BATCH_MESSAGE) == 1
        await outcomes.until(1, 5)
        assert broker.count(codes.SEND_BATCH_MESSAGE) == 2


async def test_a_lost_connection_makes_it_be_sent_again_at_once(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster()
    async with cluster.running(monkeypatch) as backend:
        broker = cluster.brokers[0]
        broker.hook = of_sends(lambda n, _: Server.SILENCE if n == 0 else None)
        outcomes = Outcomes(backend)
        outcomes.send(b"1")
        outcomes.send(b"2")
        await trio.sleep(1)
        outcomes.send(b"3")
        await broker.break_off()
        await outcomes.until(3, 3)
        assert batches(broker) == [[b"1", b"2"], [b"1", b"2"], [b"3"]]


async def test_go_away_makes_it_connect_again(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster()
    async with cluster.running(monkeypatch) as backend:
        broker = cluster.brokers[0]
        broker.hook = of_sends(lambda n, _: (codes.GO_AWAY, "please go away", {}, b"") if n == 0 else None)
        outcomes = Outcomes(backend)
        outcomes.send(b"1")
        await outcomes.until(1, 3)
        assert broker.bodies() == [b"1"]
        assert backend.metrics()["brokers_down"] == 0


async def test_a_refused_batch_is_halved_until_the_offender_stands_alone(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    cluster = Cluster()
    async with cluster.running(monkeypatch) as backend:
        broker = cluster.brokers[0]
        broker.hook = of_sends(lambda n, frame: (codes.MESSAGE_ILLEGAL, "msg body length limit", {}, b"") if b"bad" in frame.body else None)
        outcomes = Outcomes(backend)
        for number in range(20):
            outcomes.send(b"bad" if number == 13 else str(number).encode())
        await outcomes.until(20)
        assert outcomes.bodies == [b"bad" if number == 13 else str(number).encode() for number in range(20)]
        assert [body for body, outcome in outcomes.all if isinstance(outcome, BackendError)] == [b"bad"]
        error = outcomes.all[13][1]
        assert isinstance(error, BackendError)
        assert error.refusal is Refusal.TOO_LARGE
        assert len(broker.bodies()) == 19


async def test_what_can_not_be_encoded_fails_in_its_turn(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster()
    async with cluster.running(monkeypatch) as backend:
        outcomes = Outcomes(backend)
        outcomes.send(b"1")
        outcomes.send(b"2", tag="a||b")
        outcomes.send(b"3")
        await outcomes.until(3)
        assert outcomes.bodies == [b"1", b"2", b"3"]
        error = outcomes.all[1][1]
        assert isinstance(error, BackendError)
        assert error.refusal is Refusal.INVALID
        assert backend.metrics()["backlog_bytes"] == 0


async def test_a_fault_of_one_done_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster()
    async with cluster.running(monkeypatch) as backend:
        outcomes = Outcomes(backend)
        outcomes.send(b"1")

        def broken(_: object) -> None:
            raise RuntimeError("a fault of the caller")

        backend.submit(Message("topic", b"2", "", Properties(), "key", backend.new_id()), broken)
        outcomes.send(b"3")
        await outcomes.until(2)
        assert cluster.brokers[0].bodies() == [b"1", b"2", b"3"]


async def test_messages_wait_for_servers_that_are_not_there_yet(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster()
    cluster.namesrv.refusing = True
    async with cluster.running(monkeypatch) as backend:
        outcomes = Outcomes(backend)
        outcomes.send(b"1")
        await trio.sleep(60)
        cluster.namesrv.refusing = False
        cluster.registered = []  # a name server that has just begun knows no broker: that says nothing about the topic
        await trio.sleep(60)
        assert not outcomes.all
        cluster.registered = list(cluster.brokers)
        await outcomes.until(1, 10)
        assert cluster.brokers[0].bodies() == [b"1"]


async def test_a_topic_that_definitely_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster()
    async with cluster.running(monkeypatch) as backend:
        outcomes = Outcomes(backend)
        for _ in range(2):
            outcomes.send(b"1", topic="missing")
            outcomes.send(b"2", topic="missing")
            await outcomes.until(len(outcomes.all) + 2, 10)
        cluster.topics.add("missing")
        outcomes.send(b"3", topic="missing")
        await outcomes.until(5, 10)
        refusals = [outcome.refusal for _, outcome in outcomes.all if isinstance(outcome, BackendError)]
        assert refusals == [Refusal.NO_SUCH_TOPIC] * 4
        assert outcomes.bodies == [b"1", b"2", b"1", b"2", b"3"]


async def test_a_topic_whose_only_broker_is_down_is_not_missing(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster()
    async with cluster.running(monkeypatch) as backend:
        outcomes = Outcomes(backend)
        outcomes.send(b"1")
        await outcomes.until(1)
        cluster.registered = []
        await cluster.brokers[0].kill()
        outcomes.send(b"2")
        await trio.sleep(300)
        assert len(outcomes.all) == 1
        cluster.brokers[0].refusing = False
        await outcomes.until(2, 10)  # found again before the name server knows
        assert cluster.brokers[0].bodies() == [b"1", b"2"]


async def test_a_key_belongs_to_a_queue_of_the_whole_sorted_list(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster(brokers=2, queues=3)
    queues = [Queue("topic", broker.name, id) for broker in cluster.brokers for id in range(3)]
    async with cluster.running(monkeypatch) as backend:
        outcomes = Outcomes(backend)
        keys = [f"key {number}" for number in range(30)]
        for key in keys:
            outcomes.send(key.encode(), key, ordered=True)
        await outcomes.until(30)
        cluster.registered = cluster.registered[:1]  # the name server forgets a dead broker at once
        await cluster.brokers[1].kill()
        await trio.sleep(40)
        for key in keys:
            outcomes.send(key.encode(), key, ordered=True)
        await trio.sleep(100)
        cluster.registered = list(cluster.brokers)
        cluster.brokers[1].refusing = False
        await outcomes.until(60)
        for body, outcome in outcomes.all:
            assert isinstance(outcome, Receipt)
            assert outcome.queue == queues[crc32(body) % 6]


async def test_while_a_broker_is_frozen_others_go_on(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    """Keys with a message in the unknown batch stay, ordered ones stay, the rest moves, and every key keeps its order."""
    cluster = Cluster(brokers=2, queues=1)
    async with cluster.running(monkeypatch) as backend:
        outcomes = Outcomes(backend)
        keys = {name: [key for key in map(str, range(100)) if _home(key, 2) == at] for at, name in enumerate(("broker-0", "broker-1"))}
        stuck, moving, patient, *_ = keys["broker-1"]
        outcomes.send(b"warm", stuck)
        await outcomes.until(1)
        cluster.brokers[1].freeze()
        outcomes.send(b"stuck 1", stuck)
        await trio.sleep(1)
        outcomes.send(b"stuck 2", stuck)
        outcomes.send(b"moving 1", moving)
        outcomes.send(b"patient 1", patient, ordered=True)
        outcomes.send(b"living", keys["broker-0"][0])
        await trio.sleep(8)
        outcomes.send(b"moving 2", moving)
        outcomes.send(b"stuck 3", stuck)
        outcomes.send(b"patient 2", patient, ordered=True)
        await trio.sleep(30)
        assert sorted(cluster.brokers[0].bodies()) == [b"living", b"moving 1", b"moving 2"]
        assert len(outcomes.all) == 4
        cluster.brokers[1].thaw()
        await outcomes.until(9, 30)
        firsts = list(dict.fromkeys(cluster.brokers[1].bodies()))
        assert [body for body in firsts if body.startswith(b"stuck")] == [b"stuck 1", b"stuck 2", b"stuck 3"]
        assert [body for body in firsts if body.startswith(b"patient")] == [b"patient 1", b"patient 2"]
        for name in (b"stuck", b"moving", b"patient"):
            mine = [body for body in outcomes.bodies if body.startswith(name)]
            assert mine == sorted(mine)
        outcomes.send(b"home again", moving)
        await outcomes.until(10)
        assert cluster.brokers[1].bodies()[-1] == b"home again"


def _home(key: str, queues: int) -> int:
    return crc32(key.encode()) % queues


async def test_a_broker_that_takes_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster(brokers=2, queues=1)
    async with cluster.running(monkeypatch) as backend:
        cluster.brokers[1].hook = of_sends(lambda n, _: (codes.SERVICE_NOT_AVAILABLE, "disk full", {}, b""))
        outcomes = Outcomes(backend)
        for number in range(40):
            outcomes.send(str(number).encode(), f"key{number}")
        await outcomes.until(40, 10)
        assert len(cluster.brokers[0].bodies()) == 40
        cluster.brokers[1].hook = lambda frame: None
        await trio.sleep(10)
        for number in range(40):
            outcomes.send(str(number).encode(), f"key{number}")
        await outcomes.until(80, 10)
        assert cluster.brokers[1].bodies()


async def test_queues_that_are_taken_from_the_route_hand_their_messages_on(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    cluster = Cluster(brokers=2, queues=1)
    async with cluster.running(monkeypatch) as backend:
        outcomes = Outcomes(backend)
        outcomes.send(b"warm")
        await outcomes.until(1)
        cluster.brokers[1].hook = of_sends(lambda n, _: (codes.NO_PERMISSION, "the broker[x] sending message is forbidden", {}, b""))
        cluster.brokers[1].permission = 4
        for number in range(40):
            outcomes.send(str(number).encode(), f"key{number}", ordered=True)
        await outcomes.until(41, 100)
        assert len(cluster.brokers[0].bodies()) + len(cluster.brokers[1].bodies()) == 41
        for number in range(40):
            outcomes.send(str(number).encode(), f"key{number}", ordered=True)
        await outcomes.until(81, 100)
        assert not any(isinstance(outcome, BackendError) for _, outcome in outcomes.all)


async def test_a_broker_that_has_the_topic_no_more_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster(brokers=2, queues=1)
    async with cluster.running(monkeypatch) as backend:
        outcomes = Outcomes(backend)
        outcomes.send(b"warm")
        await outcomes.until(1)
        cluster.registered = cluster.registered[:1]
        cluster.brokers[1].hook = of_sends(lambda n, _: (codes.TOPIC_NOT_EXIST, "topic[topic] not exist", {}, b""))
        await trio.sleep(40)
        for number in range(20):
            outcomes.send(str(number).encode(), f"key{number}", ordered=True)
        await outcomes.until(21, 20)
        assert len(cluster.brokers[0].bodies()) + len(cluster.brokers[1].bodies()) == 21


async def test_the_backlog_is_bounded_and_empties(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster()
    cluster.namesrv.refusing = True
    async with cluster.running(monkeypatch, backlog=5, backlog_bytes=10_000) as backend:
        outcomes = Outcomes(backend)
        for number in range(5):
            assert not backend.full
            outcomes.send(str(number).encode())
        assert backend.full
        with trio.move_on_after(5) as waited:
            await backend.room()
        assert waited.cancelled_caught
        cluster.namesrv.refusing = False
        await backend.room()
        await backend.drain()
        assert not backend.full
        assert backend.metrics()["backlog"] == 0
        cluster.namesrv.refusing = True
        await cluster.brokers[0].kill()
        outcomes.send(b"x" * 10_000)
        assert backend.full


async def test_at_the_end_what_is_unfinished_is_closed(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    cluster = Cluster()
    async with cluster.running(monkeypatch) as backend:
        cluster.brokers[0].hook = of_sends(lambda n, _: Server.SILENCE)
        outcomes = Outcomes(backend)
        outcomes.send(b"in flight")
        await trio.sleep(1)
        outcomes.send(b"waits")
        outcomes.send(b"no route", topic="elsewhere")
    outcomes.send(b"late")
    assert sorted(outcomes.bodies) == [b"in flight", b"late", b"no route", b"waits"]
    assert all(isinstance(outcome, BackendError) and outcome.refusal is Refusal.CLOSED for _, outcome in outcomes.all)
    assert outcomes.bodies.index(b"in flight") < outcomes.bodies.index(b"waits")
