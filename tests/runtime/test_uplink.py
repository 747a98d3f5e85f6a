"""A device's PUBLISHes: acknowledged in their order, stored first, and read no faster than the backend stores."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import observe
from gateway.mqtt.packets import PingReq, PingResp, PubAck, PubComp, Publish, PubRec, PubRel
from gateway.ports import BackendError, Claimed, Message, Properties, Receipt, Refusal, StoreError
from gateway.runtime.uplink import Acknowledging, Fifo, Pending
from tests.runtime.kit import running
from tests.runtime.scripted import QUEUE, ScriptedBackend


class Inlet(Acknowledging):
    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.failed: list[bytes] = []

    def acknowledge(self, answer: bytes, pending: Pending | None) -> None:
        self.answers.append(answer)

    def unstorable(self, pending: Pending) -> None:
        self.failed.append(pending.answer)

    def settled(self) -> None:
        pass


@given(st.data())
def test_mqtt_4_6_0_2_acknowledgements_keep_the_order_of_the_publishes(data: st.DataObject) -> None:
    inlet = Inlet()
    fifo = Fifo(inlet, {})
    number = data.draw(st.integers(1, 12))
    added = [fifo.add(b"%d" % index, 10, waits=data.draw(st.integers(1, 2))) for index in range(number)]
    fifo.answer(b"last")
    assert (fifo.unstored, fifo.unstored_bytes) == (number + 1, number * 10)
    answers = [pending for pending in added for _ in range(pending.waits)]
    fails = data.draw(st.sets(st.integers(0, number - 1)))
    for pending in data.draw(st.permutations(answers)):
        wrong = BackendError(Refusal.TOO_LARGE, "") if added.index(pending) in fails else Receipt(QUEUE, 1)
        pending(wrong)
        due = [b"%d" % index for index in range(number)] + [b"last"]
        unsettled = [index for index, each in enumerate(added) if each.waits]
        due = due[: unsettled[0]] if unsettled else due
        assert [answer for answer in due if answer in inlet.answers] == inlet.answers
        assert len(inlet.answers) + len(inlet.failed) == len(due)
    assert inlet.failed == [b"%d" % index for index in sorted(fails)]
    assert (fifo.unstored, fifo.unstored_bytes) == (0, 0)


@given(st.data())
def test_the_gate_keeps_the_order_of_what_goes_to_the_backend(data: st.DataObject) -> None:
    inlet, backend = Inlet(), ScriptedBackend()
    fifo = Fifo(inlet, {})
    opens: list[Any] = []
    kinds = data.draw(st.lists(st.booleans(), min_size=1, max_size=12))
    for index, gated in enumerate(kinds):
        message = Message("known", b"", "", Properties(), "k", str(index))
        pending = fifo.add(b"%d" % index, 1)
        if gated:
            opens.append(fifo.submit_after(backend, message, pending))
        else:
            fifo.submit(backend, message, pending)
    fails = data.draw(st.sets(st.integers(0, max(0, len(opens) - 1))))
    for index in data.draw(st.permutations(range(len(opens)))):
        opens[index](StoreError("full") if index in fails else True)
    gated_at = [index for index, gated in enumerate(kinds) if gated]
    refused = {gated_at[index] for index in fails if index < len(gated_at)}
    assert [message.id for message in backend.submitted] == [str(index) for index in range(len(kinds)) if index not in refused]
    assert inlet.failed == [b"%d" % index for index in sorted(refused)]


def publishes(*numbers: int, qos: int = 1, size: int = 1) -> list[Publish]:
    return [Publish("known/a", bytes(size), qos, packet_id=number if qos else 0) for number in numbers]


async def test_pubacks_whatever_order_the_backend_answers_in(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.backend.holding = True
        device = await run.device("dev1", *publishes(1, 2), Publish("$SYS/unknown", b"", 1, packet_id=3), PingReq(), answers=1)
        run.backend.answer(1)
        assert device.got[1:] == [PingResp()]
        run.backend.answer(0)
        assert device.got[2:] == [PubAck(1), PubAck(2), PubAck(3)]


@pytest.mark.parametrize(("refusal", "closes"), [(Refusal.TOO_LARGE, False), (Refusal.INVALID, False), (Refusal.NOT_PERMITTED, True)])
@pytest.mark.parametrize("qos", [1, 2])
async def test_what_the_backend_refuses(refusal: Refusal, closes: bool, qos: int, autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device()
        run.backend.refusal = refusal
        device.send(*publishes(1, qos=qos))
        await wait_all_tasks_blocked()
        assert device.closed == closes
        assert device.got[1:] == ([] if closes else [PubAck(1) if qos == 1 else PubRec(1)])


async def test_qos_2_of_a_persistent_session_is_in_the_store_first(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.store.holding.add("inbound_put")
        device = await run.device("dev1", *publishes(1, qos=2), *publishes(2), PingReq(), answers=1)
        assert run.backend.submitted == []
        run.store.answer()
        assert run.backend.submitted[0].id == run.store.of("inbound_put")[0][1]
        assert device.got[2:] == [PubRec(1), PubAck(2)]


async def test_mqtt_4_3_3_2_a_repeat_is_stored_once_and_forgotten_at_pubrel(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.backend.holding = True
        device = await run.device("dev1", *publishes(1, 1, qos=2), PingReq(), answers=1)
        run.backend.answer()
        device.send(*publishes(1, qos=2))
        await device.wait(4)
        assert device.got[2:] == [PubRec(1), PubRec(1)]  # the first two are one; the third came behind the PUBREC
        run.store.holding.add("inbound_remove")
        device.send(PubRel(1), *publishes(1, qos=2))
        await wait_all_tasks_blocked()
        assert PubComp(1) not in device.got
        run.store.answer()
        run.backend.answer()
        assert len(run.backend.submitted) == 2
        assert device.got[4:] == [PubComp(1), PubRec(1)]


async def test_pubcomp_does_not_leave_while_the_store_fails(autojump_clock: MockClock) -> None:
    async with running() as run:
        device = await run.device("dev1", *publishes(1, qos=2), answers=1)
        run.store.failing.add("inbound_remove")
        device.send(PubRel(1))
        await wait_all_tasks_blocked()
        assert device.got[1:] == [PubRec(1)]
        assert device.closed


async def test_a_repeat_on_a_newer_connection_waits_for_the_first(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.backend.holding = True
        first = await run.device("dev1", *publishes(1, qos=2))
        await wait_all_tasks_blocked()
        key = run.store.of("inbound_put")[0][1]
        run.store.claimed = lambda claim, epoch: Claimed(epoch, True, inbound={1: (key, False)})
        first.hang_up()
        await wait_all_tasks_blocked()
        second = await run.device("dev1", *publishes(1, qos=2), PingReq(), answers=1)
        assert len(run.backend.submitted) == 1
        assert second.got[1:] == [PingResp()]
        run.backend.answer()
        assert second.got[2:] == [PubRec(1)]
        assert len(run.backend.submitted) == 1


async def test_after_a_restart_a_repeat_keeps_its_unique_key(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.store.claimed = lambda claim, epoch: Claimed(epoch, True, inbound={1: ("KEY1", False), 2: ("KEY2", True)})
        device = await run.device("dev1", *publishes(1, 2, qos=2), answers=2)
        assert device.got[1:] == [PubRec(1), PubRec(2)]
        assert [message.id for message in run.backend.submitted] == ["KEY1"]  # KEY2 is there


async def _reads_until(full: bool, size: int, number: int) -> int:
    """How many PUBLISHes of a device the gateway takes while nothing is stored; then everything is stored, and it takes the rest."""
    async with running() as run:
        run.backend.holding = True
        run.backend.full = full
        device = await run.device(keep_alive=10)
        for packet_id in range(1, number + 1):
            device.send(*publishes(packet_id, size=size))
        await wait_all_tasks_blocked()
        taken = len(run.backend.submitted)
        await trio.sleep(60)
        assert not device.closed  # its keep-alive stands still
        run.backend.full = False
        while len(run.backend.submitted) < number or run.backend.unanswered:
            run.backend.answer()
            await wait_all_tasks_blocked()
        assert device.got[1:] == [PubAck(packet_id) for packet_id in range(1, number + 1)]
        await trio.sleep(14)
        assert not device.closed
        await trio.sleep(2)
        assert device.closed  # it is read again, so silence counts again
        return taken


async def test_back_pressure_by_count(autojump_clock: MockClock) -> None:
    assert await _reads_until(False, 1, 150) == 100


async def test_back_pressure_by_bytes(autojump_clock: MockClock) -> None:
    assert await _reads_until(False, 60_000, 30) == 18  # the first at or over 1 MiB


async def test_back_pressure_is_earlier_while_the_backend_is_full(autojump_clock: MockClock) -> None:
    assert await _reads_until(True, 1, 50) == 32


async def test_a_few_in_flight_still_get_their_pingresp_while_the_backend_is_full(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.backend.holding = run.backend.full = True
        device = await run.device("dev1", *publishes(*range(1, 32)), PingReq(), answers=1)
        assert device.got[1:] == [PingResp()]


async def test_a_link_that_waits_for_the_backend_can_be_taken_over(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.backend.holding = True
        first = await run.device("dev1", *publishes(*range(1, 120)))
        await wait_all_tasks_blocked()
        await run.device("dev1")
        await wait_all_tasks_blocked()
        assert first.closed
        assert trio.current_time() < 1


async def test_qos_0_is_dropped_while_the_backend_is_full(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.backend.full = True
        before = observe.counters().get("qos0_dropped", 0)
        await run.device("dev1", *publishes(0, qos=0), PingReq(), answers=1)
        assert run.backend.submitted == []
        assert observe.counters()["qos0_dropped"] == before + 1


@pytest.mark.parametrize(("qos", "answer"), [(0, []), (1, [PubAck(1)]), (2, [PubRec(1)])])
async def test_payload_over_the_limit_is_acknowledged_and_dropped(qos: int, answer: list[Any], autojump_clock: MockClock) -> None:
    async with running(limits={"payload_bytes": 10}) as run:
        device = await run.device("dev1", *publishes(1, qos=qos, size=11), PingReq(), answers=1 + len(answer))
        assert device.got[1:] == [*answer, PingResp()]
        assert run.backend.submitted == []
        device.send(*publishes(2, qos=1, size=10))
        await device.wait(3 + len(answer))
        assert len(run.backend.submitted) == 1


async def test_mqtt_3_3_1_5_retained_is_kept_before_the_puback(autojump_clock: MockClock) -> None:
    async with running() as run:
        run.store.holding.add("retain")
        device = await run.device("dev1", Publish("known/a", b"x", 1, retain=True, packet_id=1), PingReq(), answers=1)
        assert device.got[1:] == [PingResp()]
        run.store.answer()
        assert device.got[2:] == [PubAck(1)]
        run.store.failing.add("retain")
        device.send(Publish("known/a", b"x", 1, retain=True, packet_id=2))
        await wait_all_tasks_blocked()
        run.store.answer()
        await wait_all_tasks_blocked()
        assert device.closed
        assert PubAck(2) not in device.got


async def test_quota_drops_qos_0_and_delays_the_others(autojump_clock: MockClock) -> None:
    async with running(limits={"tps": 10}) as run:
        device = await run.device()
        began = trio.current_time()
        device.send(*publishes(*range(1, 31)))
        await device.wait(31)
        assert trio.current_time() - began == pytest.approx(2.0, abs=0.05)
        device.send(*publishes(0, 0, qos=0), PingReq())
        await device.wait(32)
        assert len(run.backend.submitted) == 30
