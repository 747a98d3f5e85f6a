"""The contract of the port `Backend`: holds, commits, lag, back-pressure (design section 4)."""

from __future__ import annotations

from zlib import crc32

import trio

from gateway.ports import Start
from tests.ports.backends import PATIENCE, Recorder, Site, eventually, message_of, new_name, new_topic, numbers, quiet, send, send_bodies

COMMIT_SECONDS = 2.0  # an offset is committed that long after its resolution, at the soonest


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
