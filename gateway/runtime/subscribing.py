"""SUBSCRIBE and UNSUBSCRIBE: what is granted, what must hold before the answer leaves, and the retained messages behind it
(clauses 3.8, 3.10; contract sections 5 and 11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import trio

from gateway import observe
from gateway.mqtt import encode
from gateway.mqtt.packets import SUBACK_FAILURE, Subscribe, Unsubscribe
from gateway.ports import BackendError, Queue, Store, StoreError, Subscription
from gateway.rules import envelope
from gateway.rules.presence import Reason
from gateway.runtime.access import Access
from gateway.runtime.awaiting import call
from gateway.runtime.cluster.listening import Listening
from gateway.runtime.downlink import Downlink
from gateway.runtime.retaining import Retaining
from gateway.runtime.router import Router
from gateway.settings import Limits

if TYPE_CHECKING:
    from gateway.runtime.link import Link

SETTLE_SECONDS = 1.0  # how long a SUBSCRIBE waits for the PUBLISHes before it to be stored
READY_SECONDS = 10.0  # how long a SUBSCRIBE waits for a backend that is not there yet


class Subscribing:
    """stored: per queue the offset of the newest message that this node has stored. now: ms since 1970."""

    def __init__(
        self,
        store: Store,
        router: Router,
        downlink: Downlink,
        access: Access,
        retaining: Retaining,
        stored: Mapping[Queue, int],
        limits: Limits,
        now: Callable[[], int],
    ) -> None:
        self._retaining = retaining
        self._stored = stored
        self._store = store
        self._router = router
        self._downlink = downlink
        self._access = access
        self._per_client = limits.subscriptions_per_client
        self._instance = limits.subscriptions
        self._now = now
        self.listening: Listening | None = None  # in a cluster

    async def subscribe(self, link: Link, packet: Subscribe) -> None:
        """Grant what may be granted; SUBACK, then the retained messages [MQTT-3.8.4-1], [MQTT-3.3.1-6]."""
        mailbox, subscriber = link.mailbox, link.subscriber
        assert mailbox is not None
        assert subscriber is not None
        if link.inlet is not None:
            await link.inlet.settle(SETTLE_SECONDS)
        codes: list[int] = []
        granted: dict[str, Subscription] = {}
        deadline = trio.current_time() + READY_SECONDS
        for filter, qos in packet.filters:
            code, kept = await self._grant(link, filter, qos, granted.keys() - subscriber.subscriptions.keys(), deadline)
            if link.ending:
                return
            codes.append(code)
            for one in kept:
                old = subscriber.subscriptions.get(one)  # it goes on: what was stored since it was made is still for it
                granted[one] = Subscription(one, qos, old.since if old is not None else self._now())
        new = granted.keys() - subscriber.subscriptions.keys()
        if granted:
            try:
                if link.persistent:
                    await call(partial(self._store.subscribe, link.client_id, link.epoch, list(granted.values())))
                if self.listening is not None:
                    await self.listening.begin(link.client_id, link.persistent, granted.values(), new)
            except StoreError as error:
                self._failed(link, "subscribe", error)
                return
            if mailbox.ended and self.listening is not None and not link.persistent:
                self.listening.forget(link.client_id, False, new)
        mailbox.gather()  # live messages of the new subscriptions wait until the retained ones are queued (design section 5)
        try:
            if not mailbox.ended:
                for subscription in granted.values():
                    ends = self._downlink.on_its_way(self._stored, self._downlink.touched_by(subscription.filter))
                    self._router.add(subscriber, subscription, ends)
            retained = await self._retaining.find(
                granted.values()
            )  # before the SUBACK: what is retained after it comes live [MQTT-3.3.1-9]
            link.transport.write(encode.suback(packet.packet_id, codes))
            await self._retaining.bring(mailbox, retained)
        except StoreError as error:
            self._failed(link, "retained", error)
        finally:
            mailbox.resume()

    async def _grant(self, link: Link, filter: str, qos: int, more: set[str], deadline: float) -> tuple[int, list[str]]:
        """(return code, the filters to keep for it). more: new filters of the same packet. deadline: monotonic
        seconds."""
        route = envelope.route(filter, self._downlink.bridged, self._downlink.default_topic)
        if route is not None and (route.second == "/p2p" or route.second.startswith("/p2p/")):
            return qos, []  # P2P needs no subscription: accepted, changes nothing (contract section 5)
        parents = self._downlink.touched_by(filter)
        if not parents:
            return self._refused(link, filter, "its first level is no bridged topic")
        if not self._access.topic_fits(filter):
            return self._refused(link, filter, "longer than limits.topic_length")
        kept = self._readable(link, filter)
        if not kept:
            link.deny(observe.Fact.SUBSCRIPTION_REFUSED, filter=filter, problem="the account may not subscribe to it")
            return SUBACK_FAILURE, []
        assert link.subscriber is not None
        present = link.subscriber.subscriptions
        new = [one for one in kept if one not in present and one not in more]
        if new and len(present) + len(more) + len(new) > self._per_client:
            return self._refused(link, filter, "limits.subscriptions_per_client is reached")
        if self._instance and new and len(self._router) + len(more) + len(new) > self._instance:
            return self._refused(link, filter, "limits.subscriptions is reached")
        try:
            with trio.fail_at(deadline):
                await self._downlink.widen(parents)
        except trio.TooSlowError:
            return self._refused(link, filter, "the backend does not answer")
        except BackendError as error:
            return self._refused(link, filter, str(error))
        return qos, kept

    def _readable(self, link: Link, filter: str) -> list[str]:
        """The filter itself; or, for a wildcard in the first level of an account that may not read everything, one filter for each bridged
        parent that it may read (contract section 11)."""
        if self._access.may_subscribe(link.account, filter):
            return [filter]
        if filter.split("/", 1)[0] not in ("#", "+"):
            return []
        rest = "/#" if filter == "#" else filter[1:]
        return [parent + rest for parent in self._access.readable(link.account, filter, sorted(self._downlink.bridged))]

    def _refused(self, link: Link, filter: str, problem: str) -> tuple[int, list[str]]:
        observe.note(observe.Fact.SUBSCRIPTION_REFUSED, client_id=link.client_id, filter=filter, problem=problem)
        return SUBACK_FAILURE, []

    async def unsubscribe(self, link: Link, packet: Unsubscribe) -> None:
        """No further message of these filters is queued once the UNSUBACK is [MQTT-3.10.4-2]."""
        subscriber = link.subscriber
        assert subscriber is not None
        filters = list(packet.filters)
        for filter in packet.filters:
            if filter not in subscriber.subscriptions:
                filters += self._readable(link, filter)
        if self.listening is not None:
            mine = [each for each in filters if each in subscriber.subscriptions]
            if not link.persistent:
                for filter in mine:
                    self._router.remove(subscriber, filter)
            try:
                await self.listening.end(link.client_id, link.persistent, mine)
            except StoreError as error:
                self._failed(link, "unsubscribe", error)
                return
        if link.persistent:
            try:
                await call(partial(self._store.unsubscribe, link.client_id, link.epoch, filters))
            except StoreError as error:
                self._failed(link, "unsubscribe", error)
                return
        if self._router.subscribers.get(link.client_id) is subscriber and link.mailbox is not None and not link.mailbox.ended:
            for filter in filters:
                self._router.remove(subscriber, filter)
        link.transport.write(encode.unsuback(packet.packet_id))

    def _failed(self, link: Link, operation: str, error: StoreError) -> None:
        observe.note(observe.Fact.STORE_FAILED, operation=operation, client_id=link.client_id, error=str(error))
        link.reason = Reason.UNAVAILABLE
