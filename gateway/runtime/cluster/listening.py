"""What this node tells the index: which of its clients listen to what, and where their sessions are (design section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from gateway import observe
from gateway.ports import Cluster, Done, StoreError, Subscription, Wide
from gateway.ports.cluster import Entry
from gateway.runtime.awaiting import call
from gateway.runtime.cluster.breadth import Breadth
from gateway.runtime.cluster.directory import Directory
from gateway.runtime.peers import Peers

if TYPE_CHECKING:
    from gateway.runtime.downlink import Parent

Touched = Callable[[str], "list[Parent]"]
Entries = list[tuple[str, Entry]]  # with their filters


class Listening:
    """touched: the parents below which a filter can match. Clean sessions are the index's as one fleet of this node: counted here."""

    def __init__(self, cluster: Cluster, peers: Peers, directory: Directory, breadth: Breadth, touched: Touched) -> None:
        self._cluster = cluster
        self._directory = directory
        self._peers = peers
        self._breadth = breadth
        self._touched = touched
        self._fleet: dict[str, int] = {}  # by filter: how many clean sessions of this node have it

    async def begin(self, client_id: str, persistent: bool, subscriptions: Iterable[Subscription], new: Iterable[str]) -> None:
        """After it every node finds the subscriptions, and pulls what they need. new: filters that the client did not have before.
        Raises StoreError."""
        new = set(new)
        node = self._peers.node
        if not persistent:
            for filter in new:
                self._fleet[filter] = self._fleet.get(filter, 0) + 1
        asked = self._by_parent(
            (each.filter, Entry(client_id, node, each.qos, each.since) if persistent else Entry("", node)) for each in subscriptions
        )
        found: list[tuple[Parent, Wide]] = []
        try:
            for parent, entries in asked.items():
                found.append((parent, await call(partial(self._index, parent, entries, []))))
            await self._breadth.everywhere(found)
        except BaseException:
            if not persistent:
                self.forget(client_id, False, new)
            raise

    def moved(self, client_id: str, node: str, subscriptions: Iterable[Subscription]) -> None:
        """A stored session's connection is on `node` now, "" for nowhere. A hint: a message that follows an old one finds its way."""
        for parent, entries in self._moves(client_id, node, subscriptions).items():
            self._index(parent, entries, [], _noted)

    async def arrived(self, client_id: str, node: str, subscriptions: Iterable[Subscription]) -> None:
        """As `moved`; returns when every node can know. Raises StoreError."""
        for parent, entries in self._moves(client_id, node, subscriptions).items():
            await call(partial(self._index, parent, entries, []))

    def _moves(self, client_id: str, node: str, subscriptions: Iterable[Subscription]) -> dict[Parent, Entries]:
        return self._by_parent((each.filter, Entry(client_id, node, each.qos, each.since)) for each in subscriptions)

    def _by_parent(self, entries: Iterable[tuple[str, Entry]]) -> dict[Parent, Entries]:
        """(filter, entry), for the index of each parent below which the filter can match."""
        found: dict[Parent, Entries] = {}
        for filter, entry in entries:
            for parent in self._touched(filter):
                found.setdefault(parent, []).append((filter, entry))
        return found

    async def end(self, client_id: str, persistent: bool, filters: Iterable[str]) -> None:
        """The client unsubscribes. Raises StoreError."""
        for parent, entries in self._removed(client_id, persistent, filters).items():
            await call(partial(self._index, parent, [], entries))

    def forget(self, client_id: str, persistent: bool, filters: Iterable[str]) -> None:
        """The session is gone with its subscriptions."""
        for parent, entries in self._removed(client_id, persistent, filters).items():
            self._index(parent, [], entries, _noted)

    def rejoined(self) -> None:
        """Nothing of the fleet is left: this node lives under another name."""
        self._fleet.clear()

    def _index(self, parent: Parent, add: Entries, remove: Entries, done: Done) -> None:
        def changed(result: Any) -> None:
            self._directory.outdate(parent.name)
            done(result)

        self._cluster.index(parent.name, add, remove, changed)

    def _removed(self, client_id: str, persistent: bool, filters: Iterable[str]) -> dict[Parent, Entries]:
        entry = Entry(client_id, "") if persistent else Entry("", self._peers.node)
        return self._by_parent((filter, entry) for filter in filters if persistent or self._leave_fleet(filter))

    def _leave_fleet(self, filter: str) -> bool:
        """Whether it was the last one."""
        left = self._fleet.pop(filter, 0) - 1
        if left > 0:
            self._fleet[filter] = left
        return left == 0


def _noted(result: Any) -> None:
    if isinstance(result, StoreError):
        observe.note(observe.Fact.STORE_FAILED, operation="index", error=str(result))
