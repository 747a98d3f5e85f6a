"""The outbound side of a session: window, order, bounds, what is stored before it is sent, and the backend's holds."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from gateway import observe
from gateway.mqtt.packets import Publish, PubRel
from gateway.ports import OfflineMessage, Phase, Received, Waiting
from gateway.runtime.mailbox import Bounds, Mailbox, in_sending_order
from gateway.runtime.offline import Offline
from gateway.runtime.outbound import Outbound
from tests.runtime.kit import Device, Log, settings
from tests.runtime.scripted import ScriptedStore

ID = "GID_test@@@dev1"


class Box:
    """A mailbox on a scripted store."""

    def __init__(self, persistent: bool = True, window: int = 3, count: int = 4, bytes: int = 1 << 20, buffer: int = 100) -> None:
        self.store = ScriptedStore()
        self.offline = Offline(self.store, settings())
        self.device = Device()
        self.log = Log()
        self.overflows = 0
        self.mailbox = Mailbox(ID, persistent, self.device, Bounds(window, count, bytes, buffer), self.offline, self._overflow)

    def _overflow(self) -> None:
        self.overflows += 1

    def live(self, payload: bytes = b"x", qos: int = 1, volatile: bool = False) -> Received:
        """A message of the backend comes for the device."""
        received = self.log.message(payload)
        self.mailbox.deliver(Outbound("known/a", payload, qos, received.id, 1, received, volatile=volatile), qos)
        return received

    def lives(self, *payloads: bytes, qos: int = 1) -> list[Received]:
        return [self.live(payload, qos) for payload in payloads]

    @property
    def sent(self) -> list[tuple[bytes, int]]:
        return [(packet.payload, packet.packet_id) for packet in self.device.published]


@pytest.fixture
def box() -> Box:
    return Box()


async def test_window_and_order(box: Box) -> None:
    """Never more than the window is unacknowledged; the rest follows in order, each for a PUBACK."""
    box.lives(b"1", b"2", b"3", b"4", b"5")
    assert box.sent == [(b"1", 1), (b"2", 2), (b"3", 3)]
    box.mailbox.puback(2)
    assert box.sent[3:] == [(b"4", 4)]
    box.mailbox.puback(2)  # answered before: it makes no room
    assert len(box.sent) == 4
    box.mailbox.puback(1)
    assert box.sent[4:] == [(b"5", 5)]
    for packet_id in (3, 4, 5):
        box.mailbox.puback(packet_id)
    assert box.log.held == 0
    assert not box.store.calls  # a device that answers costs no write


async def test_bytes_that_wait_for_the_socket_narrow_the_window_to_one(box: Box) -> None:
    box.device.buffered = 101
    box.lives(b"1", b"2")
    assert box.sent == [(b"1", 1)]  # its acknowledgement is what moves the queue on
    box.device.buffered = 0
    box.mailbox.puback(1)
    assert box.sent == [(b"1", 1), (b"2", 2)]


async def test_qos_0_is_dropped_while_the_socket_is_behind(box: Box) -> None:
    before = observe.counters().get("qos0_dropped", 0)
    box.device.buffered = 101
    box.live(qos=0)
    assert box.sent == []
    assert observe.counters()["qos0_dropped"] == before + 1
    box.device.buffered = 100
    box.live(qos=0)
    assert box.sent == [(b"x", 0)]
    assert box.log.held == 0


async def test_clean_session_that_falls_behind_is_closed() -> None:
    box = Box(persistent=False, window=1, count=2)
    box.lives(b"1", b"2", b"3")
    assert box.overflows == 0
    box.live(b"4")
    assert box.overflows == 1
    assert box.log.held == 0  # a clean session holds nothing
    assert not box.store.calls


async def test_what_a_persistent_session_has_no_place_for_is_stored() -> None:
    box = Box(window=1, count=2)
    last = box.lives(b"1", b"2", b"3", b"4")[-1]
    assert box.overflows == 0
    assert [each.message.payload for each in box.store.of("offline_put")[0]] == [b"4"]
    assert last.offset in box.log.resolved


async def test_bytes_bound_the_queue_too() -> None:
    box = Box(window=1, count=100, bytes=1000)
    box.lives(b"1", b"2", b"x" * 900)
    assert len(box.store.of("offline_put")) == 1


async def test_store_fails_while_the_mailbox_is_full(autojump_clock: MockClock) -> None:
    """The backend keeps it until the store takes it."""
    box = Box(window=1, count=1)
    box.store.failing.add("offline_put")
    async with trio.open_nursery() as nursery:
        await nursery.start(box.offline.run)
        last = box.lives(b"1", b"2", b"3")[-1]
        await trio.sleep(3.5)
        assert last.holds == 1
        box.store.failing.clear()
        await trio.sleep(1.1)
        assert last.holds == 0
        nursery.cancel_scope.cancel()


async def test_mqtt_4_3_3_1_qos_2_is_stored_before_its_first_send_and_order_is_kept(box: Box) -> None:
    box.store.holding.add("offline_put")
    box.lives(b"1", b"2", qos=2)
    box.live(b"3", qos=1)
    assert box.sent == []
    put = box.store.of("offline_put")[0][0]
    assert (put.packet_id, put.phase, put.source) == (1, Phase.SENT, (box.log.made[0].queue, 0))
    box.store.answer(1)
    assert box.sent == [(b"1", 1)]  # 3 waits behind 2
    box.store.answer(1)
    assert box.sent == [(b"1", 1), (b"2", 2), (b"3", 3)]
    assert [each.holds for each in box.log.made] == [0, 0, 1]


async def test_mqtt_4_3_3_1_a_repeat_of_a_qos_2_message_is_not_sent(box: Box) -> None:
    box.store.had.add((ID, f"{0:032X}"))
    box.live(qos=2)
    assert box.sent == []
    assert box.mailbox.depth == 0
    assert box.log.held == 0


async def test_mqtt_4_3_3_1_pubrel_leaves_when_the_pubrec_is_stored(box: Box) -> None:
    box.live(qos=2)
    box.store.holding.add("offline_put")
    box.mailbox.pubrec(1)
    assert len(box.device.got) == 1
    box.store.answer()
    assert box.device.got[1:] == [PubRel(1)]
    assert box.store.of("offline_put")[-1][0].phase is Phase.RELEASED
    box.mailbox.puback(1)  # the wrong answer changes nothing
    assert box.mailbox.depth == 1
    box.mailbox.pubcomp(1)
    assert box.mailbox.depth == 0
    assert len(box.store.of("offline_remove")) == 1


async def test_pubrec_of_an_unknown_id_gets_its_pubrel(box: Box) -> None:
    """It was finished before; the device must be able to forget it."""
    box.mailbox.pubrec(7)
    assert box.device.got == [PubRel(7)]


async def test_early_pubcomp_changes_nothing(box: Box) -> None:
    box.live(qos=2)
    box.mailbox.pubcomp(1)
    assert box.mailbox.depth == 1


async def test_gathered_messages_follow_in_order(box: Box) -> None:
    box.mailbox.gather()
    box.mailbox.gather()
    box.lives(b"1", b"2")
    assert box.log.held == 2
    retained = Outbound("known/a", b"retained", 1, "r", 1, retain=True)
    box.mailbox.push(retained, 1)
    box.mailbox.resume()
    assert [payload for payload, _ in box.sent] == [b"retained"]
    box.mailbox.resume()
    assert [payload for payload, _ in box.sent] == [b"retained", b"1", b"2"]
    for packet_id in (1, 2, 3):
        box.mailbox.puback(packet_id)
    assert box.log.held == 0


@pytest.mark.parametrize("persistent", [True, False])
async def test_gathering_is_bounded(persistent: bool, autojump_clock: MockClock) -> None:
    box = Box(persistent=persistent, count=2)
    box.mailbox.gather()
    box.lives(b"1", b"2", b"3")
    box.live(b"4", qos=0)
    assert len(box.store.of("offline_put")) == persistent
    assert box.overflows == (not persistent)
    box.mailbox.end()
    assert box.log.held == (2 if persistent else 0)


async def test_end_keeps_the_order_of_sending(box: Box) -> None:
    box.lives(b"1", b"2", b"3", b"4")
    box.mailbox.puback(1)
    box.mailbox.gather()
    box.live(b"5")
    kept = box.mailbox.end()
    assert [(each.message.payload, each.packet_id) for each in kept] == [(b"2", 2), (b"3", 3), (b"4", 4), (b"5", 0)]
    box.offline.keep(ID, kept)
    assert box.log.held == 0


async def test_an_ended_mailbox_stays_ended(box: Box) -> None:
    """A SUBSCRIBE that waited for the store meanwhile gathers and resumes; late messages and answers come to nothing."""
    box.live()
    box.offline.keep(ID, box.mailbox.end())
    box.mailbox.gather()
    assert box.mailbox.ended
    box.live()
    box.mailbox.resume()
    box.mailbox.puback(1)
    box.mailbox.pubcomp(1)
    box.mailbox.pump()
    assert box.mailbox.ended
    assert box.log.made[1].holds == 0
    assert box.mailbox.depth == 0


async def test_volatile_messages_hold_nothing_and_are_not_kept() -> None:
    box = Box(window=1)
    box.live(b"1", volatile=True)
    box.live(b"2", volatile=True)
    assert box.log.held == 0
    assert box.mailbox.end() == []
    assert not box.store.calls


async def test_overdue_ones_hold_since_then_and_are_said_until_they_are_safe(box: Box, autojump_clock: MockClock) -> None:
    box.lives(b"1", b"2", b"3")
    await trio.sleep(4)
    box.live(b"4")
    await trio.sleep(2)
    overdue = box.mailbox.overdue(trio.current_time() - 5)
    assert [entry.message.payload for entry in overdue] == [b"1", b"2", b"3"]
    box.store.holding.add("offline_put")
    box.offline.keep(ID, overdue)
    assert box.mailbox.overdue(trio.current_time() - 5) == []  # on their way
    box.store.answer()
    assert box.log.held == 1
    assert box.mailbox.overdue(trio.current_time()) == [box.mailbox._queue[0]]  # type: ignore[index]


async def test_late_puback_removes_the_stored_copy(box: Box) -> None:
    box.live()
    box.offline.keep(ID, box.mailbox.overdue(trio.current_time()))
    box.mailbox.puback(1)
    assert box.store.of("offline_remove") == [[1]]


async def test_puback_while_it_is_being_stored_removes_the_copy_as_soon_as_it_is_there(box: Box) -> None:
    box.live()
    box.store.holding.add("offline_put")
    box.offline.keep(ID, box.mailbox.overdue(trio.current_time()))
    box.mailbox.puback(1)
    assert box.log.held == 0
    assert box.store.of("offline_remove") == []
    box.store.answer()
    assert box.store.of("offline_remove") == [[1]]


async def test_qos_2_that_is_being_stored_when_its_turn_comes_is_sent_once() -> None:
    """Queued too long, it is on its way to the store as waiting; then the window opens."""
    box = Box(window=1)
    box.live(b"1", qos=1)
    box.live(b"2", qos=2)
    box.store.holding.add("offline_put")
    box.offline.keep(ID, box.mailbox.overdue(trio.current_time()), box.mailbox.safe)
    box.mailbox.puback(1)
    box.store.answer(1)
    assert box.sent == [(b"1", 1)]  # it is in the store, but its packet id is not
    box.store.answer()
    assert box.sent == [(b"1", 1), (b"2", 2)]
    assert box.store.of("offline_put")[-1][0].packet_id == 2


def waiting(packet_id: int, payload: bytes = b"x", phase: Phase = Phase.SENT, qos: int = 1) -> Waiting:
    return Waiting(ID, OfflineMessage(f"m{packet_id}", "known/a", payload, 1), qos, packet_id, phase, packet_id)


@pytest.mark.parametrize(
    ("stored", "order"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([3, 1, 2], [1, 2, 3]),
        ([65534, 65535, 1, 2], [65534, 65535, 1, 2]),
        ([2, 65535, 1], [65535, 1, 2]),
        ([9], [9]),
    ],
)
def test_mqtt_4_6_0_1_order_of_sending(stored: list[int], order: list[int]) -> None:
    assert [each.packet_id for each in in_sending_order([waiting(packet_id) for packet_id in stored])] == order


async def test_mqtt_4_4_0_1_resend(box: Box) -> None:
    """Same ids, DUP set, PUBREL alone once PUBREC came, and new ids begin behind the last one."""
    box.mailbox.resend([waiting(65535, b"a"), waiting(1, b"b", qos=2), waiting(2, b"c", Phase.RELEASED, qos=2)])
    assert box.device.got == [
        Publish("known/a", b"a", 1, dup=True, packet_id=65535),
        Publish("known/a", b"b", 2, dup=True, packet_id=1),
        PubRel(2),
    ]
    box.live(b"d")
    assert len(box.device.got) == 3  # the window is full of what was resent
    box.mailbox.pubcomp(2)
    assert box.sent[-1] == (b"d", 3)
    box.mailbox.puback(65535)
    assert box.store.of("offline_remove") == [[2], [65535]]
