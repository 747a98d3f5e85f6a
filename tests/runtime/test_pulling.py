"""Active mode: a device that asks for its stored messages gets what it asks for, each once, and nothing stored unasked."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import observe
from gateway.mqtt.packets import Packet, PingReq, PubAck, PubComp, Publish, PubRec, PubRel, Subscribe
from gateway.ports import Claimed, OfflineMessage, Phase, Retained, Subscription, Waiting
from gateway.runtime.outbound import Outbound
from tests.runtime.kit import Device, Running, running
from tests.runtime.scripted import ScriptedStore

ID = "GID_test@@@dev1"
TOPIC = "$SYS/getOfflineMsg"
_ids = count(1000)


class Keeping(ScriptedStore):
    """What is put and was never sent joins the backlog, behind what is there."""

    def _place(self, waiting: Waiting) -> int:
        if waiting.position:
            if waiting.phase is not Phase.WAITING:
                self.backlog = [each for each in self.backlog if each.position != waiting.position]
            return waiting.position
        position = super()._place(waiting)
        if position and waiting.phase is Phase.WAITING:
            position += 100_000
            self.backlog.append(replace(waiting, position=position))
        return position


@asynccontextmanager
async def waiting(number: int, **sections: dict[str, Any]) -> AsyncIterator[Running]:
    """A node; the session of dev1 subscribes known/# at QoS 1, and `number` messages b0, b1, ... wait for it."""
    store = Keeping()
    store.backlog = [Waiting(ID, OfflineMessage(f"b{n}", "known/a", b"b%d" % n, 1), 1, position=1000 + n) for n in range(number)]
    store.claimed = lambda claim, epoch: Claimed(epoch, True, [Subscription("known/#", 1, 0)], backlog=len(store.backlog))
    async with running(store, None, (), **sections) as run:
        yield run


def request(order: str = "ASC", most: object = 1, qos: int = 1) -> Publish:
    payload = json.dumps({"pushOrder": order, "maxPushNum": most}).encode()
    return Publish(TOPIC, payload, qos, packet_id=next(_ids) if qos else 0)


def got(device: Device, begin: int = 0) -> list[bytes]:
    return [packet.payload for packet in device.published[begin:]]


def named(*numbers: int) -> list[bytes]:
    return [b"b%d" % number for number in numbers]


def acknowledge(device: Device, begin: int = 0, end: int | None = None) -> None:
    answers: list[Packet] = [PubAck(packet.packet_id) for packet in device.published[begin:end] if packet.qos]
    if answers:
        device.send(*answers)


async def live(run: Running, payload: bytes) -> None:
    await run.backend.give(run.log.message(payload, mqttSecondTopic="/a"))


async def ask(device: Device, *requests: Packet) -> list[bytes]:
    """What comes for these requests."""
    begin = len(device.published)
    device.send(*requests)
    await wait_all_tasks_blocked()
    return got(device, begin)


def ignored() -> dict[str, int]:
    """By reason."""
    return {reason: n for (event, reason), n in observe.reasons().items() if event == "offline_request_ignored"}


def more_ignored(before: dict[str, int]) -> dict[str, int]:
    return {reason: n - before.get(reason, 0) for reason, n in ignored().items() if n != before.get(reason, 0)}


# ---------------------------------------------------------------- what a request brings


async def test_oldest_and_newest_and_never_the_same_twice(autojump_clock: MockClock) -> None:
    """Nothing is acknowledged meanwhile: each request brings others than the ones before."""
    async with waiting(60, limits={"offline_batch": 5, "pull_per_second": 10}) as run:
        device = await run.device()
        await wait_all_tasks_blocked()
        assert got(device) == named(*range(5))  # automatic mode begins at once
        assert await ask(device, request("ASC", 10)) == named(*range(5, 15))
        assert await ask(device, request("DESC", 10)) == named(*range(59, 49, -1))
        assert await ask(device, request("DESC", 31)) == named(*range(49, 19, -1))  # taken as 30
        assert await ask(device, request("ASC", 4), request("DESC", 30)) == named(15, 16, 17, 18, 19)
        assert await ask(device, request("ASC", 30)) == []
        acknowledge(device)
        await trio.sleep(60)
        assert len(device.published) == 60
        assert run.store.backlog == []
        assert run.backend.submitted == []


