"""The contract of the port `Backend`: consuming, offsets, tags, assignment (design section 4)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from zlib import crc32

import pytest
import trio

from gateway.ports import Backend, Receipt, Start, TopicInfo
from tests.ports.backends import PATIENCE, Answers, Recorder, Site, eventually, message_of, new_name, new_topic, quiet, send

COMMIT_SECONDS = 2.0  # an offset is committed that long after its resolution, at the soonest


async def send_bodies(backend: Backend, topic: TopicInfo, first: int, many: int, tag: str = "", keys: int = 5) -> list[Receipt]:
    return await send(backend, [message_of(backend, topic, b"%d" % n, tag=tag, key=f"k{n % keys}") for n in range(first, first + many)])


def numbers(listener: Recorder) -> list[int]:
    return sorted(int(body) for body in listener.bodies if body.isdigit())


# ---------------------------------------------------------------- where it begins


async def test_first_begins_at_the_first_message_and_last_at_the_next(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend)
        await send_bodies(backend, topic, 0, 20)
        first, last = Recorder(), Recorder()
        await backend.consume(topic.name, None, new_name("g"), first, start=Start.FIRST)
        await backend.consume(topic.name, None, new_name("g"), last, start=Start.LAST)
        assert set(first.positions) == set(last.positions) == set(topic.queues)
        await send_bodies(backend, topic, 20, 10)
        await first.until(30)
        await last.until(10)
        assert numbers(first) == list(range(30))
        assert numbers(last) == list(range(20, 30))


async def test_a_time_begins_at_the_first_message_stored_then_or_later(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend, 1)
        await send_bodies(backend, topic, 0, 5, keys=1)
        everything = Recorder()
        await backend.consume(topic.name, None, None, everything)
        await everything.until(5)
        await trio.sleep(0.05)  # the clock of the messages has to move on
        await send_bodies(backend, topic, 5, 5, keys=1)
        await everything.until(10)
        begin = everything.messages[5].stored_at
        assert begin > everything.messages[4].stored_at
        cases = [(begin, 5), (begin - 1, 5), (0, 0), (int(time.time() * 1000) + 86_400_000, 10)]
        for start, expected in cases:
            listener = Recorder()
            consumer = await backend.consume(topic.name, None, None, listener, start=start)
            assert list(listener.positions.values()) == [expected], f"start at {start - begin:+} ms"
            await consumer.close()


async def test_a_committed_offset_goes_before_the_start(site: Site) -> None:
    async with site.open() as backend:
        topic, group = await new_topic(backend), new_name("g")
        await send_bodies(backend, topic, 0, 10)
        listener = Recorder()
        consumer = await backend.consume(topic.name, None, group, listener)
        await listener.until(10)
        await consumer.close()
        await send_bodies(backend, topic, 10, 10)
        for start, expected in ((Start.LAST, list(range(10, 20))), (Start.FIRST, []), (0, [])):
            listener = Recorder()
            consumer = await backend.consume(topic.name, None, group, listener, start=start)
            await quiet(backend, topic, listener)
            assert numbers(listener) == expected
            await listener.until(len(listener.messages))
            await consumer.close()


async def test_commit_end_skips_what_is_stored_already(site: Site) -> None:
    async with site.open() as backend:
        topic, group = await new_topic(backend), new_name("g")
        await send_bodies(backend, topic, 0, 20)
        await backend.commit_end(topic.name, group)
        await send_bodies(backend, topic, 20, 10)
    async with site.open() as backend:
        listener = Recorder()
        await backend.consume(topic.name, None, group, listener, start=Start.FIRST)
        await listener.until(10)
        assert numbers(listener) == list(range(20, 30))


async def test_commit_end_of_an_empty_topic_loses_nothing(site: Site) -> None:
    async with site.open() as backend:
        topic, group = await new_topic(backend), new_name("g")
        await backend.commit_end(topic.name, group)
        await send_bodies(backend, topic, 0, 10)
        listener = Recorder()
        await backend.consume(topic.name, None, group, listener, start=Start.LAST)
        await listener.until(10)


async def test_replayed_is_what_was_there_before_the_queue_was_assigned(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend)
        await send_bodies(backend, topic, 0, 20)
        for group in (new_name("g"), None):
            listener = Recorder()
            consumer = await backend.consume(topic.name, None, group, listener, start=Start.FIRST)
            await listener.until(20)
            assert all(message.replayed for message in listener.messages)
            listener.messages = []
            await send_bodies(backend, topic, 20, 10)
            await listener.until(10)
            assert not any(message.replayed for message in listener.messages)
            await consumer.close()
            topic = await new_topic(backend)
            await send_bodies(backend, topic, 0, 20)


# ---------------------------------------------------------------- who gets what


async def test_every_group_and_every_reader_gets_everything(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend)
        listeners = [Recorder() for _ in range(4)]
        for listener, group in zip(listeners, (new_name("g"), new_name("g"), None, None), strict=True):
            await backend.consume(topic.name, None, group, listener)
        await send_bodies(backend, topic, 0, 500)
        for listener in listeners:
            await listener.until(500)
            assert numbers(listener) == list(range(500))


async def test_a_reader_leaves_nothing_behind(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend)
        await send_bodies(backend, topic, 0, 10)
        for _ in range(2):
            listener = Recorder()
            consumer = await backend.consume(topic.name, None, None, listener)
            await listener.until(10)
            assert {consumer.committed(queue) for queue in topic.queues} == {-1}
            await consumer.close()


async def test_only_the_tags_that_were_asked_for_come(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend)
        wanted: dict[str, frozenset[str] | None] = {
            "one": frozenset({"A"}),
            "two": frozenset({"A", "B"}),
            "all": None,
            "another": frozenset({"C"}),
        }
        listeners = {name: Recorder() for name in wanted}
        for name, tags in wanted.items():
            await backend.consume(topic.name, tags, new_name("g"), listeners[name])
        for number, tag in enumerate(["A", "B", "", "A", "AB", "a"]):
            await send_bodies(backend, topic, number, 1, tag)
        for tag in ("A", "C"):
            for name, tags in wanted.items():
                if tags is None or tag in tags:
                    await quiet(backend, topic, listeners[name], tag)
        assert numbers(listeners["one"]) == [0, 3]
        assert numbers(listeners["two"]) == [0, 1, 3]
        assert numbers(listeners["all"]) == [0, 1, 2, 3, 4, 5]
        assert numbers(listeners["another"]) == []


async def test_tags_with_the_same_hash_are_told_apart(site: Site) -> None:
    """Brokers compare only Java's hash of a tag; "Aa" and "BB" have the same one."""
    async with site.open() as backend:
        topic = await new_topic(backend)
        listener = Recorder()
        await backend.consume(topic.name, frozenset({"Aa"}), None, listener)
        await send_bodies(backend, topic, 0, 10, "BB")
        await send_bodies(backend, topic, 10, 10, "Aa")
        await listener.until(10)
        assert numbers(listener) == list(range(10, 20))


