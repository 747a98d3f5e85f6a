"""This node among the others: its lease, who lives, and what becomes of a node that died (design section 5, incarnations and leases)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from gateway import observe
from gateway.ports import Cluster, Member, Store, StoreError
from gateway.runtime.cluster.post import Post
from gateway.runtime.peers import Peers

LOOK_SECONDS = 1.0
ALONE_SECONDS = 2.0  # how long a node that saw no other may take the index for its own alone
SETTLE_SECONDS = 1.3  # by then the others have seen that this node serves, and have let go of its part
WELCOME_SECONDS = 2.5  # how long a node that joins others waits before it serves: by then none of them believes that it is alone
RETRY_SECONDS = 0.5


class Membership:
    """lost: what to do when the others declared this node dead; it returns when nothing of the old life is left. ready: what has to be done
    after the others count on this node and before it takes its part; raises StoreError. beat, patience: seconds between two beats, and
    without one after which a node is declared dead. new_id: makes UNIQ_KEYs."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        peers: Peers,
        post: Post,
        node_id: str,
        *,
        beat: float,
        patience: float,
        new_id: Callable[[], str],
        lost: Callable[[], Awaitable[None]],
        ready: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._peers = peers
        self._post = post
        self._node_id = node_id
        self._beat_seconds = beat
        self._patience = patience
        self._new_id = new_id
        self._lost = lost
        self._ready = ready
        self._announced = False  # the others count on this node
        self._serving = False  # and it takes its part
        self._seen: dict[str, tuple[int, float]] = {}  # beats, and when they were seen to change (monotonic seconds)
        self._caring: set[str] = set()
        self._nursery: trio.Nursery | None = None
        self._leaving = False
        self._sure_now = trio.Event()

    async def join(self) -> None:
        """Become a member. Raises StoreError, also when a living node has this node_id."""
        for member in await self._cluster.members():
            if member.node.rpartition("/")[0] == self._node_id and not member.lost:
                await self._succeed(member)
        asked = trio.current_time()
        node = await self._cluster.join(self._node_id)
        self._sure(asked)
        others = [each for each in await self._cluster.members() if not each.lost and each.node != node]
        self._peers.update(node, (each.node for each in others if each.serving))
        if others:
            await trio.sleep(WELCOME_SECONDS)

    async def serve(self) -> None:
        """Take part: queues and shards are this node's from now on. Repeated until the store takes it."""
        self._announced = True
        while not self._serving:
            try:
                if not await self._cluster.beat(self._peers.node, True):
                    return  # `_beat` finds out
                # a node that asks for a wider pull now waits for us; one that asked before is heard of here
                await self._ready()
                members = await self._cluster.members()
                if any(each.serving and each.node != self._peers.node for each in members):
                    await trio.sleep(SETTLE_SECONDS)
            except StoreError as error:
                observe.note(observe.Fact.STORE_FAILED, operation="serve", error=str(error))
                await trio.sleep(RETRY_SECONDS)
                continue
            self._serving = True
            self._peers.update(self._peers.node, {self._peers.node, *(each.node for each in members if each.serving)})
            observe.log.info("node_serves", node=self._peers.node, nodes=sorted(self._peers.live))

    async def _succeed(self, before: Member) -> None:
        """A former life of this node left a lease. Raises StoreError if it is raised still."""
        deadline = trio.current_time() + self._beat_seconds * 1.5
        while trio.current_time() < deadline:
            await trio.sleep(self._beat_seconds / 6)
            now = {each.node: each for each in await self._cluster.members()}.get(before.node)
            if now is None or now.lost:
                return
            if now.beats != before.beats:
                raise StoreError(f"gateway.node_id: a living gateway of this instance is named {self._node_id!r}; name this one otherwise")
        await self._cluster.declare_lost(before.node, before.beats, before.node)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._beat)
            task_status.started()
            await self._watch()

    async def _beat(self) -> None:
        while True:
            asked = trio.current_time()
            try:
                alive = await self._cluster.beat(self._peers.node, self._announced)
            except StoreError as error:
                observe.note(observe.Fact.STORE_FAILED, operation="beat", error=str(error))
                await trio.sleep(RETRY_SECONDS)
                continue
            if alive:
                self._sure(asked)
            elif not self._leaving:
                await self._rejoin()
            await trio.sleep(self._beat_seconds)

    def _sure(self, asked: float) -> None:
        self._peers.sure_until = asked + self._patience
        self._sure_now.set()
        self._sure_now = trio.Event()

    async def sure(self) -> None:
        """Returns when this node can't have been declared dead. One that was frozen finds out here, before it acts on what it had."""
        while trio.current_time() > self._peers.sure_until:
            await self._sure_now.wait()

    async def _rejoin(self) -> None:
        """The others took this node for dead, and divided what was its among themselves."""
        observe.note(observe.Fact.NODE_LOST, node=self._peers.node, reason="declared_dead_by_others")
        self._announced = self._serving = False
        self._peers.alone_until = 0.0
        self._peers.update(self._peers.node, ())
        await self._lost()
        while True:
            try:
                await self.join()
                await self.serve()
                return
            except StoreError as error:
                observe.note(observe.Fact.STORE_FAILED, operation="join", error=str(error))
                await trio.sleep(RETRY_SECONDS)

    # ------------------------------------------------------------ the others

    async def _watch(self) -> None:
        while True:
            try:
                asked = trio.current_time()
                members = await self._cluster.members()
                if [each.node for each in members] == [self._peers.node]:
                    self._peers.alone_until = asked + ALONE_SECONDS
                await self._look(members)
            except StoreError as error:
                observe.note(observe.Fact.STORE_FAILED, operation="members", error=str(error))
                self._seen.clear()  # nobody could raise a lease: everybody's time begins anew
            await trio.sleep(LOOK_SECONDS)

    async def _look(self, members: list[Member]) -> None:
        me, now = self._peers.node, trio.current_time()
        if not any(each.node == me and not each.lost for each in members):
            return  # `_beat` finds out
        living = {each.node for each in members if not each.lost}
        self._seen = {node: seen for node, seen in self._seen.items() if node in living}
        for member in members:
            if member.node == me:
                continue
            if member.lost:
                mine = member.node not in self._caring and (member.heir == me or member.heir not in living)
                # said again by its heir: whoever said it first may have failed before the inbox was closed
                if mine and await self._cluster.declare_lost(member.node, member.beats, me):
                    self._inherit(member.node)
                continue
            beats, since = self._seen.setdefault(member.node, (member.beats, now))
            if beats != member.beats:
                self._seen[member.node] = (member.beats, now)
            elif now - since > self._patience and await self._cluster.declare_lost(member.node, member.beats, me):
                observe.note(observe.Fact.NODE_LOST, node=member.node, reason="silent")
                living.discard(member.node)
                self._inherit(member.node)
        serving = {each.node for each in members if each.serving and each.node in living} - {me}
        if me == self._peers.node:  # it may have joined again meanwhile
            self._peers.update(me, serving | {me} if self._serving else serving)

    def _inherit(self, node: str) -> None:
        if node not in self._caring and self._nursery is not None:
            self._caring.add(node)
            self._nursery.start_soon(self._care, node)

    async def _care(self, node: str) -> None:
        """Its connections are gone, its parcels are for others now. Every step may be done again."""
        try:
            while True:
                try:
                    gone = await self._store.abandoned(node, self._store.clock(), self._new_id)
                    await self.forward(node)
                    await self._cluster.leave(node)
                    observe.log.info("node_inherited", node=node, connections=gone)
                    return
                except StoreError as error:
                    observe.note(observe.Fact.STORE_FAILED, operation="inherit", node=node, error=str(error))
                    await trio.sleep(RETRY_SECONDS)
        finally:
            self._caring.discard(node)

    async def forward(self, node: str) -> None:
        """Open what lies in the (closed) inbox of `node`, until it is empty: its clients are here, elsewhere or nowhere. Raises
        StoreError."""
        after = ""
        while last := await self._post.read(node, after):
            after = last
        await self._post.settled(node)

    async def leave(self) -> None:
        """The end, in order: the inbox is closed, what lies in it is kept for its clients, and the member is gone. Raises StoreError."""
        self._leaving = True
        me = self._peers.node
        for member in await self._cluster.members():
            if member.node == me and not member.lost:
                await self._cluster.declare_lost(me, member.beats, me)
        await self.forward(me)
        await self._cluster.leave(me)
