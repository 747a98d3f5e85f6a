"""One gateway node between its two ports: makes the runtime's parts, starts and ends them in the order of design section 3.7."""

from __future__ import annotations

import random

import trio

from gateway import observe
from gateway.ports import Backend, BackendError, Cluster, Refusal, Store, StoreError
from gateway.rules.presence import Reason
from gateway.runtime.access import Access
from gateway.runtime.cluster.company import Company
from gateway.runtime.downlink import Downlink
from gateway.runtime.link import Link, Shared, Transport
from gateway.runtime.mailbox import Bounds
from gateway.runtime.offline import Offline
from gateway.runtime.peers import Peers
from gateway.runtime.presence import Presence
from gateway.runtime.quota import Rate
from gateway.runtime.registry import Registry
from gateway.runtime.retaining import Retaining
from gateway.runtime.router import Router
from gateway.runtime.subscribing import Subscribing
from gateway.runtime.sweeper import Sweeper
from gateway.runtime.uplink import Uplink
from gateway.runtime.views import Views
from gateway.settings import Settings

MEMBERS_SECONDS = 5.0
BRIDGED_SECONDS = 10.0  # how long devices wait at the start for a backend that does not answer
NODE_MARK = "node"  # under which name the store's last gateway ran: a container's host name changes


class Node:
    """settings: complete, with at least one account or anonymous access."""

    def __init__(self, settings: Settings, backend: Backend, store: Store) -> None:
        limits = settings.limits
        self._settings = settings
        self._backend = backend
        self._store = store
        rate = Rate(limits.tps, trio.current_time())
        access = Access(settings)
        self._peers = Peers(settings.gateway.node_id)
        self._offline = Offline(store, settings)
        self._router = Router(self._offline)
        self._downlink = Downlink(backend, store, self._router, self._peers, settings, rate)
        uplink = Uplink(backend, store, settings, store.clock)
        self._registry = Registry(backend, store, self._router, self._offline, self._peers, settings, store.clock)
        self._presence = Presence(backend, store, uplink, self._peers, default_group=settings.naming.default_group)
        self._sweeper = Sweeper(
            self._registry, self._router, self._offline, store, self._downlink, self._peers, limits.push_timeout_seconds, store.clock
        )
        retaining = Retaining(store, self._offline, store.clock)
        self._shared = Shared(
            settings=settings,
            access=access,
            registry=self._registry,
            router=self._router,
            uplink=uplink,
            offline=self._offline,
            subscribing=Subscribing(store, self._router, self._downlink, access, retaining, uplink.stored, limits, store.clock),
            rate=rate,
            bounds=Bounds(limits.inflight, limits.mailbox_count, limits.mailbox_bytes, limits.write_buffer_bytes),
            opened=set(),
        )
        self._company: Company | None = None
        if store.cluster is not None:
            self._company = self._found(store.cluster)
        self.views = Views(backend, store, self._registry, self._router, self._downlink, self._peers, self._shared.opened)

    def _found(self, cluster: Cluster) -> Company:
        company = Company(
            cluster,
            self._store,
            self._peers,
            self._settings,
            router=self._router,
            offline=self._offline,
            registry=self._registry,
            downlink=self._downlink,
            new_id=self._backend.new_id,
            lost=self._lost,
        )
        self._registry.company = self._downlink.company = company
        self._sweeper.listening = self._shared.subscribing.listening = company.listening
        return company

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Started when stored sessions are known and devices may come in. Raises StoreError, BackendError."""
        if self._company is None:
            await self._recover()
        else:
            await self._company.membership.join()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._offline.run)
            await nursery.start(self._registry.run)
            if self._company is not None:
                await nursery.start(self._company.run)
            await nursery.start(self._downlink.run)
            await nursery.start(self._presence.run)
            nursery.start_soon(self._sweeper.run)
            nursery.start_soon(self._sweeper.expire)
            nursery.start_soon(self._sweeper.forget)
            with trio.move_on_after(BRIDGED_SECONDS):  # a PUBLISH to a topic that is being created would be refused
                await self._downlink.bridged_all()
            if self._company is not None:
                await self._company.membership.serve()
            task_status.started()

    async def _recover(self) -> None:
        """What a former life of this node left: its connections are gone, its wills are due; stored subscriptions are in force."""
        node = self._settings.gateway.node_id
        try:
            with trio.move_on_after(MEMBERS_SECONDS):
                await self._downlink.alone()
        except BackendError as error:
            if error.refusal is not Refusal.UNAVAILABLE:  # a server that is down is asked again when the topics are bridged
                raise
        before = await self._store.mark(NODE_MARK)
        gone = 0
        for name in {node, before or node}:
            gone += await self._store.abandoned(name, self._store.clock(), self._backend.new_id)
        await self._store.set_mark(NODE_MARK, node)
        async for chunk in self._store.subscriptions():
            for client_id, subscription in chunk:
                self._router.add(self._router.subscriber(client_id, True), subscription)
        if gone:
            observe.log.warning("connections_of_former_life_released", connections=gone)

    async def _lost(self) -> None:
        """The others took this node for dead: its devices have to connect again, and nothing is said of them."""
        for link in list(self._shared.opened):
            link.kick(Reason.NODE_LOST)
        while self._shared.opened:
            await trio.sleep(0.02)

    async def serve(self, transport: Transport) -> None:
        """One device, until its connection is over."""
        await Link(self._shared, transport).run()

    async def drain_links(self, per_second: float = 0, seconds: float = 0, hurry: trio.Event | None = None) -> None:
        """The gateway ends: every device is disconnected; its will is published, since it did not say DISCONNECT [MQTT-3.1.2-8].

        per_second: how many, 0 for all at once; more where all would not be gone within `seconds`. hurry: set when the rest is to go at
        once. The order is random, so that no part of a fleet is away at once as a whole.
        """
        opened, hurry = self._shared.opened, trio.Event() if hurry is None else hurry
        waiting = list(opened) if per_second and seconds else []
        random.shuffle(waiting)
        rate = max(per_second, len(waiting) / seconds) if waiting else 0.0
        began, kicked = trio.current_time(), 0
        while waiting and not hurry.is_set():
            link = waiting.pop()
            if link not in opened:  # it went by itself
                continue
            link.kick(Reason.SHUTDOWN)
            kicked += 1
            with trio.move_on_at(began + kicked / rate):
                await hurry.wait()
        for link in list(opened):
            link.kick(Reason.SHUTDOWN)

    async def drain(self, seconds: float) -> None:
        """After the last link: releases, events, wills and the backlog reach their places, `seconds` at most for all."""
        with trio.move_on_after(seconds):
            while self._shared.opened:
                await trio.sleep(0.01)
            await self._registry.drain(seconds)
            await self._presence.drain(seconds)
            await self._backend.drain()
            if self._company is not None:
                await self._downlink.close()
                try:
                    await self._company.membership.leave()
                except StoreError as error:  # then the others find out by themselves
                    observe.note(observe.Fact.STORE_FAILED, operation="leave", error=str(error))