async def test_the_first_request_ends_automatic_mode(autojump_clock: MockClock) -> None:
    async with waiting(9, limits={"offline_batch": 2}) as run:
        device = await run.device(answers=2)
        acknowledge(device)
        await trio.sleep(1.5)
        assert got(device) == named(0, 1, 2, 3)
        assert await ask(device, request("DESC", 1)) == named(8)
        acknowledge(device, 2)
        await trio.sleep(600)
        assert got(device) == named(0, 1, 2, 3, 8)
        assert await ask(device, request("ASC", 30)) == named(4, 5, 6, 7)


async def test_a_late_first_request_ends_it_too(autojump_clock: MockClock) -> None:
    async with waiting(9, limits={"offline_batch": 2}) as run:
        device = await run.device(answers=2, keep_alive=2)
        for _ in range(3):
            await trio.sleep(1.5)
            device.send(PingReq())
        assert await ask(device, request("ASC", 1)) == named(2)
        acknowledge(device)
        for _ in range(10):
            await trio.sleep(1.5)
            device.send(PingReq())
        assert got(device) == named(0, 1, 2)


async def test_a_batch_that_the_store_has_not_given_yet_does_not_come(autojump_clock: MockClock) -> None:
    async with waiting(9, limits={"offline_batch": 4}) as run:
        run.store.holding.add("offline_get")
        device = await run.device()
        await wait_all_tasks_blocked()
        assert len(run.store.unanswered) == 1
        assert await ask(device, request("DESC", 2)) == []
        run.store.answer()
        await trio.sleep(30)
        assert got(device) == named(8, 7)


async def test_a_new_connection_is_in_automatic_mode_again(autojump_clock: MockClock) -> None:
    async with waiting(6, limits={"offline_batch": 2}) as run:
        device = await run.device(answers=2)
        assert await ask(device, request("DESC", 1)) == named(5)
        acknowledge(device)
        await trio.sleep(30)
        again = await run.device(answers=2)
        acknowledge(again)
        await trio.sleep(1.5)
        acknowledge(again, 2)
        await trio.sleep(5)
        assert got(again) == named(2, 3, 4)


# ---------------------------------------------------------------- requests as packets


async def test_the_sixth_request_in_a_second_is_acknowledged_and_ignored(autojump_clock: MockClock) -> None:
    async with waiting(30, limits={"offline_batch": 2}) as run:
        device = await run.device(answers=2)
        before = ignored()
        requests = [request("ASC", 1) for _ in range(6)]
        assert await ask(device, *requests) == named(2, 3, 4, 5, 6)
        assert [packet.packet_id for packet in device.got if isinstance(packet, PubAck)] == [each.packet_id for each in requests]
        assert more_ignored(before) == {"too_often": 1}
        await trio.sleep(0.9)
        assert await ask(device, request("ASC", 1)) == []
        await trio.sleep(0.1)
        assert await ask(device, *(request("ASC", 1) for _ in range(9))) == named(7, 8, 9, 10, 11)
        assert more_ignored(before) == {"too_often": 6}


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_requests_that_say_nothing_are_acknowledged_and_ignored(qos: int, autojump_clock: MockClock) -> None:
    async with waiting(5, limits={"offline_batch": 2}) as run:
        device = await run.device(answers=2)
        before = ignored()
        bad = [request("up", 3, qos), request("ASC", 0, qos), request("ASC", "3", qos), Publish(TOPIC, b"ASC", qos, packet_id=qos and 77)]
        assert await ask(device, *bad) == []
        answers = [packet.packet_id for packet in device.got if isinstance(packet, (PubAck, PubRec))]
        assert answers == ([each.packet_id for each in bad] if qos else [])
        assert more_ignored(before) == {"invalid": 4}
        acknowledge(device)
        await trio.sleep(1.5)
        assert got(device) == named(0, 1, 2, 3)  # automatic mode goes on


