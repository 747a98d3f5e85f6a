"""The names of the keys of clients and shards in Redis, and how clients are divided into shards (design section 5). What belongs to one
part alone (bodies, retained messages, the index, nodes) is named there through `Keys.tagged`; docs/redis.md lists every key.

A key of shard s is `<instance>{<s>}:<kind>`, with `:<client id>` when it belongs to one client: all keys of a shard lie in one slot of a
Redis Cluster, so that one script may change them together. What belongs to no client lies under tags of its own. A key's value is told by
the function that makes it; a script gets every key as an argument, or the prefix of a family of keys (`on`) to which it appends a name.
"""

from __future__ import annotations

from binascii import crc_hqx

SHARDS = 256

# `kind` in a client's hash: no session (the row keeps the clock of its events), cleanSession = true, cleanSession = false
GONE, CLEAN, PERSISTENT = 0, 1, 2


def shard_of(client_id: str) -> int:
    """CRC16/XMODEM, which is also that of Redis Cluster."""
    return crc_hqx(client_id.encode(), 0) % SHARDS


class Keys:
    """The keys of one instance."""

    __slots__ = ("_shards", "instance")

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self._shards = [f"{instance}{{{shard}}}:" for shard in range(SHARDS)]

    # -- of one client

    def of(self, kind: str, client_id: str) -> str:
        return f"{self._shards[shard_of(client_id)]}{kind}:{client_id}"

    def client(self, client_id: str) -> str:
        """HASH: epoch, node ("" for no connection), channel, ip, kind, time and seq (of the last event), left (ms, when the connection went
        or came)."""
        return self.of("c", client_id)

    def will(self, client_id: str) -> str:
        """STRING: `packed.pack_will`; only while the connection has one. Beside the hash, which stays compact then."""
        return self.of("w", client_id)

    def subscriptions(self, client_id: str) -> str:
        """HASH: filter -> "<qos>:<since>"."""
        return self.of("s", client_id)

    def inbound(self, client_id: str) -> str:
        """HASH: packet id -> "0" or "1" (stored in the backend), then the UNIQ_KEY."""
        return self.of("i", client_id)

    def queue(self, client_id: str) -> str:
        """LIST: references to what waits, by position (`offline.py`)."""
        return self.of("q", client_id)

    def flight(self, client_id: str) -> str:
        """HASH: position -> packet id, phase and order of sending, of what was sent and is not finished."""
        return self.of("fl", client_id)

    def ids(self, client_id: str) -> str:
        """HASH: message id -> position, of what waits."""
        return self.of("ids", client_id)

    def remembered(self, client_id: str) -> str:
        """HASH: UNIQ_KEY -> source, of finished QoS 2 deliveries."""
        return self.of("rem", client_id)

    def session(self, client_id: str) -> tuple[str, ...]:
        """All that a transition of the registry may change, in the order in which `lib/session` names them."""
        shard = shard_of(client_id)
        kinds = ("c", "w", "s", "i", "q", "fl", "ids", "rem")
        own = (self.of(kind, client_id) for kind in kinds)
        return (*own, self.counts(shard), self.outbox(shard), self.left(shard), self.gone(shard), self.subscribed(shard), self.on(shard))

    # -- of one shard

    def shard(self, kind: str, shard: int) -> str:
        return f"{self._shards[shard]}{kind}"

    def counts(self, shard: int) -> str:
        """HASH: position (the last number given to an epoch, a place in the outbox or in a queue), sessions (persistent ones),
        subscriptions, offline, remembered, outbox: rows of this shard."""
        return self.shard("counts", shard)

    def outbox(self, shard: int) -> str:
        """ZSET: item by position (`outbox.py`)."""
        return self.shard("outbox", shard)

    def left(self, shard: int) -> str:
        """ZSET: client id by ms since when it has no connection; persistent sessions."""
        return self.shard("left", shard)

    def gone(self, shard: int) -> str:
        """ZSET: client id by ms since when it has no connection; clients without a session, of which only the clock is kept."""
        return self.shard("gone", shard)

    def subscribed(self, shard: int) -> str:
        """SET: client ids that have subscriptions."""
        return self.shard("subscribed", shard)

    def on(self, shard: int, node: str = "") -> str:
        """SET: client ids whose connection `node` has. Without `node`: the prefix of these keys."""
        return f"{self._shards[shard]}on:{node}"

    # -- of the instance

    def tagged(self, tag: str, name: str) -> str:
        """A key beside the shards, in the slot of `tag`; tags are words, the shards' are numbers."""
        return f"{self.instance}{{{tag}}}:{name}"

    def marks(self) -> str:
        """HASH: name -> value."""
        return self.tagged("meta", "marks")
