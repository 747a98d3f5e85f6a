"""From the store's outbox to the backend: lifecycle events and the wills that are due (contract section 7)."""

from __future__ import annotations

from typing import Any

import trio

from gateway import observe
from gateway.ports import Backend, BackendError, Event, Message, OutboxItem, Refusal, Store, StoreError
from gateway.rules import presence
from gateway.rules.names import group_of
from gateway.runtime.peers import Peers
from gateway.runtime.uplink import Uplink

CHUNK = 500
OUTSTANDING = 2000  # items handed to the backend and not stored yet
TOPIC_SECONDS = 30.0  # how long it is remembered that a group has, or has not, an event topic
RETRY_SECONDS = 1.0
LOOK_SECONDS = 1.0  # how long an item of another node may lie in an outbox that is ours


class Presence:
    """Drains the outbox in order; an item is removed when the backend has stored it, so after a crash it may come twice (same `seq`)."""

    def __init__(self, backend: Backend, store: Store, uplink: Uplink, peers: Peers, *, default_group: str) -> None:
        self._backend = backend
        self._store = store
        self._uplink = uplink
        self._peers = peers
        self._default_group = default_group
        self._lot = trio.lowlevel.ParkingLot()
        self._mine: frozenset[int] = frozenset()  # the shards whose outbox is ours
        self._woken: set[int] = set()
        self._after: dict[int, int] = {}  # by shard, up to where items were handed over
        self._outstanding = 0
        self._looked = 0.0  # monotonic seconds
        self._finished: list[tuple[int, int]] = []  # shard and position
        self._topics: dict[str, tuple[bool, float]] = {}
        self._said: set[str] = set()
        store.on_outbox(self._wake)

    def _wake(self, shard: int) -> None:
        self._woken.add(shard)
        self._lot.unpark_all()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        task_status.started()
        while True:
            try:
                await self._look()
                for shard in sorted(self._woken & self._mine):
                    await self._drain(shard)
            except StoreError as error:
                observe.note(observe.Fact.STORE_FAILED, operation="outbox", error=str(error))
                await trio.sleep(RETRY_SECONDS)
                continue
            self._remove()
            while self._outstanding > OUTSTANDING:
                await self._lot.park()
                self._remove()
            if not self._woken & self._mine:
                with trio.move_on_after(LOOK_SECONDS):
                    await self._lot.park()
                self._remove()

    async def _look(self) -> None:
        """Which shards are ours, and in which of them other nodes (or a former life) have left something."""
        mine = self._peers.shards(self._store.shards)
        if mine == self._mine and (self._store.cluster is None or trio.current_time() < self._looked + LOOK_SECONDS):
            return
        self._looked = trio.current_time()
        for shard in mine - self._mine:  # whoever had it before may have left items that it handed over and could not remove
            self._after.pop(shard, None)
        self._woken |= await self._store.outbox_waiting(mine)
        self._mine = mine

    async def _drain(self, shard: int) -> None:
        self._woken.discard(shard)
        try:
            items = await self._store.outbox(shard, self._after.get(shard, 0), CHUNK)
        except StoreError:
            self._woken.add(shard)
            raise
        for item in items:
            await self._hand_over(shard, item)
            self._after[shard] = item.position
        if len(items) == CHUNK:
            self._woken.add(shard)

    async def drain(self, seconds: float) -> None:
        """Wait until what this node has to hand over is handed over, `seconds` at most."""
        with trio.move_on_after(seconds):
            while self._outstanding or self._finished or self._woken & self._mine or await self._left():
                self._lot.unpark_all()
                await trio.sleep(0.02)

    async def _left(self) -> bool:
        try:
            return bool(await self._store.outbox_waiting(self._mine))
        except StoreError:
            return True

    async def _hand_over(self, shard: int, item: OutboxItem) -> None:
        place = (shard, item.position)
        if item.will is not None:
            self._outstanding += 1
            self._uplink.publish_will(item.will, lambda: self._done(place))
            return
        event = item.event
        assert event is not None
        topic = presence.event_topic(group_of(event.client_id, self._default_group))
        if await self._exists(topic):
            self._outstanding += 1
            self._submit(topic, event, place)
        else:
            self._finished.append(place)

    def _submit(self, topic: str, event: Event, place: tuple[int, int]) -> None:
        def stored(result: Any) -> None:
            if isinstance(result, BackendError):
                if result.refusal is Refusal.CLOSED:
                    return  # it stays in the outbox
                self._topics.pop(topic, None)
                observe.note(observe.Fact.UPLINK_REFUSED, reason=result.refusal, topic=topic, error=str(result))
            self._done(place)

        message = Message(
            topic, presence.event_body(event), event.type, presence.event_properties(event), event.client_id, event.id, ordered=True
        )
        self._backend.submit(message, stored)

    async def _exists(self, topic: str) -> bool:
        """The operator creates the topic of each group that is to be watched: no topic, no events, said once."""
        known = self._topics.get(topic)
        if known is not None and known[1] > trio.current_time():
            return known[0]
        while True:
            try:
                exists = await self._backend.topic(topic) is not None
                break
            except BackendError as error:
                observe.note(observe.Fact.BACKEND_UNAVAILABLE, topic=topic, error=str(error))
                if error.refusal is not Refusal.UNAVAILABLE:  # not for this gateway: the events of other groups, and wills, go on
                    exists = False
                    break
                await trio.sleep(RETRY_SECONDS)
        self._topics[topic] = (exists, trio.current_time() + TOPIC_SECONDS)
        if not exists and topic not in self._said:
            self._said.add(topic)
            observe.note(observe.Fact.EVENT_TOPIC_MISSING, topic=topic, cure="create the topic if the group is to be watched")
        elif exists:
            self._said.discard(topic)
        return exists

    def _done(self, place: tuple[int, int]) -> None:
        self._outstanding -= 1
        self._finished.append(place)
        self._lot.unpark_all()

    def _remove(self) -> None:
        finished, self._finished = self._finished, []
        by_shard: dict[int, list[int]] = {}
        for shard, position in finished:
            by_shard.setdefault(shard, []).append(position)
        for shard, positions in by_shard.items():
            self._remove_of(shard, positions)

    def _remove_of(self, shard: int, positions: list[int]) -> None:
        def removed(result: Any) -> None:
            if isinstance(result, StoreError):
                observe.note(observe.Fact.STORE_FAILED, operation="outbox_remove", error=str(result))
                self._finished.extend((shard, position) for position in positions)

        self._store.outbox_remove(shard, positions, removed)
