"""Retained messages for new subscriptions (clauses 3.3.1.3 and 3.8.4): found before the SUBACK, sent behind it, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import trio

from gateway.mqtt import topics
from gateway.ports import OfflineMessage, Retained, Store, Subscription, Waiting
from gateway.runtime.awaiting import call
from gateway.runtime.mailbox import Mailbox
from gateway.runtime.offline import Offline
from gateway.runtime.outbound import Outbound, stored_entry

AT_ONCE = 200  # messages; more are sent as the device takes them, while live messages go first
CHUNK = 100  # messages that are put into the store together

Found = list[tuple[Retained, int]]  # with the QoS to send them at [MQTT-3.8.4-6]


class Retaining:
    """now: ms since 1970."""

    def __init__(self, store: Store, offline: Offline, now: Callable[[], int]) -> None:
        self._store = store
        self._offline = offline
        self._now = now

    async def find(self, subscriptions: Iterable[Subscription]) -> Found:
        """The retained messages that match each of `subscriptions`. Raises StoreError."""
        found: Found = []
        if self._store.cluster is None and not self._store.stats().retained:
            return found
        for subscription in subscriptions:
            filter = subscription.filter
            prefix = filter.split("#")[0].split("+")[0]
            if filter.endswith("/#") and len(prefix) == len(filter) - 1:
                prefix = prefix[:-1]  # `a/#` matches `a` too
            for retained in await self._store.retained(prefix, partial(topics.matches, filter)):
                found.append((retained, min(subscription.qos, retained.qos)))
        return found

    async def bring(self, mailbox: Mailbox, found: Found) -> None:
        """Send them with RETAIN set [MQTT-3.3.1-8]. Raises StoreError."""
        kept = [(retained, qos) for retained, qos in found if qos and mailbox.persistent]
        sent = [(_outbound(retained), qos) for retained, qos in found if not (qos and mailbox.persistent)]
        for begin in range(0, len(kept), CHUNK):
            await self._keep(mailbox, kept[begin : begin + CHUNK], len(kept) <= AT_ONCE)
        if len(kept) > AT_ONCE:
            self._offline.feed(mailbox, hurry=True)
        if len(sent) <= AT_ONCE:
            for message, qos in sent:
                mailbox.push(message, qos)
        else:
            self._offline.spawn(_trickle, mailbox, sent)

    async def _keep(self, mailbox: Mailbox, found: Found, at_once: bool) -> None:
        """For a persistent session they must outlive a crash, as any message at QoS 1 or 2: the store has them before they are sent."""
        # a retained message is sent again with each SUBSCRIBE [MQTT-3.8.4-3]: its id must not look like a repeat
        again = self._now()
        waiting = [
            Waiting(
                mailbox.client_id,
                OfflineMessage(f"{retained.id}:{again}", retained.topic, retained.payload, retained.stored_at),
                qos,
                retain=True,
            )
            for retained, qos in found
        ]
        for item, (position, _owner) in zip(waiting, await call(partial(self._store.offline_put, waiting)), strict=True):
            item.position = position
            if position and at_once:
                mailbox.add(stored_entry(item, trio.current_time()))


def _outbound(retained: Retained) -> Outbound:
    return Outbound(retained.topic, retained.payload, retained.qos, retained.id, retained.stored_at, retain=True)


async def _trickle(mailbox: Mailbox, messages: list[tuple[Outbound, int]]) -> None:
    """To a clean session, as fast as it takes them: it must not be closed for what it asked for."""
    for message, qos in messages:
        while mailbox.crowded and not mailbox.ended:
            await trio.sleep(0.02)
        if mailbox.ended:
            return
        mailbox.push(message, qos)