async def test_a_replay_is_filtered_too(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend)
        for first, tag in ((0, "A"), (100, "B"), (200, "A")):
            await send_bodies(backend, topic, first, 100, tag)
        listener = Recorder()
        await backend.consume(topic.name, frozenset({"B"}), None, listener)
        await listener.until(100)
        assert numbers(listener) == list(range(100, 200))


async def test_retag_misses_nothing_that_was_stored_after_it_returned(site: Site) -> None:
    async with site.open() as backend, trio.open_nursery() as nursery:
        topic = await new_topic(backend)
        listener = Recorder()
        consumer = await backend.consume(topic.name, frozenset({"A"}), new_name("g"), listener)
        answers, retagged, ending = Answers(), trio.Event(), trio.Event()
        must: list[str] = []

        async def keep_sending() -> None:
            for number in count():
                tag = "AB"[number % 2]
                message = message_of(backend, topic, b"%d" % number, tag=tag, key=f"k{number % 3}")
                if tag == "A" or retagged.is_set():
                    must.append(message.id)
                backend.submit(message, answers.of(message))
                await trio.sleep(0.001)
                if ending.is_set():
                    return

        nursery.start_soon(keep_sending)
        await listener.when(lambda: len(listener.messages) > 50)
        with trio.fail_after(PATIENCE):
            await consumer.retag(frozenset({"A", "B"}))
        assert must, "nothing was sent"
        retagged.set()
        await listener.when(lambda: sum(message.tag == "B" for message in listener.messages) > 50)
        ending.set()
        await backend.drain()
        await listener.when(lambda: set(must) <= set(listener.ids))
        assert len(set(listener.ids)) == len(listener.ids), "nothing comes twice"
        await consumer.retag(frozenset({"B"}))
        listener.messages = []
        await send_bodies(backend, topic, 0, 10, "A")
        await send_bodies(backend, topic, 10, 10, "B")
        await listener.until(10)
        assert numbers(listener) == list(range(10, 20))
        await consumer.retag(None)
        await send_bodies(backend, topic, 20, 10, "anything")
        await listener.until(20)


