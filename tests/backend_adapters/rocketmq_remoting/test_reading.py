"""Reads on scripted servers: positions, filters, commits (design sections 4 and 6)."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock

from backend_adapters.rocketmq_remoting import codes
from backend_adapters.rocketmq_remoting.frames import Frame
from gateway.ports import BackendError, Refusal, Start
from tests.backend_adapters.rocketmq_remoting.reading import ALL, QUEUE, fill, of_pulls, opened, pulled
from tests.backend_adapters.rocketmq_remoting.scripted import Answer, Cluster, Listener, stored_bytes


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(queues=1)


async def test_what_lies_there_already_is_marked_as_replayed(cluster: Cluster, autojump_clock: MockClock) -> None:
    fill(cluster.brokers[0], b"old")
    async with opened(cluster) as (backend, _, outcomes):
        listener = Listener()
        await backend.consume("topic", ALL, "G", listener)
        outcomes.send(b"new")
        await listener.until(2)
        assert [(message.body, message.replayed) for message in listener.messages] == [(b"old", True), (b"new", False)]
        assert listener.assigned_at == {QUEUE: 0}


async def test_offsets_are_committed_2_s_after_they_are_resolved(cluster: Cluster, autojump_clock: MockClock) -> None:
    async with opened(cluster) as (backend, broker, outcomes):
        listener = Listener(hold=lambda message: message.body == b"held")
        consumer = await backend.consume("topic", ALL, "G", listener)
        await trio.sleep(5)
        assert broker.committed == {0: 0}, "where it began is committed, so that a restart begins there again"
        outcomes.send(b"1")
        outcomes.send(b"held")
        outcomes.send(b"3")
        await listener.until(3)
        await trio.sleep(1.5)
        assert broker.committed == {0: 0}
        await trio.sleep(3)
        assert broker.committed == {0: 1}
        assert consumer.committed(QUEUE) == 1
        listener.messages[1].release()
        await trio.sleep(5)
        assert broker.committed == {0: 3}
        assert await consumer.lag() == {QUEUE: 0}


async def test_closing_commits_what_is_resolved_and_nothing_else(cluster: Cluster, autojump_clock: MockClock) -> None:
    fill(cluster.brokers[0], b"1", b"held", b"3")
    async with opened(cluster) as (backend, broker, _):
        listener = Listener(hold=lambda message: message.body == b"held")
        consumer = await backend.consume("topic", ALL, "G", listener)
        await listener.until(3)
        await consumer.close()
        assert broker.committed == {0: 1}
        assert listener.gone == [QUEUE]
        fill(broker, b"4")
        await trio.sleep(30)
        assert broker.count(codes.UNREGISTER_CLIENT) == 1
        assert len(listener.messages) == 3


@pytest.mark.parametrize("seconds", [0, 1.5, 5])
async def test_the_first_offset_of_a_group_goes_alone(autojump_clock: MockClock, seconds: float) -> None:
    cluster = Cluster(queues=4)
    for queue in range(4):
        fill(cluster.brokers[0], b"1", queue=queue)
    async with opened(cluster) as (backend, broker, _):
        listener = Listener()
        consumer = await backend.consume("topic", ALL, "G", listener)
        await listener.until(4)
        await trio.sleep(seconds)
        await consumer.close()
        assert broker.committed == dict.fromkeys(range(4), 1)


async def test_the_end_of_the_backend_commits_too(cluster: Cluster, autojump_clock: MockClock) -> None:
    fill(cluster.brokers[0], b"1", b"2")
    listener = Listener()
    async with opened(cluster) as (backend, _, _):
        await backend.consume("topic", ALL, "G", listener)
        await listener.until(2)
    assert cluster.brokers[0].committed == {0: 2}
    assert listener.gone == [QUEUE]


async def test_a_frozen_broker_delays_closing_by_3_s_at_most(cluster: Cluster, autojump_clock: MockClock) -> None:
    fill(cluster.brokers[0], b"1")
    async with opened(cluster) as (backend, broker, _):
        listener = Listener()
        consumer = await backend.consume("topic", ALL, "G", listener)
        await listener.until(1)
        broker.freeze()
        began = trio.current_time()
        await consumer.close()
        assert trio.current_time() - began < 3.5
        assert listener.gone == [QUEUE]


async def test_offsets_that_the_filter_skips_are_committed(cluster: Cluster, autojump_clock: MockClock) -> None:
    fill(cluster.brokers[0], *[b"other"] * 100, tag="OTHER")
    async with opened(cluster) as (backend, broker, _):
        listener = Listener()
        await backend.consume("topic", ALL, "G", listener)
        await trio.sleep(10)
        assert broker.committed == {0: 100}
        assert not listener.messages


async def test_tags_are_compared_again_as_brokers_compare_hashes_only(cluster: Cluster, autojump_clock: MockClock) -> None:
    fill(cluster.brokers[0], b"AaAa", tag="AaAa")
    fill(cluster.brokers[0], b"BBBB", tag="BBBB")  # the same hash
    async with opened(cluster) as (backend, broker, _):

        def no_filter(n: int, frame: Frame) -> Answer | None:
            if n:
                return None
            found = [stored_bytes(at, properties, body) for at, (properties, body) in enumerate(broker.queues[0])]
            return codes.SUCCESS, "", {"nextBeginOffset": "2"}, b"".join(found)

        broker.hook = of_pulls(no_filter)
        listener = Listener()
        await backend.consume("topic", frozenset({"AaAa"}), "G", listener)
        await listener.until(1)
        await trio.sleep(5)
        assert listener.bodies == [b"AaAa"]
        assert broker.committed == {0: 2}


async def test_retag_reads_again_from_the_position_and_discards_a_held_pull(cluster: Cluster, autojump_clock: MockClock) -> None:
    async with opened(cluster) as (backend, broker, _):
        held = trio.Event()
        listener = Listener()
        consumer = await backend.consume("topic", ALL, "G", listener)
        await trio.sleep(1)
        usual = broker.answer

        async def answer(frame: Frame) -> Answer:
            result = await usual(frame)
            if frame.code == codes.PULL_MESSAGE and frame.fields["subscription"] == "T" and result[0] == codes.PULL_RETRY_IMMEDIATELY:
                await held.wait()
            return result

        broker.answer = answer  # type: ignore[method-assign]
        await trio.sleep(20)  # until the pull under way is one that waits in `answer`
        fill(broker, b"wide", tag="W")
        broker.tell()
        await trio.sleep(1)  # the broker has jumped over it already, and its answer is on the way
        await consumer.retag(frozenset({"T", "W"}))
        held.set()
        await listener.until(1)
        assert listener.bodies == [b"wide"]
        assert (0, "T || W") in pulled(broker)
        beats = [json.loads(frame.body) for frame in broker.asked if frame.code == codes.HEART_BEAT]
        assert {data["subString"] for data in beats[-1]["consumerDataSet"][0]["subscriptionDataSet"]} == {"T || W"}
        await consumer.retag(ALL)
        await trio.sleep(20)
        assert pulled(broker)[-1] == (1, "T")
        beats = [json.loads(frame.body) for frame in broker.asked if frame.code == codes.HEART_BEAT]
        assert beats[-1]["consumerDataSet"][0]["subscriptionDataSet"][0]["tagsSet"] == ["T", "W"], "heartbeats declare the full set"


async def test_retag_during_a_frozen_broker_returns(cluster: Cluster, autojump_clock: MockClock) -> None:
    async with opened(cluster) as (backend, broker, _):
        consumer = await backend.consume("topic", ALL, "G", Listener())
        broker.freeze()
        with trio.fail_after(1):
            await consumer.retag(None)
        broker.thaw()
        await trio.sleep(30)
        assert pulled(broker)[-1] == (0, "*")


async def test_a_moved_offset_is_followed(cluster: Cluster, autojump_clock: MockClock) -> None:
    fill(cluster.brokers[0], *[str(number).encode() for number in range(10)])
    cluster.brokers[0].committed = {0: 3}
    async with opened(cluster) as (backend, broker, _):
        moved: Answer = (codes.PULL_OFFSET_MOVED, "OFFSET_TOO_SMALL", {"nextBeginOffset": "7"}, b"")
        broker.hook = of_pulls(lambda n, _: moved if n == 0 else None)
        listener = Listener()
        await backend.consume("topic", ALL, "G", listener)
        await listener.until(3)
        await trio.sleep(5)
        assert listener.bodies == [b"7", b"8", b"9"]
        assert broker.committed == {0: 10}


async def test_a_broker_that_has_lost_its_end_is_followed_back(cluster: Cluster, autojump_clock: MockClock) -> None:
    fill(cluster.brokers[0], *[b"old"] * 10)
    async with opened(cluster) as (backend, broker, outcomes):
        listener = Listener()
        await backend.consume("topic", ALL, "G", listener)
        await listener.until(10)
        await trio.sleep(5)
        del broker.queues[0][4:]
        await broker.break_off()
        await trio.sleep(20)
        outcomes.send(b"new")
        await listener.until(11)
        await trio.sleep(5)
        assert (listener.messages[-1].offset, listener.messages[-1].replayed) == (4, False)
        assert broker.committed == {0: 5}


async def test_the_committed_offset_is_where_it_begins(cluster: Cluster, autojump_clock: MockClock) -> None:
    fill(cluster.brokers[0], b"0", b"1", b"2")
    cluster.brokers[0].committed = {0: 2}
    async with opened(cluster) as (backend, _, _):
        listener = Listener()
        consumer = await backend.consume("topic", ALL, "G", listener, start=Start.LAST)
        await listener.until(1)
        assert listener.bodies == [b"2"]
        assert consumer.committed(QUEUE) == 2


@pytest.mark.parametrize(("start", "bodies"), [(Start.FIRST, [b"0", b"1", b"2"]), (Start.LAST, [b"2"]), (1234567, [b"1", b"2"])])
async def test_where_a_consumer_without_a_committed_offset_begins(
    start: Start | int, bodies: list[bytes], cluster: Cluster, autojump_clock: MockClock
) -> None:
    fill(cluster.brokers[0], b"0", b"1")

    def by_time(frame: Frame) -> Answer | None:
        if frame.code == codes.SEARCH_OFFSET_BY_TIMESTAMP:
            assert frame.fields["timestamp"] == "1234567"
            return codes.SUCCESS, "", {"offset": "1"}, b""
        return None

    cluster.brokers[0].hook = by_time
    async with opened(cluster) as (backend, broker, outcomes):
        listener, reader = Listener(), Listener()
        await backend.consume("topic", ALL, "G", listener, start=start)
        await backend.consume("topic", ALL, None, reader, start=start)
        outcomes.send(b"2")
        await listener.until(len(bodies))
        await reader.until(len(bodies))
        await trio.sleep(5)
        assert listener.bodies == reader.bodies == bodies
        groups = {frame.fields["consumerGroup"] for frame in broker.asked if frame.code == codes.UPDATE_CONSUMER_OFFSET}
        assert groups == {"G"}, "a reader commits nothing"


async def test_a_4_x_broker_that_answers_0_for_a_new_group_is_seen_through(cluster: Cluster, autojump_clock: MockClock) -> None:
    fill(cluster.brokers[0], b"old")
    table = {"offsetTable": {"topic@known": {0: 0}}}

    def old_broker(frame: Frame) -> Answer | None:
        if frame.code == codes.QUERY_CONSUMER_OFFSET:
            return codes.SUCCESS, "", {"offset": "0"}, b""
        if frame.code == codes.GET_ALL_CONSUMER_OFFSET:
            return codes.SUCCESS, "", {}, json.dumps(table).replace('"0":', "0:").encode()
        return None

    cluster.brokers[0].hook = old_broker
    async with opened(cluster) as (backend, _, _):
        fresh, known = Listener(), Listener()
        await backend.consume("topic", ALL, "fresh", fresh, start=Start.LAST)
        await backend.consume("topic", ALL, "known", known, start=Start.LAST)
        await known.until(1)
        assert (fresh.assigned_at, known.assigned_at) == ({QUEUE: 1}, {QUEUE: 0})


async def test_commit_end_skips_what_is_there(cluster: Cluster, autojump_clock: MockClock) -> None:
    fill(cluster.brokers[0], b"0", b"1")
    async with opened(cluster) as (backend, broker, _):
        await backend.commit_end("topic", "G")
        assert broker.committed == {0: 2}
        broker.hook = lambda frame: (codes.NO_PERMISSION, "no", {}, b"") if frame.code == codes.UPDATE_CONSUMER_OFFSET else None
        with pytest.raises(BackendError, match="group G") as caught:
            await backend.commit_end("topic", "G")
        assert caught.value.refusal is Refusal.NOT_PERMITTED
        with pytest.raises(BackendError, match="does not exist"):
            await backend.commit_end("missing", "G")
