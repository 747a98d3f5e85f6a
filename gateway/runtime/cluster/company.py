"""All that a node does because there are others: makes the parts of this room and runs them (design section 5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from gateway.ports import Cluster, Store
from gateway.runtime.cluster import parcels
from gateway.runtime.cluster.breadth import Breadth
from gateway.runtime.cluster.directory import Directory
from gateway.runtime.cluster.listening import Listening
from gateway.runtime.cluster.membership import Membership
from gateway.runtime.cluster.post import Post
from gateway.runtime.cluster.reach import Reach
from gateway.runtime.downlink import Downlink
from gateway.runtime.offline import Offline
from gateway.runtime.peers import Peers
from gateway.runtime.registry import Registry
from gateway.runtime.router import Router
from gateway.settings import Settings


class Company:
    """lost: what to do when the others declared this node dead. new_id: makes UNIQ_KEYs."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        peers: Peers,
        settings: Settings,
        *,
        router: Router,
        offline: Offline,
        registry: Registry,
        downlink: Downlink,
        new_id: Callable[[], str],
        lost: Callable[[], Awaitable[None]],
    ) -> None:
        self._lost = lost
        self._post = Post(cluster, peers)
        self.directory = Directory(cluster)
        self.reach = Reach(cluster, peers, self._post, self.directory, router, offline, registry)
        self._breadth = Breadth(cluster, peers, self._post, self.directory, downlink)
        self.reach.looked = self._breadth.look
        self.listening = Listening(cluster, peers, self.directory, self._breadth, downlink.touched_by)
        self.membership = Membership(
            store,
            cluster,
            peers,
            self._post,
            settings.gateway.node_id,
            beat=settings.cluster.beat_seconds,
            patience=settings.cluster.patience_seconds,
            new_id=new_id,
            lost=self._begin_anew,
            ready=self._breadth.catch_up,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `membership.join` was called before."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._post.run)
            await nursery.start(self.membership.run)
            await nursery.start(self._breadth.run)
            task_status.started()

    def take(self, node: str, client_id: str, channel_id: str) -> None:
        """Ask `node` to let go of a session: the device is here now."""
        self._post.send(node, parcels.take(client_id, channel_id))

    async def _begin_anew(self) -> None:
        await self._lost()
        self.listening.rejoined()
