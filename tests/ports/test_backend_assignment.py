"""The contract of the port `Backend`: who reads which queue, and how reading ends (design section 4)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from gateway.ports import Backend
from tests.ports.backends import Recorder, Site, eventually, message_of, new_name, new_topic, numbers, quiet, send, send_bodies


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
