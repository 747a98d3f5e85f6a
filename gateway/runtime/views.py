"""What others may read of a running node: health and gauges. Views compute and never copy (design section 3.4)."""

from __future__ import annotations

from gateway.ports import Backend, Health, Store
from gateway.runtime.downlink import Downlink
from gateway.runtime.link import Link
from gateway.runtime.peers import Peers
from gateway.runtime.registry import Registry
from gateway.runtime.router import Router


class Views:
    """Of one node."""

    def __init__(
        self, backend: Backend, store: Store, registry: Registry, router: Router, downlink: Downlink, peers: Peers, opened: set[Link]
    ) -> None:
        self._backend = backend
        self._store = store
        self._registry = registry
        self._router = router
        self._downlink = downlink
        self._peers = peers
        self._opened = opened

    async def health(self) -> list[Health]:
        """Every server and every bridged topic that is not consumed yet; a full backlog is unhealthy as well. Takes 3 s at most."""
        found = [*await self._store.health(), *await self._backend.health(), *self._downlink.health()]
        if self._store.cluster is not None:
            nodes = f"{self._peers.node}; serving: {', '.join(sorted(self._peers.live))}"
            ok = self._peers.node in self._peers.live
            found.append(Health("cluster", ok, nodes, "" if ok else "it joins by itself when store and backend answer; see the log"))
        if self._backend.full:
            found.append(Health("backlog", False, "the backend's backlog is full", "see why the backend is slow"))
        return found

    def gauges(self) -> dict[str, float]:
        """Numbers of now, by name."""
        return {
            "connections": len(self._opened),
            "sessions_online": len(self._registry.links),
            "subscriptions": len(self._router),
            "nodes": len(self._peers.live),
            **{f"backend_{name}": value for name, value in self._backend.metrics().items()},
            **self._store.metrics(),
        }
