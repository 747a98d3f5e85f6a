"""Lifecycle events and due wills on their way from the outbox to the backend; and how a node starts and ends."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import observe
from gateway.mqtt.packets import PingReq, PingResp
from gateway.mqtt.packets import Will as WillFields
from gateway.ports import Event, Message, OutboxItem, Properties, Refusal, Retained, Will
from tests.runtime.kit import Device, Running, running
from tests.runtime.scripted import ScriptedBackend, ScriptedStore


def event(position: int, name: str = "dev1", type: str = "connect", group: str = "GID_test") -> OutboxItem:
    client_id = f"{group}@@@{name}"
    return OutboxItem(position, client_id, Event(f"E{position}", client_id, type, 1000 + position, position, "c", "ip:1", "", "test"), None)


def will(position: int, retained: bool = False) -> OutboxItem:
    message = Message("known", b"gone", "MQTT2MQ", Properties(qoslevel="1"), "GID_test@@@dev1", f"W{position}", True)
    keep = Retained("known/w", b"gone", 1, message.id, 0) if retained else None
    return OutboxItem(position, message.key, None, Will(message, keep))


async def test_order_and_removal_when_the_backend_has_them(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.backend.holding = True
        run.store.put_out(event(1), event(2, type="tcpclean"), will(3), event(4, "dev2"))
        await wait_all_tasks_blocked()
        assert [(message.topic, message.id, message.tag) for message in run.backend.submitted] == [
            ("GID_test_MQTT", "E1", "connect"),
            ("GID_test_MQTT", "E2", "tcpclean"),
            ("known", "W3", "MQTT2MQ"),
            ("GID_test_MQTT", "E4", "connect"),
        ]
        assert json.loads(run.backend.submitted[0].body)["clientId"] == "GID_test@@@dev1"
        assert run.store.of("outbox_remove") == []
        run.backend.answer()
        await wait_all_tasks_blocked()
        assert sorted(position for call in run.store.of("outbox_remove") for position in call) == [1, 2, 3, 4]


async def test_missing_event_topic_is_said_once_and_found_later(autojump_clock: MockClock) -> None:
    backend = ScriptedBackend()
    backend.absent.add("GID_test_MQTT")
    async with running(backend=backend) as run:
        before = observe.counters().get("event_topic_missing", 0)
        for number in range(1, 4):
            run.store.put_out(event(number))
            await trio.sleep(31)  # it is looked for again
        assert observe.counters()["event_topic_missing"] == before + 1
        assert backend.asked.count("GID_test_MQTT") == 3
        assert run.store.items == []
        assert backend.submitted == []
        backend.absent.clear()
        run.store.put_out(event(9))
        await wait_all_tasks_blocked()
        assert [message.id for message in backend.submitted] == ["E9"]


async def test_a_topic_that_may_not_be_read_holds_up_nobody(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.backend.down = Refusal.NOT_PERMITTED
        run.store.put_out(event(1), will(2))
        await trio.sleep(5)
        assert [message.id for message in run.backend.submitted] == ["W2"]
        assert run.store.items == []


async def test_events_wait_for_a_backend_that_is_away(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.backend.down = Refusal.UNAVAILABLE
        run.store.put_out(event(1))
        await trio.sleep(20)
        assert len(run.store.items) == 1
        run.backend.down = None
        await trio.sleep(2)
        assert [message.id for message in run.backend.submitted] == ["E1"]
        assert run.store.items == []


async def test_outbox_goes_on_when_the_store_answers_again(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.store.failing = {"outbox", "outbox_remove"}
        run.store.put_out(event(1))
        await trio.sleep(5)
        assert run.backend.submitted == []
        run.store.failing = {"outbox_remove"}
        await trio.sleep(2)
        run.store.failing.clear()
        run.store.put_out(event(2))
        await trio.sleep(2)
        assert [message.id for message in run.backend.submitted] == ["E1", "E2"]
        assert run.store.items == []


async def test_what_was_not_removed_comes_again_after_a_restart_with_its_id(autojump_clock: MockClock) -> None:
    store, backend = ScriptedStore(), ScriptedBackend()
    store.failing.add("outbox_remove")
    async with running(store, backend) as run:
        run.store.put_out(event(1))
        await wait_all_tasks_blocked()
    store.failing.clear()
    async with running(store, backend):
        await wait_all_tasks_blocked()
    assert [message.id for message in backend.submitted] == ["E1", "E1"]
    assert store.items == []


async def test_retained_will_is_kept_too_before_it_leaves_the_outbox(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.store.holding.add("retain")
        run.store.put_out(will(1, retained=True))
        await wait_all_tasks_blocked()
        assert run.store.of("outbox_remove") == []
        run.store.answer()
        await wait_all_tasks_blocked()
        assert run.store.items == []
        topic, kept = run.store.of("retain")[0]
        assert topic == "known/w"
        assert kept.stored_at > 0


# ---------------------------------------------------------------- start and end of a node


async def test_connections_of_a_former_life_are_released_under_either_name(autojump_clock: MockClock) -> None:
    store = ScriptedStore()
    store.marks["node"] = "name-of-the-last-container"
    async with running(store):
        assert sorted(store.of("abandoned")) == ["name-of-the-last-container", "test"]
        assert store.marks["node"] == "test"


async def test_shutdown_releases_everybody_impolitely_with_the_will(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = run.plug_in()
        device.connect(will=WillFields("known/w", b"gone", 1, False))
        await device.wait(1)
        silent = run.plug_in("dev2")
        await wait_all_tasks_blocked()
        claim = run.store.of("claim")[0]
        assert claim.will is not None
        await run.node.drain_links()
        began = trio.current_time()
        await run.node.drain(5)
        assert trio.current_time() - began < 1
        assert device.closed
        assert silent.closed
        assert [(each.polite, each.reason) for each in run.store.of("release")] == [(False, "shutdown")]


async def test_shutdown_does_not_wait_for_ever(autojump_clock: MockClock) -> None:
    async with running() as run:
        await run.device()
        run.store.failing.add("release")
        await run.node.drain_links()
        began = trio.current_time()
        await run.node.drain(5)
        assert trio.current_time() - began < 5.1


async def crowd(run: Running, number: int = 100) -> list[Device]:
    return [await run.device(f"dev{i}", clean=True) for i in range(number)]


async def test_connections_are_closed_at_a_rate(autojump_clock: MockClock) -> None:
    async with running() as run:
        devices = await crowd(run)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.node.drain_links, 10, 60)
            for second in range(1, 10):
                await trio.sleep_until(began + second - 0.05)
                closed = [device for device in devices if device.closed]
                assert len(closed) == 10 * second
            assert closed != devices[: len(closed)]  # in no order that a fleet has
        assert trio.current_time() - began == pytest.approx(10, abs=0.01)
        assert all(device.closed for device in devices)


async def test_the_rate_is_raised_where_the_time_would_not_do(autojump_clock: MockClock) -> None:
    async with running() as run:
        devices = await crowd(run)
        began = trio.current_time()
        await run.node.drain_links(10, 4)
        assert trio.current_time() - began == pytest.approx(4, abs=0.01)
        assert all(device.closed for device in devices)


async def test_who_went_by_himself_costs_no_time(autojump_clock: MockClock) -> None:
    async with running() as run:
        devices = await crowd(run)
        began = trio.current_time()
        for device in devices[1:]:
            device.hang_up()
        await wait_all_tasks_blocked()
        await run.node.drain_links(10, 60)
        assert trio.current_time() - began == pytest.approx(0.1, abs=0.01)


async def test_a_hurry_closes_the_rest_at_once(autojump_clock: MockClock) -> None:
    async with running() as run:
        devices, hurry = await crowd(run), trio.Event()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.node.drain_links, 10, 60, hurry)
            await trio.sleep(2.05)
            assert sum(device.closed for device in devices) == 21
            hurry.set()
        assert trio.current_time() - began == pytest.approx(2.05, abs=0.01)
        assert all(device.closed for device in devices)


async def test_devices_are_served_until_it_is_their_turn(autojump_clock: MockClock) -> None:
    async with running() as run:
        devices = await crowd(run, 10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.node.drain_links, 1, 60)
            await trio.sleep(4.5)
            alive = [device for device in devices if not device.closed]
            assert len(alive) == 5
            for device in alive:
                device.send(PingReq())
            for device in alive:
                assert await device.wait(2) == [PingResp()]


async def test_consumers_are_closed_at_the_end(autojump_clock: MockClock) -> None:
    async with running() as run:
        consumers = list(run.backend.consumers.values())
    assert [consumer.closed for consumer in consumers] == [True, True]


async def test_a_device_that_never_says_connect(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = run.plug_in()
        await trio.sleep(9.9)
        assert not device.closed
        await trio.sleep(0.2)
        assert device.closed
        assert run.store.of("claim") == []
