"""Messages that wait: nothing is lost while the store fails, and a backlog is brought at its pace."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.mqtt.packets import Packet, PubAck, Publish
from gateway.ports import Claimed, OfflineMessage, Subscription, Waiting
from tests.runtime.kit import Device, Running, running

ID = "GID_test@@@dev1"


def backlog(number: int) -> list[Waiting]:
    """Stored messages, older than anything that a test's store numbers itself."""
    return [Waiting(ID, OfflineMessage(f"b{n}", "known/a", b"b%d" % n, 1), 1, position=1000 + n) for n in range(number)]


def remember(run: Running, number: int) -> None:
    """The session is stored, subscribes known/# at QoS 1 and has a backlog."""
    run.store.backlog = backlog(number)
    run.store.claimed = lambda claim, epoch: Claimed(epoch, True, [Subscription("known/#", 1, 0)], backlog=len(run.store.backlog))


async def live(run: Running, payload: bytes) -> None:
    await run.backend.give(run.log.message(payload, mqttSecondTopic="/a"))


def payloads(packets: list[Publish]) -> list[bytes]:
    return [packet.payload for packet in packets]


def puback(device: Device, first: int, last: int) -> None:
    answers: list[Packet] = [PubAck(packet.packet_id) for packet in device.published[first:last]]
    device.send(*answers)


async def test_store_fails_and_recovers_for_one_that_is_away(autojump_clock: MockClock) -> None:
    async with running(stored=[(ID, Subscription("known/#", 1, 0))]) as run:
        run.store.failing.add("offline_put")
        for number in range(5):
            await live(run, b"%d" % number)
        await trio.sleep(30)
        assert run.log.held == 5  # the backend keeps them
        run.store.failing.clear()
        await trio.sleep(1.5)
        assert run.log.held == 0
        assert [put[0].message.payload for put in run.store.of("offline_put")[-5:]] == [b"0", b"1", b"2", b"3", b"4"]


async def test_removal_is_repeated_while_the_store_fails(autojump_clock: MockClock) -> None:
    async with running() as run:
        remember(run, 1)
        device = await run.device(answers=1)
        run.store.failing.add("offline_remove")
        puback(device, 0, 1)
        await trio.sleep(3)
        run.store.failing.clear()
        await trio.sleep(1.5)
        tried = run.store.of("offline_remove")
        assert len(tried) >= 3
        assert tried == [[1000]] * len(tried)


async def test_small_backlog_comes_behind_connack_and_before_live_ones(autojump_clock: MockClock) -> None:
    async with running() as run:
        remember(run, 3)
        run.store.holding.add("offline_get")
        device = await run.device()
        await live(run, b"live")
        assert device.published == []
        run.store.answer()
        await device.wait(5)
        assert payloads(device.published) == [b"b0", b"b1", b"b2", b"live"]


async def test_batches_wait_for_their_acknowledgements_and_their_interval(autojump_clock: MockClock) -> None:
    async with running(limits={"offline_batch": 2}) as run:
        remember(run, 5)
        device = await run.device(answers=2)
        began = trio.current_time()
        await trio.sleep(10)
        assert payloads(device.published) == [b"b0", b"b1"]  # unacknowledged: no more
        puback(device, 0, 2)
        await device.wait(5)
        assert trio.current_time() - began < 12
        at = trio.current_time()
        puback(device, 2, 4)
        await device.wait(6)
        assert trio.current_time() - at == pytest.approx(1.0, abs=0.1)  # one batch an interval
        assert payloads(device.published) == [b"b0", b"b1", b"b2", b"b3", b"b4"]
        puback(device, 4, 5)
        await trio.sleep(5)
        assert run.store.backlog == []


@pytest.mark.parametrize(
    ("order", "expected"), [("live_first", [b"b0", b"b1", b"live", b"b2", b"b3"]), ("strict", [b"b0", b"b1", b"b2", b"b3", b"live"])]
)
async def test_order_of_a_long_backlog(order: str, expected: list[bytes], autojump_clock: MockClock) -> None:
    async with running(limits={"offline_batch": 2}, offline={"order": order}) as run:
        remember(run, 4)
        device = await run.device(answers=2)
        await live(run, b"live")
        await wait_all_tasks_blocked()
        for each in (one for call in run.store.of("offline_put") for one in call):
            run.store.backlog.append(Waiting(ID, each.message, 1, position=2000))
        for number in range(2, 5):
            puback(device, 0, len(device.published))
            await device.wait(1 + number)
            await trio.sleep(2)
        puback(device, 0, len(device.published))
        await trio.sleep(3)
        assert payloads(device.published) == expected


async def test_backlog_is_brought_when_the_store_answers_again(autojump_clock: MockClock) -> None:
    async with running(limits={"offline_batch": 2}) as run:
        remember(run, 3)
        run.store.failing.add("offline_get")
        device = await run.device()
        await trio.sleep(10)
        assert not device.closed
        run.store.failing.clear()
        await device.wait(3)
        assert payloads(device.published) == [b"b0", b"b1"]


async def test_what_the_store_takes_late_reaches_a_device_that_came_back_meanwhile(autojump_clock: MockClock) -> None:
    async with running(stored=[(ID, Subscription("known/#", 1, 0))]) as run:
        run.store.failing.add("offline_put")
        await live(run, b"late")
        await wait_all_tasks_blocked()
        remember(run, 0)
        device = await run.device()
        await trio.sleep(5)
        run.store.failing.clear()
        run.store.backlog = [Waiting(ID, OfflineMessage("m", "known/a", b"late", 1), 1, position=3000)]
        with trio.move_on_after(10):
            await device.wait(2)
        assert payloads(device.published) == [b"late"]
