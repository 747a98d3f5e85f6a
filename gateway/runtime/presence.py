"""From the store's outbox to the backend: lifecycle events and the wills that are due (contract section 7)."""

from __future__ import annotations

from typing import Any

import trio

from gateway import observe
from gateway.ports import Backend, BackendError, Event, Message, OutboxItem, Refusal, Store, StoreError
from gateway.rules import presence
from gateway.rules.names import group_of
from gateway.runtime.uplink import Uplink

CHUNK = 500
OUTSTANDING = 2000  # items handed to the backend and not stored yet
TOPIC_SECONDS = 30.0  # how long it is remembered that a group has, or has not, an event topic
RETRY_SECONDS = 1.0


class Presence:
    """Drains the outbox in order; an item is removed when the backend has stored it, so after a crash it may come twice (same `seq`)."""

    def __init__(self, backend: Backend, store: Store, uplink: Uplink, *, default_group: str) -> None:
        self._backend = backend
        self._store = store
        self._uplink = uplink
        self._default_group = default_group
        self._lot = trio.lowlevel.ParkingLot()
        self._woken = True
        self._outstanding = 0
        self._finished: list[int] = []
        self._topics: dict[str, tuple[bool, float]] = {}
        self._said: set[str] = set()
        store.on_outbox(self._wake)

    def _wake(self) -> None:
        self._woken = True
        self._lot.unpark_all()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        task_status.started()
        after = 0
        while True:
            self._woken = False
            try:
                items = await self._store.outbox(after, CHUNK)
            except StoreError as error:
                observe.note(observe.Fact.STORE_FAILED, operation="outbox", error=str(error))
                await trio.sleep(RETRY_SECONDS)
                continue
            for item in items:
                await self._hand_over(item)
                after = item.position
            self._remove()
            while self._outstanding > OUTSTANDING or (not items and not self._woken):
                await self._lot.park()
                self._remove()

    async def drain(self, seconds: float) -> None:
        """Wait until the outbox is empty, `seconds` at most."""
        with trio.move_on_after(seconds):
            while self._outstanding or self._finished or self._store.stats().outbox:
                self._wake()
                await trio.sleep(0.02)

    async def _hand_over(self, item: OutboxItem) -> None:
        if item.will is not None:
            self._outstanding += 1
            self._uplink.publish_will(item.will, lambda: self._done(item.position))
            return
        event = item.event
        assert event is not None
        topic = presence.event_topic(group_of(event.client_id, self._default_group))
        if await self._exists(topic):
            self._outstanding += 1
            self._submit(topic, event, item.position)
        else:
            self._finished.append(item.position)

    def _submit(self, topic: str, event: Event, position: int) -> None:
        def stored(result: Any) -> None:
            if isinstance(result, BackendError):
                if result.refusal is Refusal.CLOSED:
                    return  # it stays in the outbox
                self._topics.pop(topic, None)
                observe.note(observe.Fact.UPLINK_REFUSED, reason=result.refusal, topic=topic, error=str(result))
            self._done(position)

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

    def _done(self, position: int) -> None:
        self._outstanding -= 1
        self._finished.append(position)
        self._lot.unpark_all()

    def _remove(self) -> None:
        if not self._finished:
            return
        positions, self._finished = self._finished, []

        def removed(result: Any) -> None:
            if isinstance(result, StoreError):
                observe.note(observe.Fact.STORE_FAILED, operation="outbox_remove", error=str(result))
                self._finished.extend(positions)

        self._store.outbox_remove(positions, removed)
