"""The contract of the port `Backend`: where consumers begin, and what they get (design section 4)."""

from __future__ import annotations

import time
from itertools import count

import trio

from gateway.ports import Receipt, Start
from tests.ports.backends import PATIENCE, Answers, Recorder, Site, message_of, new_name, new_topic, numbers, quiet, send_bodies

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
