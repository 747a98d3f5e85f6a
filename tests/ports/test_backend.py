"""The contract of the port `Backend`: topics and sending (contract section 5). The rest is in the files beside this."""

from __future__ import annotations

import re
import time
from zlib import crc32

import pytest
import trio

from gateway.ports import BackendError, Message, Properties, Receipt, Refusal, Start
from tests.ports.backends import PATIENCE, Answers, Recorder, Site, message_of, new_name, new_topic, send, send_one

BODIES = [
    b"",
    b"\0",
    b"before\0after",
    bytes(range(256)),
    "grüße 你好".encode(),
    b"\x01\x02",
    b"x" * 65_536,
    bytes(3 * 1024 * 1024),
]
PROPERTIES = [
    {},
    {"qoslevel": "1"},
    {"mqttSecondTopic": "/a/b c/ü/你/😀"},
    {"n": "\x00\x03\n\t\x7f", "名": "値", "a=b&c": "{}[]\"'\\"},
    {"long": "v" * 30_000},
    {f"name{number}": "v" for number in range(100)},
]


async def test_ids_of_a_backend_are_unique_over_restarts(site: Site) -> None:
    ids: list[str] = []
    for _ in range(2):
        async with site.open() as backend:
            ids += [backend.new_id() for _ in range(2000)]
    assert all(re.fullmatch("[0-9A-F]{32}", id) for id in ids)
    assert len(set(ids)) == 4000


async def test_a_topic_is_there_once_it_was_created(site: Site) -> None:
    async with site.open() as backend:
        name = new_name()
        assert await backend.topic(name) is None
        info = await backend.create_topic(name, 3)
        assert info.name == name
        assert len(info.queues) == 3
        assert list(info.queues) == sorted(info.queues)
        assert {queue.topic for queue in info.queues} == {name}
        assert await backend.topic(name) == info
        assert await backend.create_topic(name, 3) == info


async def test_a_topic_outlives_its_backend(site: Site) -> None:
    async with site.open() as backend:
        info = await new_topic(backend)
        first = await send(backend, [message_of(backend, info)])
    async with site.open() as backend:
        assert await backend.topic(info.name) == info
        second = await send(backend, [message_of(backend, info)])
    assert second[0] == Receipt(first[0].queue, first[0].offset + 1)


async def test_any_body_comes_back_as_it_was_sent(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend, 1)
        listener = Recorder()
        await backend.consume(topic.name, None, new_name("g"), listener)
        await send(backend, [message_of(backend, topic, body) for body in BODIES])
        await listener.until(len(BODIES))
        assert [len(body) for body in listener.bodies] == [len(body) for body in BODIES]
        assert listener.bodies == BODIES
        again = Recorder()
        await backend.consume(topic.name, None, new_name("g"), again)
        await again.until(len(BODIES))
        assert again.bodies == BODIES


async def test_properties_tag_id_place_and_times_come_back(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend)
        before = int(time.time() * 1000)
        sent = [
            Message(topic.name, b"x", tag, Properties(properties), f"key{number}", backend.new_id())
            for number, properties in enumerate(PROPERTIES)
            for tag in ("", "MQ2MQTT", "ä-ß")
        ]
        receipts = dict(zip([message.id for message in sent], await send(backend, sent), strict=True))
        for group in (new_name("g"), None):
            listener = Recorder()
            await backend.consume(topic.name, None, group, listener)
            received = {message.id: message for message in await listener.until(len(sent))}
            for message in sent:
                got = received[message.id]
                assert (got.tag, got.properties) == (message.tag, dict(message.properties))
                assert Receipt(got.queue, got.offset) == receipts[message.id]
                assert before - 5000 <= got.born_at <= got.stored_at + 5000
                assert before - 5000 <= got.stored_at <= int(time.time() * 1000) + 5000


async def test_messages_that_share_their_properties_all_have_them(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend)
        shared = Properties(clientId="GID_a@@@1", qoslevel="1")
        await send(backend, [Message(topic.name, b"x", "A", shared, f"k{n}", backend.new_id()) for n in range(50)])
        listener = Recorder()
        await backend.consume(topic.name, None, None, listener)
        assert all(message.properties == dict(shared) for message in await listener.until(50))


async def test_one_key_keeps_its_order_in_the_queue_and_in_the_answers(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend)
        answers = Answers()
        sent = [message_of(backend, topic, b"%d" % n, key=f"key{n % 7}") for n in range(1000)]
        for n, message in enumerate(sent):
            backend.submit(message, answers.of(message))
            if n % 100 == 0:
                await trio.sleep(0.002)
        await answers.until(len(sent))
        places = {message.id: receipt for (message, _), receipt in zip(answers.all, answers.receipts(), strict=True)}
        told = [message.id for message, _ in answers.all]
        for key in {message.key for message in sent}:
            ids = [message.id for message in sent if message.key == key]
            assert len({places[id].queue for id in ids}) == 1, "one key, one queue"
            offsets = [places[id].offset for id in ids]
            assert offsets == sorted(set(offsets))
            assert [id for id in told if id in set(ids)] == ids


