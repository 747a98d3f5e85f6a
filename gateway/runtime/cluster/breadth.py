"""Whether devices' own messages of a parent are pulled: the same on every node before a SUBACK leaves that needs it (design section 4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import trio

from gateway import observe
from gateway.ports import Cluster, StoreError, Wide
from gateway.runtime.cluster import parcels
from gateway.runtime.cluster.directory import Directory
from gateway.runtime.cluster.post import Post
from gateway.runtime.peers import Peers

if TYPE_CHECKING:
    from gateway.runtime.downlink import Downlink, Parent

LOOK_SECONDS = 1.0  # how late a node hears of a change that nobody told it
ASK_SECONDS = 0.01
REMIND_SECONDS = 1.0
EVERYWHERE_SECONDS = 20.0  # a node that is silent for less is dead by then; one that can't reach RocketMQ makes a SUBSCRIBE fail
NARROW_SECONDS = 60.0  # devices' messages are not pulled any more that long after the last listener


class Breadth:
    """Follows the cluster's word for each parent of this node."""

    def __init__(self, cluster: Cluster, peers: Peers, post: Post, directory: Directory, downlink: Downlink) -> None:
        self._cluster = cluster
        self._peers = peers
        self._post = post
        self._directory = directory
        self._downlink = downlink
        self._told: dict[str, tuple[str, int]] = {}  # by parent: what we said that we pull with, under which name
        self._everywhere: dict[str, tuple[int, frozenset[str]]] = {}  # by parent: a version, and the nodes that pull with it
        self._wake = trio.Event()
        peers.watch(self._nodes_changed)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        task_status.started()
        while True:
            try:
                await self.catch_up()
            except StoreError as error:
                observe.note(observe.Fact.STORE_FAILED, operation="look", error=str(error))
            with trio.move_on_after(LOOK_SECONDS):
                await self._wake.wait()
            self._wake = trio.Event()

    async def catch_up(self) -> None:
        """Pull every parent as the cluster says now. Raises StoreError."""
        for parent in self._downlink.parents.values():
            if parent.consumer is not None:
                await self._follow(parent)

    def look(self, _parent: str) -> None:
        """Somebody says that there is something new."""
        self._wake.set()

    def _nodes_changed(self) -> None:
        self._wake.set()

    async def _follow(self, parent: Parent) -> None:
        wide = await self._directory.look(parent.name)
        await self.follow(parent, wide)
        if not wide.on or not self._directory.empty(parent.name):
            parent.idle_since = 0.0
        elif not parent.idle_since:
            parent.idle_since = trio.current_time()
        elif trio.current_time() - parent.idle_since > NARROW_SECONDS and self._peers.owner(f"breadth {parent.name}") == self._peers.node:
            await self._cluster.narrow(parent.name, wide.version)

    async def follow(self, parent: Parent, wide: Wide) -> None:
        """Pull `parent` as `wide` says, and tell the others so."""
        await self._downlink.set_wide(parent, wide.on, wide.version)
        said = (self._peers.node, parent.version)
        if self._told.get(parent.name) != said:
            self._told[parent.name] = said

            def done(result: Any) -> None:
                if isinstance(result, StoreError):
                    self._told.pop(parent.name, None)

            self._cluster.pulled(parent.name, *said, done)

    async def everywhere(self, asked: Iterable[tuple[Parent, Wide]]) -> None:
        """Returns when every living node pulls these parents so wide. Raises StoreError."""
        for parent, wide in asked:
            known = self._everywhere.get(parent.name)
            if known is not None and known[0] >= wide.version and known[1] == self._peers.live:
                continue
            await self.follow(parent, wide)
            await self._wait(parent.name, wide.version)

    async def _wait(self, parent: str, version: int) -> None:
        remind = 0.0
        pause = ASK_SECONDS
        deadline = trio.current_time() + EVERYWHERE_SECONDS
        while True:
            # asked in this order: a node that begins to serve later than this answer reads the new word itself
            living = frozenset(each.node for each in await self._cluster.members() if each.serving)
            pulling = await self._cluster.pulling(parent)
            missing = [node for node in living if pulling.get(node, -1) < version and node != self._peers.node]
            if not missing:
                self._everywhere[parent] = (version, living)
                return
            if trio.current_time() > deadline:
                raise StoreError(f"topic {parent} is not pulled for devices yet by {', '.join(missing)}; see their /readyz")
            if trio.current_time() > remind:
                remind = trio.current_time() + REMIND_SECONDS
                for node in missing:
                    self._post.send(node, parcels.look(parent))
            await trio.sleep(pause)
            pause = min(pause * 2, 0.5)
