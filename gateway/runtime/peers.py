"""The nodes that live, and which of them cares for what: queues and shards are divided by rendezvous hashing (design section 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from hashlib import blake2b

from gateway.ports import Queue


class Peers:
    """node: this node, `<node_id>/<incarnation>` in a cluster. live: all nodes that live, this one among them; empty while this node must
    not act for the instance (it was declared dead, and has not joined again)."""

    def __init__(self, node_id: str) -> None:
        self.node = node_id
        self.live = frozenset({node_id})
        self.alone_until = 0.0  # monotonic seconds: before that no other node serves devices
        self.sure_until = math.inf  # monotonic seconds: before that nobody can have declared this node dead
        self._watchers: list[Callable[[], None]] = []
        self._shards: dict[int, frozenset[int]] = {}

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever `node` or `live` is another."""
        self._watchers.append(changed)

    def update(self, node: str, live: Iterable[str]) -> None:
        """What is known now."""
        known = frozenset(live)
        if (node, known) == (self.node, self.live):
            return
        self.node, self.live = node, known
        self._shards = {}
        for changed in self._watchers:
            changed()

    def owner(self, thing: str) -> str:
        """The live node that cares for `thing`; "" when there is none. The same on every node that knows of the same nodes."""
        return max(self.live, key=lambda node: _weight(node, thing), default="")

    def owns_queue(self, queue: Queue) -> bool:
        """Whether this node reads `queue`."""
        return self.owner(f"{queue.topic}/{queue.broker}/{queue.id}") == self.node

    def shards(self, many: int) -> frozenset[int]:
        """Those of the `many` shards of the store that this node cares for."""
        found = self._shards.get(many)
        if found is None:
            found = self._shards[many] = frozenset(shard for shard in range(many) if self.owner(f"shard {shard}") == self.node)
        return found


def _weight(node: str, thing: str) -> bytes:
    # by node_id, so that a node that restarts gets back what it had; the name decides between two lives of one node
    return blake2b(f"{node.partition('/')[0]}\0{thing}".encode(), digest_size=8).digest() + node.encode()