async def test_requests_at_qos_0_and_2(autojump_clock: MockClock) -> None:
    async with waiting(9, limits={"offline_batch": 2}, bridge={"default_topic": "known"}) as run:
        device = await run.device(answers=2)
        assert await ask(device, request("ASC", 2, 0)) == named(2, 3)
        twice = request("ASC", 2, 2)
        assert await ask(device, twice, PubRel(twice.packet_id)) == named(4, 5)
        assert [packet for packet in device.got if isinstance(packet, (PubRec, PubComp))] == [
            PubRec(twice.packet_id),
            PubComp(twice.packet_id),
        ]
        assert run.backend.submitted == []


async def test_a_clean_session_gets_an_acknowledgement_and_nothing_else(autojump_clock: MockClock) -> None:
    async with waiting(0) as run:
        device = await run.device(clean=True)
        asked = request("ASC", 30)
        assert await ask(device, asked) == []
        assert device.got[1:] == [PubAck(asked.packet_id)]
        assert run.store.of("offline_get") == []


# ---------------------------------------------------------------- live messages in active mode


async def test_live_ones_come_at_once_and_what_overflows_waits_for_a_request(autojump_clock: MockClock) -> None:
    async with waiting(2, limits={"offline_batch": 1, "inflight": 1, "mailbox_count": 1}) as run:
        device = await run.device(answers=1)
        acknowledge(device)
        assert await ask(device, request("ASC", 1)) == named(1)
        acknowledge(device, 1)
        await wait_all_tasks_blocked()
        for number in range(3):
            await live(run, b"live%d" % number)
        await wait_all_tasks_blocked()
        for begin in (2, 3, 4):
            acknowledge(device, begin)
            await trio.sleep(20)
        assert got(device, 2) == [b"live0", b"live1"]
        assert run.log.held == 0
        await live(run, b"live3")
        acknowledge(device, 4)
        await wait_all_tasks_blocked()
        assert got(device, 2) == [b"live0", b"live1", b"live3"]
        assert await ask(device, request("ASC", 30)) == [b"live2"]


async def test_live_ones_that_were_stored_because_the_device_was_not_seen_come_at_once(autojump_clock: MockClock) -> None:
    """Once while it connects, once because another node did not know that it is here."""
    async with waiting(3, limits={"offline_batch": 1}) as run:
        run.store.holding.add("offline_put")
        run.node._offline.keep_absent([(ID, 1)], Outbound("known/a", b"met", 1, "met", 1))
        device = await run.device(answers=1)
        assert await ask(device, request("ASC", 1)) == named(1)
        run.store.holding.clear()
        run.store.answer()
        await wait_all_tasks_blocked()
        assert got(device, 2) == [b"met"]
        place = run.store._place(Waiting(ID, OfflineMessage("e", "known/a", b"elsewhere", 1), 1))
        run.node._offline.arrived(ID, place)
        await wait_all_tasks_blocked()
        assert got(device, 3) == [b"elsewhere"]
        run.store._place(Waiting(ID, OfflineMessage("l", "known/a", b"left over", 1), 1))
        run.node._offline.arrived(ID, 0)
        await trio.sleep(5)
        assert got(device, 4) == []
        assert await ask(device, request("ASC", 30)) == [*named(2), b"left over"]


