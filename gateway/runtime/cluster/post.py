"""Parcels between nodes: sent in batches, received in order, removed when what they brought is safe (design section 5, hand-over)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from gateway import observe
from gateway.ports import Cluster, Parcel, StoreError
from gateway.runtime.peers import Peers

CHUNK = 500  # parcels read or sent together
RETRY_SECONDS = 0.5

Sent = Callable[[bool], None]
Settle = Callable[[], None]


class Post:
    """open: what a parcel means; it is called for each in order, with what is to be called when the parcel may be removed, and whether it
    was sent to this node (not to one that died)."""

    def __init__(self, cluster: Cluster, peers: Peers) -> None:
        self._cluster = cluster
        self._peers = peers
        self._outgoing: dict[str, list[tuple[Parcel, Sent]]] = {}
        self._unsent: dict[str, list[tuple[Parcel, Sent]]] = {}  # by node: the store did not answer, they are sent again
        self._settled: dict[str, list[str]] = {}  # by inbox
        self._unsettled: dict[str, int] = {}  # by inbox
        self._lot = trio.lowlevel.ParkingLot()
        self.open: Callable[[Parcel, Settle, bool], Awaitable[None]]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver)
            nursery.start_soon(self._repeat)
            task_status.started()
            await self._receive()

    def send(self, node: str, parcel: Parcel, sent: Sent = lambda _sent: None) -> None:
        """Never blocks. sent: True when it lies in the node's inbox, False when that takes nothing. While the store does not answer it is
        sent again."""
        self._outgoing.setdefault(node, []).append((parcel, sent))
        self._lot.unpark_all()

    async def _deliver(self) -> None:
        while True:
            while not self._settled and not self._outgoing.keys() - self._unsent.keys():
                await self._lot.park()
            await trio.lowlevel.checkpoint()  # what others send in this pass goes along
            for node in self._outgoing.keys() - self._unsent.keys():
                items = self._outgoing.pop(node)
                for begin in range(0, len(items), CHUNK):
                    self._send(node, items[begin : begin + CHUNK])
            settled, self._settled = self._settled, {}
            for inbox, positions in settled.items():
                self._cluster.inbox_remove(inbox, positions, _ignore)

    def _send(self, node: str, items: list[tuple[Parcel, Sent]]) -> None:
        def done(result: Any) -> None:
            if isinstance(result, StoreError):  # they may have arrived: a repeat is better than a loss
                observe.note(observe.Fact.STORE_FAILED, operation="send", node=node, error=str(result))
                self._unsent.setdefault(node, []).extend(items)
                return
            for _, sent in items:
                sent(result is True)

        self._cluster.send(node, [parcel for parcel, _ in items], done)

    async def _repeat(self) -> None:
        """What the store did not take goes first, then what came for that node meanwhile."""
        while True:
            await trio.sleep(RETRY_SECONDS)
            unsent, self._unsent = self._unsent, {}
            for node, items in unsent.items():
                self._outgoing[node] = items + self._outgoing.get(node, [])
            if unsent:
                self._lot.unpark_all()

    async def _receive(self) -> None:
        inbox, after = "", ""
        while True:
            if self._peers.node != inbox:
                inbox, after = self._peers.node, ""
            try:
                after = await self.read(inbox, after) or after
            except StoreError as error:
                observe.note(observe.Fact.STORE_FAILED, operation="inbox", error=str(error))
                await trio.sleep(RETRY_SECONDS)

    async def read(self, inbox: str, after: str) -> str:
        """Open what lies in `inbox` behind `after`; the last position, "" when there was nothing. Raises StoreError."""
        last = ""
        for last, parcel in await self._cluster.inbox(inbox, after, CHUNK):
            try:
                await self.open(parcel, self._settle(inbox, last), inbox == self._peers.node)
            except Exception:  # noqa: BLE001 - logged with its traceback; one parcel can not stop the others
                observe.note(observe.Fact.INTERNAL_ERROR, where="parcel", kind=str(parcel.head.get("kind")), exc_info=True)
        return last

    async def settled(self, inbox: str) -> None:
        """Wait until all that was read from `inbox` is safe."""
        while self._unsettled.get(inbox):
            await trio.sleep(0.02)

    def _settle(self, inbox: str, position: str) -> Settle:
        self._unsettled[inbox] = self._unsettled.get(inbox, 0) + 1

        def settled() -> None:
            left = self._unsettled.pop(inbox) - 1
            if left:
                self._unsettled[inbox] = left
            self._settled.setdefault(inbox, []).append(position)
            self._lot.unpark_all()

        return settled


def _ignore(_result: object) -> None:
    """A parcel that stays is opened once more by the heir of this node: a repeat."""
