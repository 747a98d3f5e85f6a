"""Messages across nodes: who listens elsewhere gets a parcel, who is nowhere gets it kept; and what other nodes send here
(contract section 5, design section 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from gateway import observe
from gateway.ports import Cluster, Listed, Parcel, Place, StoreError
from gateway.rules import envelope
from gateway.rules.presence import Reason
from gateway.runtime.cluster import parcels
from gateway.runtime.cluster.directory import Directory
from gateway.runtime.cluster.parcels import Kind
from gateway.runtime.cluster.post import Post, Settle
from gateway.runtime.offline import Offline
from gateway.runtime.outbound import Outbound
from gateway.runtime.peers import Peers
from gateway.runtime.router import Router

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.runtime.registry import Registry

RETRY_SECONDS = 0.2
STRAYED_SECONDS = 5.0  # between two corrections of the index for one client
STRAYED_MOST = 10_000


class Whereabouts(NamedTuple):
    """For one batch. listed: by topic, who listens. places: of receivers of P2P, by Client ID."""

    listed: Mapping[str, list[Listed]]
    places: Mapping[str, Place]


class Reach:
    """looked: what to do when another node says that a parent is pulled wider."""

    def __init__(
        self, cluster: Cluster, peers: Peers, post: Post, directory: Directory, router: Router, offline: Offline, registry: Registry
    ) -> None:
        self._cluster = cluster
        self._peers = peers
        self._post = post
        self._directory = directory
        self._router = router
        self._offline = offline
        self._registry = registry
        self._told: dict[str, float] = {}  # by Client ID, when the index was told again where it is (monotonic seconds)
        self.looked: Callable[[str], None] = lambda _parent: None
        post.open = self.opened
        offline.tell = self.tell

    # ------------------------------------------------------------ out

    async def prepare(self, parent: str, messages: Iterable[envelope.Downlink]) -> Whereabouts:
        """Before a batch is delivered: find out who listens elsewhere, and where the receivers of P2P are. It waits for the store."""
        topics = set()
        clients = set()
        for message in messages:
            if not message.p2p:
                topics.add(message.topic)
            elif self._router.mailbox_of(message.p2p) is None:
                clients.add(message.p2p)
        while True:
            try:
                listed = await self._directory.find(parent, topics, alone=trio.current_time() < self._peers.alone_until)
                return Whereabouts(listed, await self._cluster.locate(clients) if clients else {})
            except StoreError as error:
                observe.note(observe.Fact.STORE_FAILED, operation="look", topic=parent, error=str(error))
                await trio.sleep(RETRY_SECONDS)

    def fan_out(self, topic: str, message: Outbound, replayed: bool, found: Whereabouts) -> None:
        """To the listeners of other nodes, and for stored sessions that are nowhere. This node's are the router's."""
        listed = found.listed[topic]
        if not listed:
            return
        me, live, local = self._peers.node, self._peers.live, self._router.subscribers
        limit, stored_at = message.qos, message.stored_at
        sessions: dict[str, tuple[int, str]] = {}
        fleets: set[str] = set()
        for each in listed:
            fleets |= each.nodes
            for client_id, entry in each.sessions.items():
                qos = min(entry.qos, limit)
                if client_id in local or (replayed and (not qos or entry.since > stored_at)):
                    continue
                known = sessions.get(client_id)
                if known is None or known[0] < qos:
                    sessions[client_id] = (qos, entry.node)
        fleets.discard(me)  # a node that is not known yet has an inbox; one that is dead has none
        if not sessions and not fleets:
            return
        away: list[tuple[str, int]] = []
        there: dict[str, dict[str, int]] = {node: {} for node in fleets}
        for client_id, (qos, node) in sessions.items():
            if node in live and node != me:
                there.setdefault(node, {})[client_id] = qos
            elif qos:
                away.append((client_id, qos))
        if away:
            self._offline.keep_absent(away, message)
        for node, clients in there.items():
            self._hand_over(node, topic, message, clients, node in fleets, replayed)

    def to_one(self, client_id: str, message: Outbound, found: Whereabouts) -> None:
        """P2P."""
        place = found.places.get(client_id)
        if place is None or place.node in ("", self._peers.node):
            self._router.to_one(client_id, message)
        else:
            self._hand_over(place.node, "", message, {client_id: message.qos}, False, False)

    def _hand_over(self, node: str, topic: str, message: Outbound, clients: Mapping[str, int], fleet: bool, replayed: bool) -> None:
        """What a stored session must get is held until it lies in the other node's inbox; else it is kept."""
        kept = [(client_id, qos) for client_id, qos in clients.items() if qos and not message.volatile]
        received = message.received
        assert received is not None
        if kept:
            received.hold()

        def sent(there: bool) -> None:
            if there:
                observe.count(observe.Fact.HANDED_OVER)
            else:
                observe.count(observe.Fact.MESSAGE_DROPPED, reason="node_unreachable")
            if kept:
                if not there:
                    self._offline.keep_absent(kept, message)
                received.release()

        self._post.send(node, parcels.pack(message, topic, clients, fleet, replayed), sent)

    def tell(self, client_id: str, owner: str, position: int) -> None:
        """Something was put for a session whose connection `owner` has; its place in the store, 0 when it is nothing live."""

        def sent(there: bool) -> None:
            if not there and owner in self._peers.live:  # a dead one's sessions are claimed, and then it is found
                self._offline.later(lambda: self.tell(client_id, owner, position))

        if owner != self._peers.node:
            self._post.send(owner, parcels.feed(client_id, position), sent)

    # ------------------------------------------------------------ in

    async def opened(self, parcel: Parcel, settle: Settle, ours: bool) -> None:
        """A parcel of another node. ours: it was sent to this node, not to one that died and whose heir this is."""
        head: Mapping[str, Any] = parcel.head
        kind = head["kind"]
        if kind == Kind.MESSAGE:
            await self._arrived(parcel, settle, ours)
            return
        if kind == Kind.FEED:
            self._offline.arrived(head["client"], head["position"])
            self._strayed(head["client"])
        elif kind == Kind.TAKE:
            link = self._registry.links.get(head["client"])
            if link is not None and link.channel_id == head["channel"]:
                link.kick(Reason.TAKEN_OVER)
                self._registry.leave(link)
        elif kind == Kind.LOOK:
            self.looked(head["parent"])
        settle()

    def _strayed(self, client_id: str) -> None:
        now = trio.current_time()
        if now - self._told.get(client_id, -STRAYED_SECONDS) < STRAYED_SECONDS:
            return
        if len(self._told) > STRAYED_MOST:
            self._told.clear()
        self._told[client_id] = now
        self._registry.strayed(client_id)

    async def _arrived(self, parcel: Parcel, settle: Settle, ours: bool) -> None:
        carried = parcels.unpack(parcel, settle)
        message = carried.message
        received = message.received
        assert received is not None
        received.hold()
        away: list[tuple[str, int]] = []
        for client_id, qos in carried.clients.items():
            mailbox = self._router.mailbox_of(client_id)
            if mailbox is not None:
                mailbox.deliver(message, qos)
            elif qos and not message.volatile:
                away.append((client_id, qos))
            elif message.volatile:
                observe.count(observe.Fact.MESSAGE_DROPPED, reason="receiver_offline")
        if away:
            self._offline.keep_absent(away, message)
        if carried.fleet and ours:  # a dead node's clean sessions died with it
            await self._router.fan_out(carried.topic, message, carried.replayed, fleet=True)
        received.release()
