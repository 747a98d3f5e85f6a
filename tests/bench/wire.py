"""MQTT 3.1.1 bytes for the load generator: packets made once, streams checked and answered in bulk, no packet ever parsed alone.

What makes it fast: every packet of a stream has the same size, and packet ids run through a ring, so "the next k packets" and "the
acknowledgements due" are slices of bytes made before the clock starts.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from collections.abc import Sequence
from typing import NamedTuple

CONNACK = b"\x20\x02\x00\x00"
DISCONNECT = b"\xe0\x00"
RING = 1000  # packet ids 1 .. RING, again and again
STAMP = struct.Struct("!qq")  # scheduled time (ns, monotonic clock), number of the message: the first 16 bytes of a timed payload


class Login(NamedTuple):
    """How a device introduces itself. access_key "" means without user name and password."""

    client_prefix: str = "bench-"
    access_key: str = ""
    secret_key: str = ""

    def connect(self, device: str) -> bytes:
        """A CONNECT with a clean session and no keep-alive, signed as contract section 3 says when there is a key."""
        client_id = self.client_prefix + device
        if not self.access_key:
            return _frame(0x10, _text("MQTT") + b"\x04\x02\x00\x00" + _text(client_id))
        group = client_id.partition("@@@")[0]
        password = base64.b64encode(hmac.digest(self.secret_key.encode(), group.encode(), hashlib.sha1)).decode()
        return _frame(0x10, _text("MQTT") + b"\x04\xc2\x00\x00" + _text(client_id) + _text(self.access_key) + _text(password))


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("!H", len(raw)) + raw


def _frame(first: int, body: bytes) -> bytes:
    head, length = bytearray([first]), len(body)
    while length > 127:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + body


def subscribe(topic_filter: str, qos: int) -> bytes:
    """A SUBSCRIBE with packet id 1."""
    return _frame(0x82, b"\x00\x01" + _text(topic_filter) + bytes([qos]))


def suback(qos: int) -> bytes:
    """The only answer to `subscribe` that we accept."""
    return b"\x90\x03\x00\x01" + bytes([qos])


def publish(topic: str, payload: bytes, qos: int, packet_id: int = 0) -> bytes:
    return _frame(0x30 | qos << 1, _text(topic) + (struct.pack("!H", packet_id) if qos else b"") + payload)


def puback_ring(window: int) -> bytes:
    """The PUBACK stream of a publisher whose ids run through the ring: one lap, and the first `window` again."""
    return b"".join(struct.pack("!HH", 0x4002, packet_id) for packet_id in [*range(1, RING + 1), *range(1, window + 1)])


class Outflow:
    """QoS 1 PUBLISHes of one publisher: ids run through the ring, topics through `topics` (a divisor of the ring long, equally long names).

    `packets[i * size : (i + k) * size]` are the k packets from place i on, for i < RING and k <= the window; `acks` are the PUBACKs in the
    only order that [MQTT-4.6.0-2] allows.
    """

    def __init__(self, topics: Sequence[str], payload: bytes, window: int) -> None:
        assert RING % len(topics) == 0
        ids = [*range(1, RING + 1), *range(1, window + 1)]
        made = [publish(topics[(packet_id - 1) % len(topics)], payload, 1, packet_id) for packet_id in ids]
        self.size = len(made[0])
        assert all(len(packet) == self.size for packet in made)
        self.packets = b"".join(made)
        self.acks = puback_ring(window)


class Inflow:
    """A stream of PUBLISHes to one subscriber, all of one size: counted, checked and acknowledged by strides over the bytes."""

    def __init__(self, topic: str, payload_size: int, qos: int) -> None:
        model = publish(topic, bytes(payload_size), qos)
        self.qos = qos
        self.size = len(model)
        self.first = model[0]
        self.payload_at = self.size - payload_size
        self.id_at = self.payload_at - 2
        self.lead = model[1 : self.id_at if qos else self.payload_at]  # remaining length and topic
        self._blank = [b"\x40\x02\x00\x00" * count for count in range(257)]

    def check(self, data: bytes, count: int) -> int:
        """The number of packets marked DUP among the first `count` of `data`. Raises ValueError when anything else is in it."""
        if not data.startswith(self.lead, 1) or not data.startswith(self.lead, (count - 1) * self.size + 1):
            raise ValueError(f"not the PUBLISH that was expected: {data[:80]!r}")
        marks = data[0 : count * self.size : self.size]
        fresh = marks.count(self.first)
        if fresh == count:
            return 0
        repeated = marks.count(self.first | 0x08)
        if fresh + repeated != count:
            raise ValueError(f"unexpected packets in the stream: {marks[:40]!r}")
        return repeated

    def answer(self, data: bytes, count: int) -> bytes:
        """The PUBACKs for the first `count` packets of `data`."""
        if count == 1:
            return b"\x40\x02" + data[self.id_at : self.id_at + 2]
        acks = bytearray(self._blank[count] if count < 257 else b"\x40\x02\x00\x00" * count)
        end = count * self.size
        acks[2::4] = data[self.id_at : end : self.size]
        acks[3::4] = data[self.id_at + 1 : end : self.size]
        return bytes(acks)
