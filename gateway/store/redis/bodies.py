"""How a waiting message lies in Redis: a small reference in the queue of each session, and a body that they share (contract section 6).

A body may lie on another server of a Redis Cluster than the queues that refer to it, and a connection may fail between any two steps, so
that nothing but a rule keeps them together: *the body knows each call of `offline_put` by its number, and how many references of that
call are left*. A reference carries the number of its call. So

* a reference takes away from what its own call had added, and from nothing else. If that never came to be (the connection or the body's
  server failed, and the caller repeats the call), it takes nothing away: no body goes while a reference of a call that it knows is left;
* a repeated call adds under its own number; what it adds for entries that wait already is taken back when the body knows the calls of
  those, and stays otherwise, for it is now what keeps the body for them;
* whatever else is lost on the way is only a taking away that did not happen. Then the body stays too long, until its own expiry, a day
  after that of the messages.

Reference: flags (1 byte: 128, QoS, RETAIN 4, inline 8, id of 32 hex digits 16, source 32); stored_at (6, ms); number of the call (7); place
in the call (3); unless inline, hash of the topic (8); with a source its length (2) and JSON; the id: 16 bytes, or length (2) and name; if
inline the topic's length (2), topic and payload.
"""

from __future__ import annotations

import json
import re
from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from gateway.ports import OfflineMessage, Queue
from gateway.store.redis.engine import Call, Command, Steps, checked
from gateway.store.redis.instance import Instance

INLINE_BYTES = 64  # a payload up to this lies in each reference
INLINE_ALONE_BYTES = 1024  # if one session waits
INLINE_TOPIC_BYTES = 256
EXTRA_SECONDS = 24 * 3600  # a body's own expiry is this later than that of its references
TAGS = 256  # slots over which bodies are spread
CHUNK = 300  # arguments of one script's call

_MARK, _RETAIN, _INLINE, _RAW, _SOURCE = 128, 4, 8, 16, 32
_HEX = re.compile(r"[0-9A-F]{32}")
_CALL = 7
_HASH = 8

Origin = tuple[Queue, int]


def name_of(id: str) -> bytes:
    """A message's id as it lies in Redis; different ids have different names, and only those of 32 hex digits have 16 bytes."""
    if _HEX.fullmatch(id):
        return bytes.fromhex(id)
    name = b"=" + id.encode()
    return name if len(name) != 16 else b"#" + name


def id_of(name: bytes) -> str:
    """The reverse of `name_of`."""
    if len(name) == 16:
        return name.hex().upper()
    return name[2 if name[:1] == b"#" else 1 :].decode()


def pack_source(source: Origin | None) -> bytes:
    if source is None:
        return b""
    queue, offset = source
    return json.dumps([*queue, offset], separators=(",", ":"), ensure_ascii=False).encode()


def unpack_source(text: bytes) -> Origin | None:
    if not text:
        return None
    topic, broker, id, offset = json.loads(text)
    return Queue(topic, broker, id), offset


class Place(NamedTuple):
    """What a body is found by, and the call that counted it. hash: of the topic."""

    call: bytes
    hash: bytes
    name: bytes

    @classmethod
    def of(cls, packed: bytes) -> Place:
        """packed: as the scripts return it."""
        return cls(packed[:_CALL], packed[_CALL : _CALL + _HASH], packed[_CALL + _HASH :])


class Reference(NamedTuple):
    """order: grows with the time of its put (microseconds). place: None when it is inline, with topic and payload."""

    id: str
    qos: int
    retain: bool
    stored_at: int
    order: int
    source: Origin | None
    place: Place | None
    topic: str
    payload: bytes


class Packer:
    """Packs references of one message and one call; they differ in their place only."""

    __slots__ = ("_after", "_before", "inline", "place")

    def __init__(self, message: OfflineMessage, qos: int, retain: bool, source: Origin | None, alone: bool, call: bytes) -> None:
        topic = message.topic.encode()
        most = INLINE_ALONE_BYTES if alone else INLINE_BYTES
        self.inline = len(message.payload) <= most and len(topic) <= INLINE_TOPIC_BYTES
        name, origin = name_of(message.id), pack_source(source)
        raw = len(name) == 16
        flags = _MARK | qos | (retain and _RETAIN) | (self.inline and _INLINE) | (raw and _RAW) | (bool(origin) and _SOURCE)
        self._before = bytes([flags]) + max(0, message.stored_at).to_bytes(6) + call
        self.place = Place(call, b"" if self.inline else blake2b(topic, digest_size=_HASH).digest(), name)
        after = [self.place.hash]
        if origin:
            after += [len(origin).to_bytes(2), origin]
        after.append(name if raw else len(name).to_bytes(2) + name)
        if self.inline:
            after += [len(topic).to_bytes(2), topic, message.payload]
        self._after = b"".join(after)

    def pack(self, n: int) -> bytes:
        """The reference of the call's entry n."""
        return self._before + n.to_bytes(3) + self._after


