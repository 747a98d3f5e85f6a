"""A node's inbox in Redis: STREAM `{n:<node>}:inbox` of parcels, fields h (the head, JSON) and b (the body).

The bytes in it are counted in `open` (`members.py`). A position carries its parcel's size, so that removing need not read what it removes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gateway.ports.cluster import Arrived, Parcel
from gateway.store.redis.engine import Call, Command, Steps, checked
from gateway.store.redis.keys import Keys
from gateway.store.redis.members import node_keys

PARCELS_MOST = 100_000
BYTES_MOST = 256 << 20
CALL_BYTES = 1 << 20  # of one script call: a longer one makes all others wait
CALL_PARCELS = 1000
BLOCK_MS = 1000


class Packed(NamedTuple):
    head: bytes
    body: bytes

    @property
    def size(self) -> int:
        return len(self.head) + len(self.body)


def packed(parcels: Sequence[Parcel]) -> list[Packed]:
    return [Packed(json.dumps(parcel.head, ensure_ascii=False, separators=(",", ":")).encode(), parcel.body) for parcel in parcels]


def chunks(parcels: Sequence[Packed]) -> list[Sequence[Packed]]:
    """At least one; each is sent by one call."""
    found: list[Sequence[Packed]] = []
    start = size = 0
    for n, parcel in enumerate(parcels):
        if n > start and (n - start == CALL_PARCELS or size + parcel.size > CALL_BYTES):
            found.append(parcels[start:n])
            start, size = n, 0
        size += parcel.size
    return [*found, parcels[start:]]


def send(keys: Keys, node: str, parts: Sequence[Sequence[Packed]]) -> Steps[bool]:
    """A round for each part. The first one looks for room for all; when a later one is refused, those before it stay sent."""
    at = node_keys(keys, node)
    count = sum(len(part) for part in parts)
    size = sum(parcel.size for part in parts for parcel in part)
    for part in parts:
        fields = [field for parcel in part for field in parcel]
        (taken,) = checked((yield [Call("cluster_send", at[:2], (PARCELS_MOST, BYTES_MOST, count, size, *fields))]))
        if taken != 1:
            return False
        count -= len(part)
        size -= sum(parcel.size for parcel in part)
    return True


def read(keys: Keys, node: str, after: str, limit: int) -> Steps[tuple[list[Arrived], bool]]:
    """What is there now, and whether more may come. Asked in this order: nothing comes any more into what was closed before it was read."""
    at = node_keys(keys, node)
    is_open, reply = checked((yield [Command(("EXISTS", at.open)), _xread(at.inbox, after, limit)]))
    return _arrived(reply), is_open == 1


def wait(keys: Keys, node: str, after: str, limit: int) -> Steps[list[Arrived]]:
    """Up to 1 s for the first one."""
    (reply,) = checked((yield [_xread(node_keys(keys, node).inbox, after, limit, "BLOCK", BLOCK_MS)]))
    return _arrived(reply)


def remove(keys: Keys, node: str, positions: Sequence[str]) -> Steps[bool]:
    at = node_keys(keys, node)
    for start in range(0, len(positions), CALL_PARCELS):
        pairs = [value for position in positions[start : start + CALL_PARCELS] for value in _id_and_size(position)]
        checked((yield [Call("cluster_taken", at[:2], tuple(pairs))]))
    return True


def _xread(key: str, after: str, limit: int, *options: str | int) -> Command:
    id = _id_and_size(after)[0] if after else "0-0"
    return Command(("XREAD", *options, "COUNT", max(1, limit), "STREAMS", key, id), key)


def _arrived(reply: Any) -> list[Arrived]:
    return list(_unpacked(reply[0][1])) if reply else []


def _unpacked(entries: Any) -> Iterator[Arrived]:
    for id, (_, head, _, body) in entries:
        time, _, sequence = id.decode().partition("-")
        position = f"{time:0>15}-{sequence:0>6}-{len(head) + len(body)}"  # filled up, so that they grow as text too
        yield Arrived(position, Parcel(json.loads(head), body))


def _id_and_size(position: str) -> tuple[str, int]:
    time, sequence, size = position.split("-")
    return f"{int(time)}-{int(sequence)}", int(size)
