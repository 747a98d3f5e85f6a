"""`ports.Cluster` on Redis: which step goes over which connection, in which order (design section 5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from gateway.ports import Done
from gateway.ports.cluster import Arrived, Cluster, Entry, Look, Member, Parcel, Place, Wide
from gateway.store.redis import inbox, index, members
from gateway.store.redis.engine import Command, Job, Line, Steps, checked
from gateway.store.redis.keys import PERSISTENT, Keys


class RedisCluster:
    """writer: for what changes; reader: for reads and beats; waiter: for nothing but waiting at this node's inbox.

    Beyond the port's words: `send` is all or nothing up to 1 MiB and 1,000 parcels; of more, a part may have been sent when the answer is
    False. `index` of a node, and `pulled`, are refused with StoreError while that node's inbox is not open (declared lost, never joined).
    An entry that `index` shall add and remove is added. A version of an index that is lower than one seen before, with `changed` None,
    means that Redis lost data. `declare_lost` by the heir that it has already is True and closes the inbox again. A `done` without a result
    of its own gets True. Arguments are copied at the call.
    """

    def __init__(self, keys: Keys, writer: Line, reader: Line, waiter: Line) -> None:
        self._keys = keys
        self._writer = writer
        self._reader = reader
        self._waiter = waiter
        self._own: set[str] = set()  # nodes that joined here, with an open inbox as far as we know

    # -- membership

    async def join(self, node_id: str) -> str:
        node = await self._writer.ask(partial(members.join, self._keys, node_id), long=True)
        self._own.add(node)
        return node

    async def beat(self, node: str, serving: bool) -> bool:
        alive = await self._reader.ask(partial(members.beat, self._keys, node, serving))
        if not alive:
            self._own.discard(node)
        return alive

    async def members(self) -> list[Member]:
        return await self._reader.ask(partial(members.members, self._keys))

    async def declare_lost(self, node: str, beats: int, heir: str) -> bool:
        self._own.discard(node)
        declared: bool = await self._change(node, partial(members.declare_lost, self._keys, node, beats, heir))
        return declared

    async def leave(self, node: str) -> None:
        """Step by step, so that a node with many filters holds nobody up."""
        self._own.discard(node)
        await self._change(node, partial(members.close_inbox, self._keys, node))
        await self._change(node, partial(index.drop_pulling, self._keys, node))
        while await self._change(node, partial(index.drop_filters, self._keys, node)):
            pass
        await self._change(node, partial(members.remove, self._keys, node))

    async def _change(self, node: str, job: Job[Any]) -> Any:
        return await self._writer.ask(job, order=(f"n:{node}",), long=True)

    # -- inboxes

    def send(self, node: str, parcels: Sequence[Parcel], done: Done) -> None:
        parts = inbox.chunks(inbox.packed(parcels))
        self._writer.submit(partial(inbox.send, self._keys, node, parts), done, order=(f"n:{node}",), long=len(parts) > 1)

    async def inbox(self, node: str, after: str, limit: int) -> list[Arrived]:
        """Another node's inbox is closed as a rule: then there is nothing to wait for."""
        if node not in self._own:
            arrived, is_open = await self._reader.ask(partial(inbox.read, self._keys, node, after, limit))
            if arrived or not is_open:
                return arrived
        return await self._waiter.ask(partial(inbox.wait, self._keys, node, after, limit))

    def inbox_remove(self, node: str, positions: Sequence[str], done: Done) -> None:
        many = len(positions) > inbox.CALL_PARCELS
        self._writer.submit(partial(inbox.remove, self._keys, node, list(positions)), done, order=(f"n:{node}",), long=many)

    # -- who listens below a parent topic

    def index(self, parent: str, add: Sequence[tuple[str, Entry]], remove: Sequence[tuple[str, Entry]], done: Done) -> None:
        """Entries of different listeners or filters don't wait for each other: they make the same index in any order."""
        add, remove = list(add), list(remove)
        order = [f"{parent}\0{filter}\0{index.member_of(entry)}" for changes in (remove, add) for filter, entry in changes]
        job = partial(index.change, self._keys, parent, add, remove)
        self._writer.submit(job, done, order=order, long=index.is_long(add, remove))

    async def look(self, parent: str, since: int, filters: Iterable[str]) -> Look:
        return await self._reader.ask(partial(index.look, self._keys, parent, since, list(filters)))

    def pulled(self, parent: str, node: str, version: int, done: Done) -> None:
        self._writer.submit(partial(index.pulled, self._keys, parent, node, version), done, order=(f"{parent}\0{node}",), long=True)

    async def pulling(self, parent: str) -> dict[str, int]:
        return await self._reader.ask(partial(index.pulling, self._keys, parent))

    async def narrow(self, parent: str, version: int) -> Wide:
        return await self._writer.ask(partial(index.narrow, self._keys, parent, version), long=True)

    # -- where clients are

    async def locate(self, client_ids: Iterable[str]) -> dict[str, Place]:
        return await self._reader.ask(partial(_locate, self._keys, list(client_ids)))


def _locate(keys: Keys, client_ids: Sequence[str]) -> Steps[dict[str, Place]]:
    replies = checked((yield [Command(("HMGET", keys.client(client_id), "node", "kind")) for client_id in client_ids]))
    found: dict[str, Place] = {}
    for client_id, (node, kind) in zip(client_ids, replies, strict=True):
        place = Place((node or b"").decode(), kind is not None and int(kind) == PERSISTENT)
        if place.node or place.persistent:
            found[client_id] = place
    return found


def _complete(cluster: RedisCluster) -> Cluster:
    """Says to the type checker that nothing is missing."""
    return cluster