async def test_retag_of_an_idle_queue_takes_effect_for_the_next_message(site: Site) -> None:
    """A pull that the broker holds would be answered past what it did not match."""
    async with site.open() as backend:
        topic = await new_topic(backend)
        listener = Recorder()
        consumer = await backend.consume(topic.name, frozenset({"A"}), new_name("g"), listener)
        await send_bodies(backend, topic, 0, 20, "B")
        await send_bodies(backend, topic, 20, 20, "A")
        await listener.until(20)
        for round_ in range(1, 4):
            await consumer.retag(frozenset({"A", "B"}))
            wanted = set(await send_bodies(backend, topic, 100 * round_, 20, "B"))
            await listener.when(lambda: wanted <= {Receipt(message.queue, message.offset) for message in listener.messages})  # noqa: B023
            await consumer.retag(frozenset({"A"}))
            await send_bodies(backend, topic, 100 * round_ + 20, 20, "B")


# ---------------------------------------------------------------- holds and commits


async def test_a_restart_replays_from_the_lowest_unresolved_one(site: Site) -> None:
    async with site.open() as backend:
        topic, group = await new_topic(backend), new_name("g")
        receipts = await send_bodies(backend, topic, 0, 100)
        place = dict(enumerate(receipts))
        held = {12, 47, 48, 90}
        listener = Recorder(hold=lambda message: int(message.body) in held)
        consumer = await backend.consume(topic.name, None, group, listener)
        await listener.until(100)
        await consumer.close()
    lowest = {place[n].queue: min(place[m].offset for m in held if place[m].queue == place[n].queue) for n in held}
    expected = sorted(n for n, receipt in place.items() if receipt.queue in lowest and receipt.offset >= lowest[receipt.queue])
    async with site.open() as backend:
        again = Recorder()
        consumer = await backend.consume(topic.name, None, group, again)
        await again.when(lambda: len(again.messages) >= len(expected))
        await quiet(backend, topic, again)
        assert numbers(again) == expected
        assert all(message.replayed for message in again.messages)
        await consumer.close()
        nothing = Recorder()
        await backend.consume(topic.name, None, group, nothing)
        await quiet(backend, topic, nothing)
        assert nothing.messages == []


async def test_a_message_is_resolved_when_its_last_hold_is_released(site: Site) -> None:
    async with site.open() as backend:
        topic, group = await new_topic(backend, 1), new_name("g")
        listener = Recorder(hold=lambda message: int(message.body) in (3, 6))
        consumer = await backend.consume(topic.name, None, group, listener)
        await send_bodies(backend, topic, 0, 10, keys=1)
        messages = await listener.until(10)
        messages[3].hold()
        messages[3].release()
        messages[6].release()
        queue = topic.queues[0]
        await eventually(lambda: consumer.committed(queue) == 3)
        messages[3].release()
        await eventually(lambda: consumer.committed(queue) == 10)


async def test_nothing_is_committed_within_two_seconds_of_its_resolution(site: Site) -> None:
    async with site.open() as backend:
        topic, group = await new_topic(backend, 1), new_name("g")
        listener = Recorder(hold=lambda _: True)
        consumer = await backend.consume(topic.name, None, group, listener)
        await send_bodies(backend, topic, 0, 10, keys=1)
        messages = await listener.until(10)
        released = trio.current_time()
        for message in messages:
            message.release()
        await eventually(lambda: consumer.committed(topic.queues[0]) == 10)
        assert trio.current_time() - released >= COMMIT_SECONDS


async def test_a_queue_whose_messages_are_all_filtered_is_committed_too(site: Site) -> None:
    async with site.open() as backend:
        topic, group = await new_topic(backend, 2), new_name("g")
        consumer = await backend.consume(topic.name, frozenset({"A"}), group, Recorder())
        receipts = await send_bodies(backend, topic, 0, 200, "B")
        ends = {queue: 1 + max(receipt.offset for receipt in receipts if receipt.queue == queue) for queue in topic.queues}
        await eventually(lambda: all(consumer.committed(queue) == end for queue, end in ends.items()), 60)