async def test_a_message_that_is_overdue_is_not_sent_again(autojump_clock: MockClock) -> None:
    async with waiting(0, limits={"push_timeout_seconds": 2.0, "inflight": 2}) as run:
        device = await run.device()
        assert await ask(device, request("ASC", 1)) == []
        for number in range(3):
            await live(run, b"live%d" % number)
        await trio.sleep(5)
        assert run.log.held == 0  # all three lie in the store; the third has not been sent
        assert [each.message.payload for each in run.store.backlog] == [b"live2"]
        assert await ask(device, request("ASC", 30), request("DESC", 30)) == []
        acknowledge(device)
        await trio.sleep(5)
        acknowledge(device, 2)
        await wait_all_tasks_blocked()
        assert got(device) == [b"live0", b"live1", b"live2"]
        assert run.store.backlog == []


async def test_a_request_while_an_overdue_message_is_being_stored(autojump_clock: MockClock) -> None:
    async with waiting(0, limits={"push_timeout_seconds": 2.0, "inflight": 1}) as run:
        device = await run.device()
        assert await ask(device, request("ASC", 1)) == []
        for number in range(2):
            await live(run, b"live%d" % number)
        run.store.holding |= {"offline_get", "offline_put"}
        await trio.sleep(3)
        assert run.store.unanswered  # the second, in the queue, is on its way into the store
        device.send(request("ASC", 30))
        await wait_all_tasks_blocked()
        run.store.holding.clear()
        run.store.answer()
        await wait_all_tasks_blocked()
        assert [each.message.payload for each in run.store.backlog] == [b"live1"]
        for _ in range(5):
            acknowledge(device)
            await trio.sleep(1)
        assert got(device) == [b"live0", b"live1"]


async def test_a_store_that_fails_answers_later(autojump_clock: MockClock) -> None:
    async with waiting(9, limits={"offline_batch": 1}) as run:
        device = await run.device(answers=1)
        run.store.failing.add("offline_get")
        before = ignored()
        assert await ask(device, *(request("ASC", 1) for _ in range(5))) == []
        await trio.sleep(1.2)
        assert await ask(device, request("ASC", 1)) == []
        assert more_ignored(before) == {"unanswered": 1}
        run.store.failing.clear()
        await trio.sleep(1.2)
        assert got(device, 1) == named(1, 2, 3, 4, 5)


async def test_many_retained_messages_come_because_a_subscribe_asks_for_them(autojump_clock: MockClock) -> None:
    async with waiting(5, limits={"offline_batch": 2}) as run:
        device = await run.device(answers=2)
        assert await ask(device, request("ASC", 1)) == named(2)
        run.store.kept = [Retained(f"known/r/{number:03}", b"r", 1, f"r{number}", 1) for number in range(300)]
        device.send(Subscribe(1, [("known/r/#", 1)]))
        for _ in range(400):
            acknowledge(device)
            await trio.sleep(0.1)
        assert sum(1 for packet in device.published if packet.retain) == 300
        assert [packet.payload for packet in device.published if not packet.retain] == named(0, 1, 2)
        assert await ask(device, request("ASC", 30)) == named(3, 4)


# ---------------------------------------------------------------- strict order


async def test_strict_order_live_ones_queue_behind_what_waits(autojump_clock: MockClock) -> None:
    async with waiting(4, limits={"offline_batch": 1}, offline={"order": "strict"}) as run:
        device = await run.device(answers=1)
        assert await ask(device, request("ASC", 1)) == named(1)
        acknowledge(device)
        await trio.sleep(30)  # what automatic mode had begun is over
        await live(run, b"live0")
        await trio.sleep(30)
        assert got(device, 2) == []
        assert await ask(device, request("ASC", 30)) == [*named(2, 3), b"live0"]
        await live(run, b"live1")  # nothing waits any more
        await wait_all_tasks_blocked()
        assert got(device, 5) == [b"live1"]