def call_number(number: int) -> bytes:
    return number.to_bytes(_CALL)


def unpack(packed: bytes) -> Reference:
    flags, call = packed[0], packed[7 : 7 + _CALL]
    at = 17
    hash = b""
    if not flags & _INLINE:
        hash = packed[at : at + _HASH]
        at += _HASH
    source = b""
    if flags & _SOURCE:
        source, at = _sized(packed, at)
    if flags & _RAW:
        name = packed[at : at + 16]
        at += 16
    else:
        name, at = _sized(packed, at)
    topic = payload = b""
    if flags & _INLINE:
        topic, at = _sized(packed, at)
        payload = packed[at:]
    return Reference(
        id_of(name),
        flags & 3,
        bool(flags & _RETAIN),
        int.from_bytes(packed[1:7]),
        int.from_bytes(call) + int.from_bytes(packed[14:17]),
        unpack_source(source),
        None if flags & _INLINE else Place(call, hash, name),
        topic.decode(),
        payload,
    )


def _sized(packed: bytes, at: int) -> tuple[bytes, int]:
    end = at + 2 + int.from_bytes(packed[at : at + 2])
    return packed[at + 2 : end], end


# -- bodies


def key_of(at: Instance, place: Place) -> str:
    """HASH: b -> topic's length (2), topic, payload; number of a call of `offline_put` -> how many of its references are left."""
    return at.keys.tagged(f"b{crc_hqx(place.name, 0) % TAGS}", f"body:{id_of(place.name)}:{place.hash.hex()}")


def put_call(at: Instance, place: Place, message: OfflineMessage, references: int) -> Call:
    """Store a body for so many references of a call."""
    topic = message.topic.encode()
    body = len(topic).to_bytes(2) + topic + message.payload
    seconds = at.limits.offline_ms // 1000 + EXTRA_SECONDS
    return Call("body_put", (key_of(at, place),), (place.call, references, body, seconds))


class Freed:
    """References that are gone or were never put, collected by body."""

    def __init__(self) -> None:
        self._counts: dict[tuple[bytes, bytes], dict[tuple[bytes, bytes], int]] = {}

    def add(self, place: Place, unless_unknown: bytes = b"") -> None:
        """One of `place.call` less. unless_unknown: only when the body knows that other call."""
        counts = self._counts.setdefault((place.hash, place.name), {})
        what = (place.call, unless_unknown)
        counts[what] = counts.get(what, 0) + 1

    def add_all(self, packed: Iterable[bytes]) -> None:
        """packed: as the scripts return it."""
        for one in packed:
            self.add(Place.of(one))

    def steps(self, at: Instance) -> Steps[None]:
        """Tell the bodies."""
        calls: list[Call | Command] = []
        for (hash, name), counts in self._counts.items():
            key = key_of(at, Place(b"", hash, name))
            args = [part for (call, known), n in counts.items() for part in (call, n, known)]
            calls += [Call("body_free", (key,), tuple(args[start : start + CHUNK])) for start in range(0, len(args), CHUNK)]
        if calls:
            checked((yield calls))


def free(at: Instance, packed: Iterable[bytes]) -> Steps[None]:
    """Tell the bodies of references that are gone. packed: places, as the scripts return them."""
    freed = Freed()
    freed.add_all(packed)
    yield from freed.steps(at)


def read(at: Instance, references: Sequence[Reference]) -> Steps[list[OfflineMessage | None]]:
    """Their messages; None where the body is missing."""
    keys = list(dict.fromkeys(key_of(at, one.place) for one in references if one.place is not None))
    found: dict[str, bytes] = {}
    if keys:
        replies = checked((yield [Command(("HGET", key, "b")) for key in keys]))
        found = {key: body for key, body in zip(keys, replies, strict=True) if body is not None}
    messages: list[OfflineMessage | None] = []
    for one in references:
        if one.place is None:
            messages.append(OfflineMessage(one.id, one.topic, one.payload, one.stored_at))
            continue
        body = found.get(key_of(at, one.place))
        if body is None:
            messages.append(None)
        else:
            topic, start = _sized(body, 0)
            messages.append(OfflineMessage(one.id, topic.decode(), body[start:], one.stored_at))
    return messages
