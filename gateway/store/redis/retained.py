"""Retained messages (MQTT clause 3.3.1.3), all in one slot; of two that are written at the same time the last one stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from gateway.ports import Retained
from gateway.store.redis.engine import Call, Command, Line, Steps, checked
from gateway.store.redis.instance import Instance

CHUNK = 1000  # topics read in one step
PAYLOADS = 100  # messages of one reply; each may have limits.payload_bytes
_AFTER = b"\xff"  # greater than any byte of UTF-8


def keys_of(at: Instance) -> tuple[str, str]:
    """HASH: topic -> message. ZSET: the topics, all of score 0, so that they are sorted by their bytes."""
    return at.keys.tagged("retained", "messages"), at.keys.tagged("retained", "topics")


def pack(one: Retained) -> bytes:
    """QoS (1 byte), stored_at (6), length of the id (2), id, payload."""
    id = one.id.encode()
    return b"".join((bytes([one.qos]), max(0, one.stored_at).to_bytes(6), len(id).to_bytes(2), id, one.payload))


def unpack(topic: str, packed: bytes) -> Retained:
    start = 9 + int.from_bytes(packed[7:9])
    return Retained(topic, packed[start:], packed[0], packed[9:start].decode(), int.from_bytes(packed[1:7]))


def retain(at: Instance, topic: str, retained: Retained | None) -> Steps[bool]:
    """As `Store.retain`."""
    if retained is None:
        call = Call("retained_remove", keys_of(at), (topic,))
    else:
        call = Call("retained_put", keys_of(at), (topic, pack(retained), at.limits.retained))
    (reply,) = checked((yield [call]))
    at.counts.retained = reply[1]
    return bool(reply[0])


def count(at: Instance) -> Steps[int]:
    """How many there are."""
    (n,) = checked((yield [Command(("HLEN", keys_of(at)[0]))]))
    return int(n)


async def find(at: Instance, line: Line, prefix: str, matches: Callable[[str], bool], limit: int) -> list[Retained]:
    """As `Store.retained`. `matches` is called on the trio thread; payloads are read of what matches only."""
    found: list[Retained] = []
    start, more = b"[" + prefix.encode(), True
    while more and len(found) < limit:
        topics = await line.ask(partial(_topics, at, start, b"(" + prefix.encode() + _AFTER))
        more = len(topics) == CHUNK
        if topics:
            start = b"(" + topics[-1].encode()
        wanted = [topic for topic in topics if matches(topic)][: limit - len(found)]
        for first in range(0, len(wanted), PAYLOADS):
            found += await line.ask(partial(_messages, at, wanted[first : first + PAYLOADS]))
    return found


def _topics(at: Instance, start: bytes, end: bytes) -> Steps[list[str]]:
    (topics,) = checked((yield [Command(("ZRANGEBYLEX", keys_of(at)[1], start, end, "LIMIT", 0, CHUNK))]))
    return [topic.decode() for topic in topics]


def _messages(at: Instance, topics: Sequence[str]) -> Steps[list[Retained]]:
    """Those that are still there, in the order of `topics`."""
    (replies,) = checked((yield [Command(("HMGET", keys_of(at)[0], *topics))]))
    return [unpack(topic, packed) for topic, packed in zip(topics, replies, strict=True) if packed is not None]