async def test_the_queue_of_a_key_is_its_crc32_over_the_sorted_queues(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend, 8)
        keys = [f"GID_x@@@{n}" for n in range(20)] + ["", "ü"]
        receipts = await send(backend, [message_of(backend, topic, key=key) for key in keys])
        assert [receipt.queue for receipt in receipts] == [topic.queues[crc32(key.encode()) % 8] for key in keys]


@pytest.mark.parametrize(
    "properties",
    [
        {"": "value"},
        {"name": ""},
        {"na\1me": "v"},
        {"name": "v\1"},
        {"na\2me": "v"},
        {"name": "\2v"},
        {"name": "v" * 32_768},
        {"TAGS": "MQ2MQTT"},
    ],
    ids=["no name", "no value", "1 in name", "1 in value", "2 in name", "2 in value", "too long", "RocketMQ's own"],
)
async def test_properties_that_can_not_be_carried_are_refused_and_nothing_else(site: Site, properties: dict[str, str]) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend, 1)
        answers = Answers()
        good, last = message_of(backend, topic), message_of(backend, topic)
        bad = Message(topic.name, b"body", "", Properties(properties), "key", backend.new_id())
        for message in (good, bad, last):
            backend.submit(message, answers.of(message))
        await answers.until(3)
        by_id = {message.id: answer for message, answer in answers.all}
        assert isinstance(by_id[good.id], Receipt)
        assert isinstance(by_id[last.id], Receipt)
        refused = by_id[bad.id]
        assert isinstance(refused, BackendError)
        assert refused.refusal is Refusal.INVALID


async def test_a_body_over_4_mib_is_too_large_and_its_neighbours_are_stored(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend, 1)
        answers = Answers()
        for body in (b"before", bytes(4 * 1024 * 1024 + 1), b"after"):
            message = message_of(backend, topic, body)
            backend.submit(message, answers.of(message))
        await answers.until(3)
        verdicts = {message.body[:6]: answer for message, answer in answers.all}
        assert isinstance(verdicts[b"before"], Receipt)
        assert isinstance(verdicts[b"after"], Receipt)
        refused = verdicts[bytes(6)]
        assert isinstance(refused, BackendError)
        assert refused.refusal is Refusal.TOO_LARGE


async def test_large_messages_at_once_do_not_fail_each_other(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend, 2)
        receipts = await send(backend, [message_of(backend, topic, bytes(65_536), key=f"k{n}") for n in range(200)])
        assert len(set(receipts)) == 200


async def test_an_unknown_topic_is_refused(site: Site) -> None:
    async with site.open() as backend:
        answer = await send_one(backend, message_of(backend, new_name()))
        assert isinstance(answer, BackendError)
        assert answer.refusal is Refusal.NO_SUCH_TOPIC
        for ask in (backend.consume(new_name(), None, None, Recorder()), backend.commit_end(new_name(), new_name("g"))):
            with pytest.raises(BackendError) as refused:
                await ask
            assert refused.value.refusal is Refusal.NO_SUCH_TOPIC


async def test_room_and_drain_of_an_idle_backend_return_at_once(site: Site) -> None:
    async with site.open() as backend:
        assert not backend.full
        with trio.fail_after(PATIENCE):
            await backend.room()
            await backend.drain()


async def test_full_is_a_bound_and_room_and_drain_wait_for_it(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend)
        answers = Answers()
        many = 0
        body = bytes(1024)
        while not backend.full:
            assert many < 200_000, "a backlog without a bound"
            message = message_of(backend, topic, body, key=f"k{many % 50}")
            backend.submit(message, answers.of(message))
            many += 1
        with trio.fail_after(2 * PATIENCE):
            await backend.room()
            assert not backend.full
            assert answers.all
            await backend.drain()
        assert len(answers.all) == many
        assert len(set(answers.receipts())) == many


async def test_the_end_answers_every_message_that_was_submitted_exactly_once(site: Site) -> None:
    answers = Answers()
    async with site.open() as backend:
        topic = await new_topic(backend)
        sent = [message_of(backend, topic, bytes(200), key=f"k{n % 9}") for n in range(5000)]
        for message in sent:
            backend.submit(message, answers.of(message))
        await answers.until(1)
    late = Message(topic.name, b"", "", Properties(), "k", sent[0].id)
    backend.submit(late, answers.of(late))
    await answers.until(5001)
    assert sorted(message.id for message, _ in answers.all) == sorted([message.id for message in sent] + [late.id])
    refusals = [answer for _, answer in answers.all if isinstance(answer, BackendError)]
    assert {refusal.refusal for refusal in refusals} == {Refusal.CLOSED}
    stored = {message.id for message, answer in answers.all if isinstance(answer, Receipt)}
    async with site.open() as backend:
        listener = Recorder()
        await backend.consume(topic.name, None, None, listener, start=Start.FIRST)
        await listener.when(lambda: stored <= set(listener.ids))


async def test_health_and_metrics_tell_how_it_is(site: Site) -> None:
    async with site.open() as backend:
        topic = await new_topic(backend)
        await send(backend, [message_of(backend, topic)])
        with trio.fail_after(5):
            health = await backend.health()
        assert health
        assert all(each.ok and each.name and not each.cure for each in health)
        metrics = backend.metrics()
        assert metrics["backlog"] == 0
        assert all(isinstance(value, (int, float)) for value in metrics.values())
        assert backend.capabilities.ordered
        assert backend.capabilities.offsets