async def test_start_last_is_remembered_with_the_first_message_unresolved(site: Site) -> None:
    """A group that began at the end must not begin at a later end after a restart."""
    async with site.open() as backend:
        topic, group = await new_topic(backend, 1), new_name("g")
        await send_bodies(backend, topic, 0, 5, keys=1)
        listener = Recorder(hold=lambda _: True)
        await backend.consume(topic.name, None, group, listener, start=Start.LAST)
        await send_bodies(backend, topic, 5, 5, keys=1)
        await listener.until(5)
    async with site.open() as backend:
        again = Recorder()
        await backend.consume(topic.name, None, group, again, start=Start.LAST)
        await again.until(5)
        assert numbers(again) == [5, 6, 7, 8, 9]


async def test_lag_is_what_lies_between_the_committed_offset_and_the_end(site: Site) -> None:
    async with site.open() as backend:
        topic, group = await new_topic(backend, 2), new_name("g")
        await backend.commit_end(topic.name, group)
        listener = Recorder(hold=lambda _: True)
        consumer = await backend.consume(topic.name, None, group, listener)
        assert await consumer.lag() == dict.fromkeys(topic.queues, 0)
        receipts = await send_bodies(backend, topic, 0, 30)
        await listener.until(30)
        expected = {queue: sum(receipt.queue == queue for receipt in receipts) for queue in topic.queues}
        assert await consumer.lag() == expected
        for message in listener.messages:
            message.release()
        with trio.fail_after(PATIENCE):
            while any((await consumer.lag()).values()):
                await trio.sleep(0.05)


# ---------------------------------------------------------------- back-pressure


async def test_a_queue_with_ten_thousand_unresolved_is_not_read_further_and_the_others_are(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend, 2)
        keys = {topic.queues[crc32(key.encode()) % 2]: key for key in map(str, range(20))}
        stuck, free = topic.queues
        listener = Recorder(hold=lambda message: message.queue == stuck)
        await backend.consume(topic.name, None, new_name("g"), listener, start=Start.LAST)
        await send(backend, [message_of(backend, topic, b"%d" % n, key=keys[stuck]) for n in range(12_000)])
        await listener.when(lambda: len(listener.messages) >= 10_000)
        await send(backend, [message_of(backend, topic, b"%d" % n, key=keys[free]) for n in range(100)])
        await listener.when(lambda: sum(message.queue == free for message in listener.messages) == 100)
        held = [message for message in listener.messages if message.queue == stuck]
        assert 10_000 <= len(held) <= 11_000
        for message in held:
            message.release()
        listener.hold = lambda _: False
        await listener.until(12_100)


# ---------------------------------------------------------------- who reads which queue


async def test_owns_decides_and_a_new_owner_goes_on_where_the_old_one_was(site: Site) -> None:
    async with site.open() as one, _beside(site, one) as two:
        topic, group = await new_topic(one), new_name("g")
        mine = set(topic.queues[:2])
        first, second = Recorder(), Recorder()
        consumers = [
            await one.consume(topic.name, None, group, first, owns=lambda queue: queue in mine),
            await two.consume(topic.name, None, group, second, owns=lambda queue: queue not in mine),
        ]
        assert set(first.positions) == mine
        assert set(second.positions) == set(topic.queues) - mine
        await send_bodies(one, topic, 0, 100, keys=30)
        await eventually(lambda: len(first.messages) + len(second.messages) == 100)
        moved = topic.queues[1]
        mine.remove(moved)
        consumers[0].reassign()
        await first.when(lambda: first.gone == [moved])
        consumers[1].reassign()
        await eventually(lambda: moved in second.positions)
        await send_bodies(one, topic, 100, 100, keys=30)
        await eventually(lambda: len(first.messages) + len(second.messages) == 200)
        assert sorted(numbers(first) + numbers(second)) == list(range(200))
        assert {message.queue for message in first.messages if int(message.body) >= 100} == mine


@asynccontextmanager
async def _beside(site: Site, backend: Backend) -> AsyncIterator[Backend]:
    """Another node of the same backend; the embedded log has one process only, so there both consumers are its own."""
    if site.name == "local":
        yield backend
    else:
        async with site.open() as another:
            yield another


