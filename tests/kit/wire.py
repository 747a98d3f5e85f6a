"""MQTT 3.1 and 3.1.1 on the wire for tests: an encoder that also makes wrong packets, and a decoder of what a server may send.

It shares nothing with `gateway.mqtt`. The decoder checks flags, lengths, packet ids and UTF-8, and fails the test.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """Control packet types (table 2.1)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class Will(NamedTuple):
    """What a CONNECT leaves behind."""

    topic: str | bytes
    payload: bytes
    qos: int = 0
    retain: bool = False


@dataclass
class Packet:
    """What a server sent. Only the fields of its kind are filled in."""

    kind: Kind
    packet_id: int = 0
    topic: str = ""
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    dup: bool = False
    code: int = 0
    session_present: bool = False
    codes: list[int] = field(default_factory=list)


# ---------------------------------------------------------------- encoding


def length_bytes(length: int) -> bytes:
    """The remaining length (clause 2.2.3)."""
    out = bytearray()
    while True:
        length, low = divmod(length, 128)
        out.append(low | (0x80 if length else 0))
        if not length:
            return bytes(out)


def text(value: str | bytes) -> bytes:
    """A length-prefixed string; bytes go out as they are, well-formed or not."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(raw)) + raw


def frame(first: int, body: bytes = b"") -> bytes:
    """A packet from its first byte and what follows the remaining length."""
    return bytes([first]) + length_bytes(len(body)) + body


def connect_bytes(
    client_id: str | bytes,
    clean: bool = True,
    keep_alive: int = 0,
    username: str | bytes | None = None,
    password: bytes | None = None,
    will: Will | None = None,
    level: int = 4,
    name: str | bytes | None = None,
    flags: int | None = None,
) -> bytes:
    """A CONNECT; `name` and `flags` replace what would be right (the payload's fields stay)."""
    right = (0x02 if clean else 0) | (0x80 if username is not None else 0) | (0x40 if password is not None else 0)
    payload = text(client_id)
    if will is not None:
        right |= 0x04 | will.qos << 3 | (0x20 if will.retain else 0)
        payload += text(will.topic) + text(will.payload)
    if username is not None:
        payload += text(username)
    if password is not None:
        payload += text(password)
    title = name if name is not None else ("MQIsdp" if level == 3 else "MQTT")
    return frame(0x10, text(title) + struct.pack("!BBH", level, right if flags is None else flags, keep_alive) + payload)


def publish_bytes(
    topic: str | bytes, payload: bytes = b"", qos: int = 0, retain: bool = False, dup: bool = False, packet_id: int | None = None
) -> bytes:
    first = 0x30 | (8 if dup else 0) | qos << 1 | (1 if retain else 0)
    return frame(first, text(topic) + (b"" if packet_id is None else struct.pack("!H", packet_id)) + payload)


def ack_bytes(kind: Kind, packet_id: int) -> bytes:
    return frame(kind << 4 | (2 if kind is Kind.PUBREL else 0), struct.pack("!H", packet_id))


def subscribe_bytes(packet_id: int, filters: Sequence[tuple[str | bytes, int]]) -> bytes:
    return frame(0x82, struct.pack("!H", packet_id) + b"".join(text(name) + bytes([qos]) for name, qos in filters))


def unsubscribe_bytes(packet_id: int, filters: Sequence[str | bytes]) -> bytes:
    return frame(0xA2, struct.pack("!H", packet_id) + b"".join(text(name) for name in filters))


PINGREQ = frame(0xC0)
DISCONNECT = frame(0xE0)


# ---------------------------------------------------------------- decoding


def take(buffer: bytearray) -> tuple[int, bytes] | None:
    """The first whole packet of `buffer` as (first byte, body), removed from it; None when there is none yet."""
    length = 0
    for index in range(4):
        if len(buffer) < index + 2:
            return None
        byte = buffer[index + 1]
        length |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            assert byte or not index, "the server sent a remaining length with a needless byte"
            start = index + 2
            if len(buffer) < start + length:
                return None
            first, body = buffer[0], bytes(buffer[start : start + length])
            del buffer[: start + length]
            return first, body
    raise AssertionError("the server sent a remaining length of more than four bytes [MQTT-2.2.3]")


def _publish(flags: int, body: bytes) -> Packet:
    qos = flags >> 1 & 3
    assert qos != 3, "the server sent QoS 3 [MQTT-3.3.1-4]"
    assert qos or not flags & 8, "the server sent DUP at QoS 0 [MQTT-3.3.1-2]"
    (size,) = struct.unpack_from("!H", body)
    topic, rest = body[2 : 2 + size].decode("utf-8"), body[2 + size :]
    assert topic, "the server sent an empty topic [MQTT-4.7.3-1]"
    assert not {"#", "+", "\0"} & set(topic), f"the server sent a wildcard or a null in a topic name [MQTT-3.3.2-2]: {topic!r}"
    packet_id = 0
    if qos:
        (packet_id,) = struct.unpack_from("!H", rest)
        assert packet_id, "the server sent packet id 0 [MQTT-2.3.1-1]"
        rest = rest[2:]
    return Packet(Kind.PUBLISH, packet_id, topic, rest, qos, bool(flags & 1), bool(flags & 8))


def decode(first: int, body: bytes) -> Packet:
    """A packet that a server may send; anything else fails the test."""
    kind, flags = Kind(first >> 4), first & 15
    if kind is Kind.PUBLISH:
        return _publish(flags, body)
    assert flags == (2 if kind is Kind.PUBREL else 0), f"the server sent {kind.name} with flags {flags} [MQTT-2.2.2-1]"
    if kind is Kind.CONNACK:
        assert len(body) == 2
        assert body[0] in (0, 1), "the server sent reserved CONNACK flags"
        assert body[1] <= 5, "the server sent a reserved CONNACK code"
        assert not (body[0] and body[1]), "session present beside a refusal [MQTT-3.2.2-4]"
        return Packet(kind, session_present=bool(body[0]), code=body[1])
    if kind is Kind.PINGRESP:
        assert not body
        return Packet(kind)
    assert kind in (Kind.PUBACK, Kind.PUBREC, Kind.PUBREL, Kind.PUBCOMP, Kind.SUBACK, Kind.UNSUBACK), f"a server may not send {kind.name}"
    (packet_id,) = struct.unpack_from("!H", body)
    assert packet_id, f"the server sent {kind.name} with packet id 0"
    if kind is Kind.SUBACK:
        assert set(body[2:]) <= {0, 1, 2, 0x80}, "the server sent a reserved SUBACK code [MQTT-3.9.3-2]"
        return Packet(kind, packet_id, codes=list(body[2:]))
    assert len(body) == 2
    return Packet(kind, packet_id)
