"""Who gets a message: the tree of all subscriptions of this node, online and stored, and the fan-out to mailboxes (clauses 3.8.4, 4.7)."""

from __future__ import annotations

from collections.abc import Container, Mapping

import trio

from gateway import observe
from gateway.mqtt import topics
from gateway.mqtt.tree import Tree
from gateway.ports import Queue, Subscription
from gateway.runtime.mailbox import Mailbox
from gateway.runtime.newcomers import Newcomers
from gateway.runtime.offline import Offline
from gateway.runtime.outbound import Outbound

SLICE_SECONDS = 0.01  # how long a fan-out may work before others have their turn: what it wrote meanwhile leaves in fewer, larger sends
WIDE = 2000  # deliveries; the clock is looked at so often


class Subscriber:
    """A client as the router knows it. mailbox: None while a persistent session has no connection."""

    __slots__ = ("client_id", "mailbox", "persistent", "subscriptions")

    def __init__(self, client_id: str, persistent: bool) -> None:
        self.client_id = client_id
        self.persistent = persistent
        self.mailbox: Mailbox | None = None
        self.subscriptions: dict[str, Subscription] = {}


class Router:
    """Owns the subscriptions: the tree and each client's list."""

    def __init__(self, offline: Offline) -> None:
        self._tree: Tree[Subscriber, int] = Tree()
        self._offline = offline
        offline.find = self.mailbox_of
        self._newcomers: Newcomers[Subscriber] = Newcomers()
        self._firsts: dict[str, int] = {}  # how many subscriptions begin with this level
        self.subscribers: dict[str, Subscriber] = {}

    def __len__(self) -> int:
        return len(self._tree)

    # ------------------------------------------------------------ subscriptions

    def subscriber(self, client_id: str, persistent: bool) -> Subscriber:
        """The client's entry, made if it isn't there."""
        found = self.subscribers.get(client_id)
        if found is None:
            found = self.subscribers[client_id] = Subscriber(client_id, persistent)
        found.persistent = persistent
        return found

    def mailbox_of(self, client_id: str) -> Mailbox | None:
        """None: it has no connection here."""
        subscriber = self.subscribers.get(client_id)
        return subscriber.mailbox if subscriber is not None else None

    def add(self, subscriber: Subscriber, subscription: Subscription, ends: dict[Queue, int] | None = None) -> None:
        """Add it, or replace the one with the same filter [MQTT-3.8.4-3]. ends: per queue the offset from which on messages are for it."""
        if subscription.filter not in subscriber.subscriptions:
            if ends:
                self._newcomers.add(subscriber, subscription.filter, ends, trio.current_time())
            first = topics.split_parent(subscription.filter)[0]
            self._firsts[first] = self._firsts.get(first, 0) + 1
        subscriber.subscriptions[subscription.filter] = subscription
        self._tree.add(subscription.filter, subscriber, subscription.qos)

    def remove(self, subscriber: Subscriber, filter: str) -> bool:
        """False: it had no such subscription."""
        if subscriber.subscriptions.pop(filter, None) is None:
            return False
        self._tree.remove(filter, subscriber)
        self._newcomers.forget(subscriber, filter)
        first = topics.split_parent(filter)[0]
        left = self._firsts.pop(first) - 1
        if left:
            self._firsts[first] = left
        return True

    def forget(self, client_id: str) -> None:
        """The session is gone with all its subscriptions."""
        subscriber = self.subscribers.pop(client_id, None)
        if subscriber is not None:
            for filter in list(subscriber.subscriptions):
                self.remove(subscriber, filter)

    def listens_below(self, parent: str) -> bool:
        """Whether any session, online or not, has a filter that can match below `parent` (a first level)."""
        return parent in self._firsts or "#" in self._firsts or "+" in self._firsts

    def listens_outside(self, parents: Container[str]) -> bool:
        """Whether any has a filter that can match outside all of `parents`."""
        return any(first not in parents for first in self._firsts)

    # ------------------------------------------------------------ messages

    async def fan_out(self, topic: str, message: Outbound, replayed: bool, *, fleet: bool = False) -> None:
        """To every matching subscription: once per client, at the greatest of its QoS [MQTT-3.3.5-1]. A re-read message is never sent at
        QoS 0, and only to subscriptions older than it (design section 4). fleet: to clean sessions only."""
        leaves = self._tree.match(topic)
        if not leaves:
            return
        targets: Mapping[Subscriber, int] = leaves[0] if len(leaves) == 1 else _greatest(leaves)
        received = message.received
        if self._newcomers and received is not None:
            targets = self._newcomers.without(targets, topic, received.queue, received.offset, trio.current_time())
        if replayed:
            targets = self._older(targets, topic, message)
        if fleet:
            targets = {subscriber: qos for subscriber, qos in targets.items() if not subscriber.persistent}
        limit = message.qos
        message.alone = len(targets) == 1
        absent: list[tuple[str, int]] = []
        if len(targets) > WIDE:
            await self._wide(list(targets.items()), message, absent)
        else:
            for subscriber, qos in targets.items():
                mailbox = subscriber.mailbox
                if mailbox is not None:
                    mailbox.deliver(message, qos if qos < limit else limit)
                elif subscriber.persistent and qos and limit:
                    absent.append((subscriber.client_id, min(qos, limit)))
        if absent:
            self._offline.keep_absent(absent, message)

    async def _wide(self, targets: list[tuple[Subscriber, int]], message: Outbound, absent: list[tuple[str, int]]) -> None:
        limit = message.qos
        until = trio.current_time() + SLICE_SECONDS
        for count, (subscriber, qos) in enumerate(targets):
            if not count % WIDE and trio.current_time() > until:
                await trio.lowlevel.checkpoint()
                until = trio.current_time() + SLICE_SECONDS
            mailbox = subscriber.mailbox
            if mailbox is not None:
                mailbox.deliver(message, qos if qos < limit else limit)
            elif subscriber.persistent and qos and limit:
                absent.append((subscriber.client_id, min(qos, limit)))

    def _older(self, targets: Mapping[Subscriber, int], topic: str, message: Outbound) -> dict[Subscriber, int]:
        older: dict[Subscriber, int] = {}
        if not message.qos:
            return older
        for subscriber in targets:
            qos = 0
            for subscription in subscriber.subscriptions.values():
                if subscription.qos > qos and subscription.since <= message.stored_at and topics.matches(subscription.filter, topic):
                    qos = subscription.qos
            if qos:
                older[subscriber] = qos
        return older

    def to_one(self, client_id: str, message: Outbound) -> None:
        """P2P: to that client, which needs no subscription. Kept offline if and only if the sender was persistent and the receiver has a
        stored
        session (contract section 5)."""
        message.alone = True
        mailbox = self.mailbox_of(client_id)
        if mailbox is not None:
            mailbox.deliver(message, message.qos)
        elif message.qos and not message.volatile:
            self._offline.keep_absent([(client_id, message.qos)], message)
        else:
            observe.count(observe.Fact.MESSAGE_DROPPED, reason="receiver_offline")


def _greatest(leaves: list[dict[Subscriber, int]]) -> dict[Subscriber, int]:
    """Each subscriber once, with the greatest of its QoS."""
    targets: dict[Subscriber, int] = {}
    for leaf in leaves:
        for subscriber, qos in leaf.items():
            if targets.get(subscriber, -1) < qos:
                targets[subscriber] = qos
    return targets
