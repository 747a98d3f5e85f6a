"""The one clock of a node: keep-alives, deliveries that are not acknowledged in time, and what expires (design section 3.8)."""

from __future__ import annotations

from collections.abc import Callable

import trio

from gateway import observe
from gateway.ports import Queue, Store, StoreError
from gateway.rules.presence import Reason
from gateway.runtime.cluster.listening import Listening
from gateway.runtime.downlink import Downlink
from gateway.runtime.offline import Offline
from gateway.runtime.peers import Peers
from gateway.runtime.registry import Registry
from gateway.runtime.router import Router

TICK_SECONDS = 0.5
EXPIRE_SECONDS = 60.0
FORGET_SECONDS = 15.0  # a committed offset may come back after a broker's crash: it flushes offsets every 5 s (design section 4)


class Sweeper:
    """push_timeout: seconds after which an unacknowledged delivery is made safe in the offline store. now: ms since 1970."""

    def __init__(
        self,
        registry: Registry,
        router: Router,
        offline: Offline,
        store: Store,
        downlink: Downlink,
        peers: Peers,
        push_timeout: float,
        now: Callable[[], int],
    ) -> None:
        self._registry = registry
        self._router = router
        self._offline = offline
        self._store = store
        self._downlink = downlink
        self._peers = peers
        self._push_timeout = push_timeout
        self._now = now
        self.listening: Listening | None = None  # in a cluster

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            await trio.sleep(TICK_SECONDS)
            now = trio.current_time()
            pushed_before = now - self._push_timeout
            for link in list(self._registry.links.values()):
                if link.overdue(now):
                    observe.note(observe.Fact.KEEP_ALIVE_TIMEOUT, client_id=link.client_id, channel_id=link.channel_id)
                    link.kick(Reason.KEEP_ALIVE_TIMEOUT)
                    continue
                mailbox = link.mailbox
                if mailbox is not None and mailbox.asking is not None:
                    self._offline.pulling.decide(mailbox, now)
                if mailbox is not None and mailbox.persistent and mailbox.depth:
                    overdue = mailbox.overdue(pushed_before)
                    if overdue:
                        self._offline.keep(link.client_id, overdue, mailbox.safe, mailbox)

    async def expire(self) -> None:
        """Serve until cancelled: sessions and offline messages that are over their time."""
        while True:
            await trio.sleep(EXPIRE_SECONDS)
            try:
                expired = await self._store.expire(self._now(), self._peers.shards(self._store.shards))
            except StoreError as error:
                observe.note(observe.Fact.STORE_FAILED, operation="expire", error=str(error))
                continue
            for client_id, filters in expired.sessions.items():
                if client_id not in self._registry.links:
                    self._router.forget(client_id)
                    if self.listening is not None:
                        self.listening.forget(client_id, True, filters)
            if expired.sessions:
                observe.note(observe.Fact.SESSION_EXPIRED, n=len(expired.sessions))
            if expired.offline:
                observe.note(observe.Fact.OFFLINE_EXPIRED, n=expired.offline)

    async def forget(self) -> None:
        """Serve until cancelled: UNIQ_KEYs of finished QoS 2 deliveries are remembered until their offset is committed for good."""
        before: dict[Queue, int] = {}
        while True:
            await trio.sleep(FORGET_SECONDS)
            now: dict[Queue, int] = {}
            try:
                if self._store.cluster is not None:
                    for queue in list(self._downlink.assigned):
                        await self._store.set_mark(_mark(queue), str(self._downlink.committed(queue)))
                async for chunk in self._store.remembered(self._peers.shards(self._store.shards)):
                    over = [(client_id, key) for client_id, key, queue, offset in chunk if before.get(queue, -1) > offset]
                    for *_, queue, _offset in chunk:
                        if queue not in now:
                            now[queue] = await self._committed(queue)
                    if over:
                        self._store.forget(over, _ignore)
            except StoreError as error:
                observe.note(observe.Fact.STORE_FAILED, operation="forget", error=str(error))
            before = now

    async def _committed(self, queue: Queue) -> int:
        """What is committed, also of a queue that another node reads; -1: not known."""
        offset = self._downlink.committed(queue)
        if offset < 0 and self._store.cluster is not None:
            offset = int(await self._store.mark(_mark(queue)) or -1)
        return offset


def _mark(queue: Queue) -> str:
    return f"committed/{queue.topic}/{queue.broker}/{queue.id}"


def _ignore(_result: object) -> None:
    """It is tried again with the next round."""