async def test_strict_order_with_live_ones_while_the_store_is_asked(autojump_clock: MockClock) -> None:
    async with waiting(2, limits={"offline_batch": 1}, offline={"order": "strict"}) as run:
        device = await run.device(answers=1)
        run.store.holding |= {"offline_get", "offline_put"}
        assert await ask(device, request("ASC", 30)) == []
        await live(run, b"live0")
        run.store.answer(1)
        await wait_all_tasks_blocked()
        assert got(device, 1) == named(1)
        await live(run, b"live1")  # live0 is still on its way into the store
        run.store.holding.clear()
        run.store.answer()
        await wait_all_tasks_blocked()
        await live(run, b"live2")
        await trio.sleep(5)
        assert got(device, 1) == [*named(1), b"live0", b"live1", b"live2"]


async def test_strict_order_never_more_than_asked_for(autojump_clock: MockClock) -> None:
    async with waiting(2, limits={"offline_batch": 1}, offline={"order": "strict"}) as run:
        device = await run.device(answers=1)
        run.store.holding |= {"offline_get", "offline_put"}
        assert await ask(device, request("ASC", 3)) == []
        for number in range(4):
            await live(run, b"live%d" % number)
        run.store.answer(1)
        await wait_all_tasks_blocked()
        run.store.holding.clear()
        run.store.answer()
        await trio.sleep(5)
        assert got(device, 1) == [*named(1), b"live0", b"live1"]
        assert await ask(device, request("ASC", 3)) == [b"live2", b"live3"]


async def test_strict_order_what_overflows_is_not_overtaken(autojump_clock: MockClock) -> None:
    limits = {"offline_batch": 1, "inflight": 1, "mailbox_count": 1}
    async with waiting(0, limits=limits, offline={"order": "strict"}) as run:
        device = await run.device()
        assert await ask(device, request("ASC", 1)) == []
        for number in range(3):
            await live(run, b"live%d" % number)
        for begin in range(2):
            acknowledge(device, begin)
            await wait_all_tasks_blocked()
        await live(run, b"live3")
        await trio.sleep(5)
        assert got(device) == [b"live0", b"live1"]
        assert await ask(device, request("ASC", 1)) == [b"live2"]
        acknowledge(device, 2)
        assert await ask(device, request("ASC", 5)) == [b"live3"]


async def test_strict_order_what_overflowed_before_the_first_request_is_not_overtaken(autojump_clock: MockClock) -> None:
    limits = {"inflight": 1, "mailbox_count": 1}
    async with waiting(0, limits=limits, offline={"order": "strict"}) as run:
        device = await run.device()
        for number in range(3):
            await live(run, b"live%d" % number)
        assert await ask(device, request("ASC", 1)) == []  # no room
        acknowledge(device)
        await wait_all_tasks_blocked()
        await live(run, b"live3")
        acknowledge(device, 1)
        await trio.sleep(5)
        assert got(device) == [b"live0", b"live1"]
        assert await ask(device, request("ASC", 30)) == [b"live2"]
        acknowledge(device, 2)
        await wait_all_tasks_blocked()
        assert got(device, 2) == [b"live2", b"live3"]


# ---------------------------------------------------------------- offline.first_batch = after_first_period

PATIENT = {"first_batch": "after_first_period", "first_period_seconds": 20.0}


@pytest.mark.parametrize(("keep_alive", "period"), [(8, 8.0), (0, 20.0)])
@pytest.mark.parametrize("number", [1, 3])
async def test_automatic_mode_begins_after_the_first_period(number: int, keep_alive: int, period: float, autojump_clock: MockClock) -> None:
    async with waiting(number, limits={"offline_batch": 2}, offline=PATIENT) as run:
        device = await run.device(keep_alive=keep_alive)
        began = trio.current_time()
        await live(run, b"live")
        await wait_all_tasks_blocked()
        assert got(device) == [b"live"]
        await trio.sleep(period - 1)
        assert got(device) == [b"live"]
        with trio.fail_after(3):
            await device.wait(3)
        assert period <= trio.current_time() - began <= period + 0.6
        acknowledge(device)
        await trio.sleep(2)
        assert got(device) == [b"live", *named(*range(number))]


