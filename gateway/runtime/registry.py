"""Who is online on this node: CONNECT takes a session, the end of a connection gives it back, each in one atomic step of the store
(contract sections 1 and 7, clause 3.1.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from gateway import observe
from gateway.ports import Backend, Claim, Claimed, Owned, Release, Store, StoreError, Will
from gateway.rules.presence import Reason
from gateway.runtime.inlet import Inbound
from gateway.runtime.offline import Offline, Watch
from gateway.runtime.peers import Peers
from gateway.runtime.router import Router, Subscriber
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.runtime.cluster.company import Company
    from gateway.runtime.link import Link

RETRY_SECONDS = 1.0
TAKE_SECONDS = 0.02  # between two looks whether another node has let a session go
LEAVE_SECONDS = 5.0  # at the end: how long the last releases may take


class Registry:
    """now: ms since 1970. links: by Client ID, those that are accepted."""

    def __init__(
        self,
        backend: Backend,
        store: Store,
        router: Router,
        offline: Offline,
        peers: Peers,
        settings: Settings,
        now: Callable[[], int],
    ) -> None:
        self._backend = backend
        self._store = store
        self._router = router
        self._offline = offline
        self._peers = peers
        self.company: Company | None = None  # in a cluster
        self._takeover = settings.limits.takeover_seconds
        self._now = now
        self._claiming: dict[str, trio.Lock] = {}
        self._underway: dict[str, dict[int, Inbound]] = {}  # of connections that ended before the backend had answered
        self._nursery: trio.Nursery | None = None
        self._leaving = 0
        self._going: dict[str, Link] = {}  # connections that are gone and not released yet
        self.links: dict[str, Link] = {}
        offline.taken = self.taken

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled: the releases of connections that are gone."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def drain(self, seconds: float) -> None:
        """Wait until every connection that is gone is released in the store, `seconds` at most."""
        with trio.move_on_after(seconds):
            while self._leaving:
                await trio.sleep(0.01)

    # ------------------------------------------------------------ CONNECT

    async def claim(self, link: Link, will: Will | None) -> tuple[Claimed, Watch]:
        """Take over from an older connection [MQTT-3.1.4-2] and make `link` the session's owner. Two CONNECTs with one Client ID take
        turns.
        Raises StoreError."""
        if self.company is not None:
            await self.company.membership.sure()
            if self._peers.node not in self._peers.live:
                raise StoreError("this node does not serve yet: it joins the others")
        client_id = link.client_id
        turn = self._claiming.setdefault(client_id, trio.Lock())
        try:
            async with turn:  # in the order of arrival: the newest one stays
                await self._take_over(client_id)
                return await self._claim(link, will)
        finally:
            if not turn.locked() and self._claiming.get(client_id) is turn:
                del self._claiming[client_id]

    async def _claim(self, link: Link, will: Will | None) -> tuple[Claimed, Watch]:
        client_id = link.client_id
        claim = Claim(
            client_id=client_id,
            node=self._peers.node,
            channel_id=link.channel_id,
            client_ip=link.client_ip,
            persistent=link.persistent,
            will=will,
            now=self._now(),
            event_ids=(self._backend.new_id(), self._backend.new_id()),
            gentle=self.company is not None,
        )
        link.node = claim.node
        watch = self._offline.watch(client_id)
        link.claiming = True  # from here on the store may name this channel, whatever happens to the task
        try:
            claimed = await self._take(claim)
        except BaseException:
            self._offline.unwatch(client_id, watch)
            raise
        link.epoch = claimed.epoch
        self.links[client_id] = link
        link.subscriber = self._subscriber(link, claimed)
        if self.company is not None:
            self.company.listening.forget(client_id, True, claimed.dropped)
            if link.persistent:  # before the CONNACK: from then on the device gets what is sent at QoS 0
                await self.company.listening.arrived(client_id, claim.node, claimed.subscriptions)
        return claimed, watch

    async def _take(self, claim: Claim) -> Claimed:
        """Another node's connection has a moment to hand over what it holds, then the session is taken [MQTT-3.1.4-2].
        Raises StoreError."""
        deadline = trio.current_time() + self._takeover
        asked = ""
        while isinstance(found := await self._store.claim(claim), Owned):
            assert self.company is not None
            if found.channel_id != asked:
                asked = found.channel_id
                observe.note(observe.Fact.TAKEN_OVER, client_id=claim.client_id, channel_id=asked, node=found.node)
                self.company.take(found.node, claim.client_id, asked)
            if found.node not in self._peers.live or trio.current_time() > deadline:
                claim.gentle = False
            await trio.sleep(TAKE_SECONDS)
        return found

    async def _take_over(self, client_id: str) -> None:
        old = self.links.get(client_id)
        if old is not None:
            observe.note(observe.Fact.TAKEN_OVER, client_id=client_id, channel_id=old.channel_id)
            old.kick(Reason.TAKEN_OVER)
            self.leave(old)
        going = self._going.get(client_id)
        if going is not None:
            assert going.left is not None
            with trio.move_on_after(self._takeover):
                await going.left.wait()

    def taken(self, client_id: str, node: str | None) -> bool:
        """The store says that `node` has the connection. True: it is another node, and the one here was left behind."""
        link = self.links.get(client_id)
        if link is None or not node or node == link.node:
            return False
        link.kick(Reason.TAKEN_OVER)
        self.leave(link)
        return True

    def strayed(self, client_id: str) -> None:
        """A node looked elsewhere for a session that is here: the index is told again."""
        link = self.links.get(client_id)
        if self.company is not None and link is not None and link.subscriber is not None:
            self.company.listening.moved(client_id, link.node, link.subscriber.subscriptions.values())

    def _subscriber(self, link: Link, claimed: Claimed) -> Subscriber:
        """The session as the router knows it: what the store says is in force."""
        client_id = link.client_id
        if not claimed.present:
            self._router.forget(client_id)
        subscriber = self._router.subscriber(client_id, link.persistent)
        for filter in subscriber.subscriptions.keys() - {each.filter for each in claimed.subscriptions}:
            self._router.remove(subscriber, filter)  # the link of an UNSUBSCRIBE ended before it was answered
        for subscription in claimed.subscriptions:
            if subscriber.subscriptions.get(subscription.filter) != subscription:
                self._router.add(subscriber, subscription)
        return subscriber

    def inbound(self, client_id: str, claimed: Claimed) -> dict[int, Inbound]:
        """The QoS 2 ids of the device. One whose message an older connection has on its way to the backend stays the same object, so that a
        repeat waits for that instead of being stored a second time."""
        underway = self._underway.pop(client_id, {})
        found: dict[int, Inbound] = {}
        for packet_id, (id, stored) in claimed.inbound.items():
            known = underway.get(packet_id)
            found[packet_id] = known if known is not None and known.id == id else Inbound(id, stored)
        return found

    def _keep_underway(self, link: Link) -> None:
        inbound = link.inlet.inbound if link.inlet is not None else {}
        if link.persistent and any(known.underway for known in inbound.values()):
            for client_id in [each for each, ids in self._underway.items() if not any(known.underway for known in ids.values())]:
                del self._underway[client_id]
            self._underway[link.client_id] = inbound

    # ------------------------------------------------------------ the end of a connection

    def leave(self, link: Link) -> None:
        """Give the session back: what a persistent one has not acknowledged goes to the offline store, then the store releases it (will and
        events in the same step). Once per link; `link.left` is set when the store has it."""
        if link.left is not None:
            return
        link.left = trio.Event()
        client_id = link.client_id
        if self.links.get(client_id) is link:
            del self.links[client_id]
        self._going[client_id] = link
        self._keep_underway(link)
        subscriber, mailbox = link.subscriber, link.mailbox
        keeping = Keeping()
        if mailbox is not None:
            kept = mailbox.end()
            if subscriber is not None and subscriber.mailbox is mailbox:
                subscriber.mailbox = None
            if kept:
                keeping.left = len(kept)
                self._offline.keep(client_id, kept, keeping)
        here = subscriber is not None and self._router.subscribers.get(client_id) is subscriber
        if subscriber is not None and here and self.company is not None:
            if link.persistent and link.reason is not Reason.NODE_LOST:  # else it may be somewhere by now
                self.company.listening.moved(client_id, "", subscriber.subscriptions.values())
            elif not link.persistent:
                self.company.listening.forget(client_id, False, subscriber.subscriptions)
        if here and not (link.persistent and self.company is None):
            self._router.forget(client_id)
        assert self._nursery is not None
        self._leaving += 1
        self._nursery.start_soon(self._release, link, keeping)

    async def _release(self, link: Link, keeping: Keeping) -> None:
        """Until the store has it: a client must not stay online in the registry for ever."""
        release = Release(
            client_id=link.client_id,
            epoch=link.epoch,
            channel_id=link.channel_id,
            node=link.node,
            polite=link.polite,
            reason=link.reason.value,
            now=self._now(),
            event_ids=(self._backend.new_id(), self._backend.new_id()),
        )
        try:
            inbound = link.inlet.inbound if link.inlet is not None else {}
            stored = [packet_id for packet_id, known in inbound.items() if known.stored]
            if stored and link.persistent:
                self._store.inbound_stored(link.client_id, link.epoch, stored, _ignore)
            while keeping.left:
                await keeping.lot.park()
            while True:
                try:
                    await self._store.release(release)
                    break
                except StoreError as error:
                    observe.note(observe.Fact.STORE_FAILED, operation="release", client_id=link.client_id, error=str(error))
                    await trio.sleep(RETRY_SECONDS)
        finally:
            self._leaving -= 1
            if self._going.get(link.client_id) is link:
                del self._going[link.client_id]
            assert link.left is not None
            link.left.set()


class Keeping:
    """What a connection has left over, on its way to the offline store. left: messages that are not safe yet."""

    __slots__ = ("left", "lot")

    def __init__(self) -> None:
        self.left = 0
        self.lot = trio.lowlevel.ParkingLot()

    def __call__(self, _entry: object, _new: bool) -> None:
        self.left -= 1
        if not self.left:
            self.lot.unpark_all()


def _ignore(_result: object) -> None:
    """A lost mark costs a repeat with the same UNIQ_KEY, which the contract allows."""
