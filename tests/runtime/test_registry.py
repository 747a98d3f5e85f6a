"""Who owns a session: take-over in turn, releases until the store has them, and CONNECT without a store; keep-alive and push timeout."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.mqtt.packets import ConnAck, Disconnect, PingReq, PingResp, PubAck, Subscribe
from gateway.ports import Claimed, Subscription
from gateway.runtime.link import CLAIM_SECONDS
from tests.runtime.kit import Running, running
from tests.runtime.scripted import QUEUE

ID = "GID_test@@@dev1"


async def test_mqtt_3_1_4_2_take_over_waits_for_the_release_of_the_older_one(autojump_clock: MockClock) -> None:
    async with running() as run:
        first = await run.device()
        run.store.holding.add("release")
        second = run.plug_in()
        second.connect()
        await wait_all_tasks_blocked()
        assert first.closed
        assert second.got == []
        run.store.answer()
        await wait_all_tasks_blocked()
        assert second.connack == ConnAck(False, 0)
        names = [name for name, _ in run.store.calls if name in ("claim", "release")]
        assert names == ["claim", "release", "claim"]
        assert [(release.reason, release.epoch, release.polite) for release in run.store.of("release")] == [("taken_over", 1, False)]


async def test_take_over_goes_on_without_an_answer_after_its_time(autojump_clock: MockClock) -> None:
    async with running() as run:
        await run.device()
        run.store.holding.add("release")
        began = trio.current_time()
        second = await run.device()
        assert trio.current_time() - began == pytest.approx(2.0, abs=0.01)
        assert second.connack == ConnAck(False, 0)
        run.store.answer()


async def test_connects_that_race_take_turns(autojump_clock: MockClock) -> None:
    """Three CONNECTs with one Client ID while the store thinks: each is owner once, the last one stays."""
    async with running() as run:
        run.store.holding.add("claim")
        devices = [run.plug_in() for _ in range(3)]
        for device in devices:
            device.connect()
            await wait_all_tasks_blocked()
        for number in range(1, 4):
            assert len(run.store.of("claim")) == number
            run.store.answer()
            await wait_all_tasks_blocked()
        assert [device.closed for device in devices] == [True, True, False]
        assert [release.epoch for release in run.store.of("release")] == [1, 2]
        assert run.node.views.gauges()["sessions_online"] == 1


async def test_release_is_repeated_until_the_store_has_it(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device()
        run.store.failing.add("release")
        device.hang_up()
        await trio.sleep(3.5)
        tried = run.store.of("release")
        assert len(tried) == 4
        run.store.failing.clear()
        await trio.sleep(5)
        assert len(run.store.of("release")) == 5
        assert {(each.epoch, each.event_ids, each.reason) for each in run.store.of("release")} == {
            (1, tried[0].event_ids, "connection_lost")
        }


async def test_connect_is_refused_while_the_store_fails(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.store.failing.add("claim")
        device = await run.device()
        assert device.got == [ConnAck(False, 3)]
        await wait_all_tasks_blocked()
        assert device.closed
        run.store.failing.clear()
        again = await run.device()
        assert again.connack == ConnAck(False, 0)


async def test_a_session_that_could_not_be_claimed_in_time_is_left(autojump_clock: MockClock) -> None:
    """The store takes longer than a CONNECT waits: no session of a closed connection stays online."""
    async with running() as run:
        run.store.holding.add("claim")
        device = run.plug_in()
        device.connect()
        await trio.sleep(CLAIM_SECONDS - 1)
        assert not device.closed, "a fleet that comes back waits for its turn"
        await trio.sleep(2)
        assert device.closed
        assert run.node.views.gauges()["sessions_online"] == 0
        run.store.holding.clear()
        run.store.answer()
        assert (await run.device()).connack == ConnAck(False, 0)


async def test_disconnect_is_durable_before_the_device_sees_its_end(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device()
        run.store.holding.add("release")
        device.send(Disconnect())
        await wait_all_tasks_blocked()
        assert not device.closed
        run.store.answer()
        await wait_all_tasks_blocked()
        assert device.closed
        assert [(each.polite, each.reason) for each in run.store.of("release")] == [(True, "client_disconnect")]


async def test_end_of_a_persistent_session_stores_what_is_open_before_its_release(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device("dev1", Subscribe(1, [("known/#", 1)]), answers=1)
        await run.backend.give(run.log.message(mqttSecondTopic="/a"))
        await device.wait(3)
        assert run.log.held == 1
        device.hang_up()
        await wait_all_tasks_blocked()
        names = [name for name, _ in run.store.calls]
        assert names.index("offline_put") < names.index("release")
        assert run.log.held == 0
        await run.backend.give(run.log.message(b"later", mqttSecondTopic="/a"))  # stored at once: nobody is there
        assert [each.message.payload for put in run.store.of("offline_put") for each in put] == [b"x", b"later"]


async def test_end_of_a_clean_session_forgets_its_subscriptions(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device("dev1", Subscribe(1, [("known/#", 1)]), answers=1, clean=True)
        device.hang_up()
        await wait_all_tasks_blocked()
        assert run.node.views.gauges()["subscriptions"] == 0
        await run.backend.give(run.log.message(mqttSecondTopic="/a"))
        assert run.store.of("offline_put") == []


async def test_take_over_during_a_subscribe_leaves_no_subscription_of_the_older_one(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.store.holding.add("subscribe")
        await run.device("dev1", Subscribe(1, [("known/#", 1)]))
        await wait_all_tasks_blocked()
        second = await run.device(clean=True)
        run.store.answer()
        await wait_all_tasks_blocked()
        assert run.node.views.gauges()["subscriptions"] == 0
        await run.backend.give(run.log.message(mqttSecondTopic="/a"))
        assert second.published == []


async def test_session_of_the_store_is_in_force_at_once(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.store.claimed = lambda claim, epoch: Claimed(epoch, True, [Subscription("known/#", 1, 0)])
        device = await run.device()
        assert device.connack == ConnAck(True, 0)
        await run.backend.give(run.log.message(mqttSecondTopic="/a"))
        assert len(device.published) == 1


# ---------------------------------------------------------------- the sweeper


async def test_mqtt_3_1_2_24_silence_of_one_and_a_half_keep_alives(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device(keep_alive=10)
        await trio.sleep(14)
        device.send(PingReq())
        await trio.sleep(14.9)
        assert not device.closed
        assert device.got[1:] == [PingResp()]
        await trio.sleep(1)
        assert device.closed
        await wait_all_tasks_blocked()
        assert [each.reason for each in run.store.of("release")] == ["keep_alive_timeout"]


async def test_keep_alive_0_waits_for_ever(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device(keep_alive=0)
        await trio.sleep(200)
        assert not device.closed


async def _unanswered(run: Running, qos: int) -> None:
    device = await run.device("dev1", Subscribe(1, [("known/#", qos)]), answers=1)
    await run.backend.give(run.log.message(mqttSecondTopic="/a", qoslevel=str(qos)))
    await device.wait(3)


async def test_push_timeout_makes_it_safe_and_a_late_puback_removes_it(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device("dev1", Subscribe(1, [("known/#", 1)]), answers=1)
        await run.backend.give(run.log.message(mqttSecondTopic="/a"))
        await device.wait(3)
        await trio.sleep(4.9)
        assert run.log.held == 1
        assert run.store.of("offline_put") == []
        await trio.sleep(1)
        assert run.log.held == 0
        put = run.store.of("offline_put")[0][0]
        assert (put.client_id, put.packet_id, put.source) == (ID, 1, None)
        await trio.sleep(60)
        assert len(run.store.of("offline_put")) == 1
        assert len(device.published) == 1  # what was written to a connection is not written to it again
        device.send(PubAck(1))
        await wait_all_tasks_blocked()
        assert len(run.store.of("offline_remove")) == 1


async def test_push_timeout_while_the_store_fails(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.store.failing.add("offline_put")
        await _unanswered(run, 1)
        await trio.sleep(20)
        assert run.log.held == 1
        run.store.failing.clear()
        await trio.sleep(1.5)
        assert run.log.held == 0


async def test_qos_2_holds_nothing_once_it_is_stored_with_its_source(autojump_clock: MockClock) -> None:
    async with running() as run:
        await _unanswered(run, 2)
        put = run.store.of("offline_put")[0][0]
        assert put.source == (QUEUE, 0)
        assert run.log.held == 0