@pytest.mark.parametrize("order", ["live_first", "strict"])
async def test_nothing_stored_comes_before_the_first_request(order: str, autojump_clock: MockClock) -> None:
    async with waiting(5, limits={"offline_batch": 2}, offline={**PATIENT, "order": order}) as run:
        device = await run.device()
        await trio.sleep(15)
        assert got(device) == []
        assert await ask(device, request("DESC", 2)) == named(4, 3)
        acknowledge(device)
        await trio.sleep(100)
        assert got(device) == named(4, 3)
        assert await ask(device, request("ASC", 30)) == named(0, 1, 2)


async def test_strict_order_over_the_end_of_the_first_period(autojump_clock: MockClock) -> None:
    async with waiting(2, limits={"offline_batch": 2}, offline={**PATIENT, "order": "strict"}) as run:
        device = await run.device()
        await live(run, b"live")
        await trio.sleep(19)
        assert got(device) == []
        for _ in range(5):
            await trio.sleep(1)
            acknowledge(device)
        assert got(device) == [*named(0, 1), b"live"]
        await live(run, b"live too")
        await wait_all_tasks_blocked()
        assert got(device, 3) == [b"live too"]


async def test_without_a_backlog_strict_order_holds_nothing_back(autojump_clock: MockClock) -> None:
    async with waiting(0, offline={**PATIENT, "order": "strict"}) as run:
        device = await run.device()
        await live(run, b"live")
        await wait_all_tasks_blocked()
        assert got(device) == [b"live"]


async def test_retained_ones_and_the_backlog_when_the_first_period_ends_between(autojump_clock: MockClock) -> None:
    async with waiting(5, limits={"offline_batch": 2}, offline=PATIENT) as run:
        device = await run.device()
        await trio.sleep(15)
        run.store.kept = [Retained(f"known/r/{number:03}", b"r", 1, f"r{number}", 1) for number in range(300)]
        device.send(Subscribe(1, [("known/r/#", 1)]))
        for _ in range(400):
            await trio.sleep(0.1)
            acknowledge(device)
        assert sum(1 for packet in device.published if packet.retain) == 300
        assert [packet.payload for packet in device.published if not packet.retain] == named(*range(5))


# ---------------------------------------------------------------- anything at all


@pytest.mark.parametrize("order", ["live_first", "strict"])
@pytest.mark.parametrize("seed", range(12))
async def test_each_message_comes_once_whatever_happens(seed: int, order: str, autojump_clock: MockClock) -> None:
    """Requests, acknowledgements, live messages and a store that is slow or fails, in any order on one connection."""
    dice = random.Random(seed)
    limits = {"offline_batch": 3, "inflight": 4, "mailbox_count": 4, "push_timeout_seconds": 1.0}
    async with waiting(40, limits=limits, offline={"order": order}) as run:
        device = await run.device()
        sent, acknowledged = set(named(*range(40))), 0
        for step in range(150):
            match dice.randrange(7):
                case 0 | 1:
                    device.send(request(dice.choice(["ASC", "DESC"]), dice.randint(1, 6)))
                case 2 | 3:
                    end = dice.randint(acknowledged, len(device.published))
                    acknowledge(device, acknowledged, end)
                    acknowledged = end
                case 4:
                    sent.add(b"live%d" % step)
                    await live(run, b"live%d" % step)
                case 5:
                    run.store.holding ^= {"offline_get", "offline_put", "offline_remove"}  # together: a store keeps a client's order
                    run.store.answer()
                case 6:
                    run.store.failing ^= {dice.choice(["offline_get", "offline_put", "offline_remove"])}
            await trio.sleep(dice.choice([0, 0, 0.05, 0.4, 2]))
        run.store.holding.clear()
        run.store.failing.clear()
        run.store.answer()
        for _ in range(60):
            device.send(request("ASC", 30))
            await trio.sleep(1.5)
            acknowledge(device, acknowledged)
            acknowledged = len(device.published)
        payloads = got(device)
        assert sorted(payloads) == sorted(sent)
        assert run.store.backlog == []
        assert run.log.held == 0