async def test_close_revokes_every_queue_and_nothing_comes_afterwards(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend)
        listener = Recorder()
        consumer = await backend.consume(topic.name, None, new_name("g"), listener)
        await send_bodies(backend, topic, 0, 10)
        await listener.until(10)
        await consumer.close()
        assert sorted(listener.gone) == sorted(topic.queues)
        other = Recorder()
        await backend.consume(topic.name, None, None, other)
        await send_bodies(backend, topic, 10, 10)
        await other.until(20)
        assert len(listener.messages) == 10


async def test_a_close_beside_a_busy_listener_commits_what_it_returned_from_and_nothing_else(site: Site) -> None:
    """Whether the listener may finish or is cancelled is the adapter's."""
    async with site.open() as backend, trio.open_nursery() as nursery:
        topic, group = await new_topic(backend, 1), new_name("g")
        listener = Recorder()
        listener.gate = trio.Event()
        consumer = await backend.consume(topic.name, None, group, listener)
        await send_bodies(backend, topic, 0, 1, keys=1)
        await listener.until(1)
        nursery.start_soon(consumer.close)
        await trio.sleep(0.1)
        listener.gate.set()
        await listener.when(lambda: bool(listener.gone))
        assert not listener.busy
        again = Recorder()
        await backend.consume(topic.name, None, group, again)
        await quiet(backend, topic, again)
        assert len(again.messages) == (0 if listener.returned else 1)


async def test_close_waits_three_seconds_at_most_and_what_was_unfinished_comes_again(site: Site) -> None:
    async with site.open() as backend:
        topic, group = await new_topic(backend, 1), new_name("g")
        listener = Recorder()
        listener.gate = trio.Event()
        consumer = await backend.consume(topic.name, None, group, listener)
        await send_bodies(backend, topic, 0, 3, keys=1)
        await listener.when(lambda: bool(listener.messages))
        began = trio.current_time()
        await consumer.close()
        assert trio.current_time() - began < 5
        assert listener.gone == list(topic.queues)
        assert not listener.busy
        again = Recorder()
        await backend.consume(topic.name, None, group, again)
        await again.until(3)


async def test_a_release_after_the_close_is_harmless(site: Site) -> None:
    async with site.open() as backend:
        topic, group = await new_topic(backend, 1), new_name("g")
        listener = Recorder(hold=lambda _: True)
        consumer = await backend.consume(topic.name, None, group, listener)
        await send_bodies(backend, topic, 0, 3, keys=1)
        messages = await listener.until(3)
        await consumer.close()
        for message in messages:
            message.release()
        again = Recorder()
        await backend.consume(topic.name, None, group, again)
        await again.until(3)


async def test_a_consumer_whose_backend_ends_commits_what_is_resolved(site: Site) -> None:
    async with site.open() as backend:
        topic, group = await new_topic(backend, 1), new_name("g")
        listener = Recorder(hold=lambda message: message.body == b"7")
        await backend.consume(topic.name, None, group, listener)
        await send_bodies(backend, topic, 0, 10, keys=1)
        await listener.until(10)
    async with site.open() as backend:
        again = Recorder()
        await backend.consume(topic.name, None, group, again)
        await again.until(3)
        assert again.bodies == [b"7", b"8", b"9"]


@pytest.mark.parametrize("group", [True, False], ids=["group", "reader"])
async def test_cancelling_a_wait_leaves_the_backend_working(site: Site, group: bool) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend)
        name = new_name("g") if group else None
        with trio.CancelScope() as scope:
            scope.cancel()
            await backend.consume(topic.name, None, name, Recorder())
        for wait in (backend.room, backend.drain, backend.health):
            with trio.CancelScope() as scope:
                scope.cancel()
                await wait()
        listener = Recorder()
        consumer = await backend.consume(topic.name, None, name, listener)
        await send_bodies(backend, topic, 0, 10)
        await listener.until(10)
        with trio.CancelScope() as scope:
            scope.cancel()
            await consumer.retag(frozenset({"A"}))
        await consumer.retag(None)
        await send_bodies(backend, topic, 10, 10)
        await listener.until(20)


async def test_a_held_message_keeps_its_body(site: Site) -> None:
    """What a listener holds it may look at later, whatever else was read meanwhile."""
    async with site.open() as backend:
        topic = await new_topic(backend, 1)
        listener = Recorder(hold=lambda _: True)
        await backend.consume(topic.name, None, new_name("g"), listener)
        await send(backend, [message_of(backend, topic, b"%d" % n * 100, key="k") for n in range(1000)])
        held = list(await listener.until(1000))
        assert [message.body for message in held] == [b"%d" % n * 100 for n in range(1000)]
