"""From backend messages to devices: who gets one, at which QoS, and when devices' own messages are pulled."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import observe
from gateway.mqtt.packets import PingReq, PingResp, Publish, SubAck, Subscribe, Unsubscribe
from gateway.ports import Queue, Refusal, Retained, Subscription
from tests.runtime.kit import running, wall_clock
from tests.runtime.scripted import ScriptedBackend

NARROW = frozenset({"MQ2MQTT", "MQTTP2P"})
WIDE = NARROW | {"MQTT2MQ"}
EARLY = 1  # ms: long before any test subscribes


def sub(*filters: tuple[str, int], packet_id: int = 1) -> Subscribe:
    return Subscribe(packet_id, list(filters))


async def test_mqtt_3_3_5_1_overlapping_filters_get_it_once_at_the_greatest_qos(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device("dev1", sub(("known/#", 0), ("known/+", 2), ("known/a", 1)), answers=1)
        await run.backend.give(run.log.message(mqttSecondTopic="/a", qoslevel="2"))
        await run.backend.give(run.log.message(mqttSecondTopic="/a", qoslevel="1"))
        assert [packet.qos for packet in device.published] == [2, 1]


async def test_p2p_reaches_one_that_subscribed_nothing_and_nobody_else(autojump_clock: MockClock) -> None:
    async with running() as run:
        one = await run.device("dev1")
        two = await run.device("dev2", sub(("known/#", 1), ("#", 1)), answers=1)
        await run.backend.give(run.log.message(mqttSecondTopic=f"/p2p/{one.client_id}"))
        assert [(packet.topic, packet.qos) for packet in one.published] == [(f"known/p2p/{one.client_id}", 1)]
        assert two.published == []


@pytest.mark.parametrize(("flag", "kept"), [("false", 1), ("true", 0), ("", 0)])
async def test_p2p_is_kept_if_its_sender_was_persistent(flag: str, kept: int, autojump_clock: MockClock) -> None:
    async with running() as run:
        await run.backend.give(run.log.message(mqttSecondTopic="/p2p/GID_test@@@gone", cleansessionflag=flag))
        assert len(run.store.of("offline_put")) == kept
        assert run.log.held == 0


@pytest.mark.parametrize(("qos", "sent"), [("0", []), ("1", [1]), ("2", [2])])
async def test_reread_messages_only_for_older_subscriptions_and_never_at_qos_0(
    qos: str, sent: list[int], autojump_clock: MockClock
) -> None:
    async with running() as run:
        before = 2**60  # ms: behind any subscription of this test
        device = await run.device("dev1", sub(("known/a", 2)), answers=1)
        await run.backend.give(run.log.message(mqttSecondTopic="/a", qoslevel=qos, replayed=True, stored_at=EARLY))
        assert device.published == []
        await run.backend.give(run.log.message(mqttSecondTopic="/a", qoslevel=qos, replayed=True, stored_at=before))
        assert [packet.qos for packet in device.published] == sent


async def test_reread_message_never_goes_to_a_qos_0_subscription(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device("dev1", sub(("known/a", 0)), answers=1)
        await run.backend.give(run.log.message(mqttSecondTopic="/a", replayed=True, stored_at=2**60))
        assert device.published == []


async def test_subscription_made_again_is_as_old_as_it_was(autojump_clock: MockClock) -> None:
    """Clients subscribe anew at every CONNECT; what was stored since they did so first is still for them."""
    async with running() as run:
        device = await run.device("dev1", sub(("known/a", 1)), answers=1)
        between = wall_clock() + 1
        while wall_clock() <= between + 1:
            pass
        device.send(sub(("known/a", 1), packet_id=2))
        await device.wait(3)
        await run.backend.give(run.log.message(mqttSecondTopic="/a", replayed=True, stored_at=between))
        assert [packet.qos for packet in device.published] == [1]


@pytest.mark.parametrize(
    ("second", "reason"),
    [("/a/+", "topic_wildcard"), ("/\x07", "topic_control_character"), ("/p2p/", "p2p_without_client_id")],
)
async def test_what_can_not_become_a_publish_is_resolved_and_counted(second: str, reason: str, autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device("dev1", sub(("known/#", 1)), answers=1)
        before = observe.reasons().get(("message_unroutable", reason), 0)
        await run.backend.give(run.log.message(b"bad", mqttSecondTopic=second), run.log.message(b"good", mqttSecondTopic="/a"))
        assert observe.reasons()[("message_unroutable", reason)] == before + 1
        assert 0 in run.log.resolved
        assert [packet.payload for packet in device.published] == [b"good"]


@pytest.mark.parametrize("tag", ["", "mine", "MQTT2MQ", "MQTTP2P"])
async def test_other_tags_are_skipped(tag: str, autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device("dev1", sub(("known/#", 1)), answers=1)
        await run.backend.give(run.log.message(tag=tag, mqttSecondTopic="/a"))
        assert device.published == []
        await run.backend.give(run.log.message(tag="MQTT2MQ", mqttSecondTopic="/a", mqttGateway="another"))
        assert device.published == []
        await run.backend.give(run.log.message(tag="MQTT2MQ", mqttSecondTopic="/a", mqttGateway="default"))
        assert len(device.published) == 1


async def test_suback_waits_until_the_parent_is_pulled_with_devices_messages(autojump_clock: MockClock) -> None:
    async with running() as run:
        consumer = run.backend.consumers["known"]
        consumer.open = trio.Event()
        device = await run.device("dev1", sub(("known/a", 1)))
        await wait_all_tasks_blocked()
        assert consumer.retags == [NARROW, WIDE]
        assert device.got[1:] == []
        consumer.open.set()
        await device.wait(2)
        assert device.got[1:] == [SubAck(1, [1])]
        assert run.backend.consumers["other"].retags == [NARROW]


async def test_messages_that_lie_between_position_and_end_are_older_than_the_subscription(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.backend.consumers["known"].behind = {Queue("known", "b", 0): 1}
        device = await run.device("dev1", sub(("known/a", 1)), answers=1)
        old, new = (run.log.message(tag="MQTT2MQ", mqttSecondTopic="/a", mqttGateway="default", stored_at=EARLY) for _ in range(2))
        await run.backend.give(old, new)
        assert len(device.published) == 1


async def test_narrow_again_60_seconds_after_the_last_filter(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device("dev1", sub(("known/a", 1)), answers=1)
        retags = run.backend.consumers["known"].retags
        await trio.sleep(300)
        assert retags == [NARROW, WIDE]
        device.send(Unsubscribe(2, ["known/a"]))
        await trio.sleep(55)
        assert retags == [NARROW, WIDE]
        await trio.sleep(30)
        assert retags == [NARROW, WIDE, NARROW]
        device.send(sub(("known/a", 1), packet_id=3))
        await device.wait(4)
        assert retags == [NARROW, WIDE, NARROW, WIDE]


async def test_stored_subscription_is_wide_from_the_start(autojump_clock: MockClock) -> None:
    async with running(stored=[("GID_test@@@dev1", Subscription("+/a", 1, 0))]) as run:
        assert [consumer.retags for consumer in run.backend.consumers.values()] == [[WIDE], [WIDE]]


async def test_backend_that_is_down_at_the_start_is_tried_again(autojump_clock: MockClock) -> None:
    backend = ScriptedBackend()
    backend.down = Refusal.UNAVAILABLE
    async with running(backend=backend) as run:
        assert [health.ok for health in await run.node.views.health()] == [False, False]
        device = await run.device("dev1", sub(("known/a", 1)), PingReq(), answers=2)
        assert device.got[1:] == [SubAck(1, [0x80]), PingResp()]  # after 10 s without an answer
        backend.down = None
        await trio.sleep(40)
        assert await run.node.views.health() == []
        device.send(sub(("known/a", 1), packet_id=2))
        await device.wait(4)
        assert device.got[3] == SubAck(2, [1])


# ---------------------------------------------------------------- SUBSCRIBE


async def test_thirty_filters_and_no_more(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device("dev1", sub(*((f"known/{n}", 1) for n in range(31))), answers=1)
        assert device.got[1] == SubAck(1, [1] * 30 + [0x80])
        device.send(sub(("known/0", 0), ("known/x", 1), packet_id=2))  # one that is there is replaced [MQTT-3.8.4-3]
        await device.wait(3)
        assert device.got[2] == SubAck(2, [0, 0x80])


async def test_filter_that_comes_twice_takes_one_place(autojump_clock: MockClock) -> None:
    async with running(limits={"subscriptions_per_client": 1, "subscriptions": 1}) as run:
        device = await run.device("dev1", sub(("known/a", 1), ("known/a", 2), ("known/b", 1)), answers=1)
        assert device.got[1] == SubAck(1, [1, 2, 0x80])


async def test_limit_of_the_instance(autojump_clock: MockClock) -> None:
    async with running(limits={"subscriptions": 2}) as run:
        await run.device("dev1", sub(("known/a", 1)), answers=1)
        device = await run.device("dev2", sub(("known/a", 1), ("known/b", 1), ("other/a", 2)), answers=1)
        assert device.got[1].codes.count(0x80) == 2  # type: ignore[union-attr]
        assert run.node.views.gauges()["subscriptions"] == 2


async def test_filters_that_are_refused_or_change_nothing(autojump_clock: MockClock) -> None:
    async with running() as run:
        filters = [("nobody/a", 1), ("known/" + "x" * 60, 1), ("known/p2p", 2), ("known/p2p/#", 1), ("known/a", 0)]
        device = await run.device("dev1", sub(*filters), answers=1)
        assert device.got[1] == SubAck(1, [0x80, 0x80, 2, 1, 0])
        assert run.store.of("subscribe") == [("GID_test@@@dev1", ["known/a"])]


async def test_retained_ones_come_behind_the_suback_and_before_live_ones(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.store.kept = [Retained("known/a", b"retained", 1, "r", 1)]
        run.store.holding.add("retained")
        device = await run.device("dev1", sub(("known/a", 1)), clean=True)
        await wait_all_tasks_blocked()
        await run.backend.give(run.log.message(b"live", mqttSecondTopic="/a"))
        assert device.published == []
        run.store.answer()
        await device.wait(4)
        assert device.got[1] == SubAck(1, [1])
        assert [(packet.payload, packet.retain) for packet in device.published] == [(b"retained", True), (b"live", False)]


async def test_device_that_leaves_while_retained_ones_are_read(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.store.kept = [Retained("known/a", b"retained", 1, "r", 1)]
        run.store.holding.add("retained")
        await run.device("dev1", sub(("known/a", 1)), clean=True)
        await wait_all_tasks_blocked()
        await run.device("dev1", clean=True)
        run.store.answer()
        await wait_all_tasks_blocked()
        await run.backend.give(run.log.message(b"live", mqttSecondTopic="/a"))
        assert run.log.held == 0
        assert run.node.views.gauges()["subscriptions"] == 0


async def test_server_apps_retained_message_is_held_until_it_is_kept(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.store.holding.add("retain")
        await run.backend.give(run.log.message(b"r", mqttSecondTopic="/a", mqttRetain="true"))
        assert run.log.held == 1
        run.store.answer()
        assert run.log.held == 0
        topic, kept = run.store.of("retain")[0]
        assert (topic, kept.payload) == ("known/a", b"r")


async def test_publish_reaches_its_own_sender(autojump_clock: MockClock) -> None:
    """What a device sends is what comes back: the properties of the uplink route the downlink."""
    async with running() as run:
        device = await run.device("dev1", sub(("known/a", 1)), Publish("known/a", b"x", 1, packet_id=2), answers=2)
        sent = run.backend.submitted[0]
        await run.backend.give(run.log.message(sent.body, tag=sent.tag, **dict[str, Any](sent.properties)))
        assert [(packet.topic, packet.payload, packet.qos) for packet in device.published] == [("known/a", b"x", 1)]
