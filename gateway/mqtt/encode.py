"""From packets to bytes (clauses 2 and 3). What a caller hands in and no packet can hold is a ValueError."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from gateway.mqtt.packets import (
    ConnAck,
    Connect,
    Disconnect,
    Level,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
)
from gateway.mqtt.topics import LONGEST

MOST = 268_435_455  # the greatest remaining length (clause 2.2.3)

PINGREQ = b"\xc0\x00"
PINGRESP = b"\xd0\x00"
DISCONNECT = b"\xe0\x00"

_PROTOCOL = {Level.V31: b"\x00\x06MQIsdp\x03", Level.V311: b"\x00\x04MQTT\x04"}


def publish_head(topic: str, payload_size: int, qos: int, retain: bool, dup: bool = False) -> bytes:
    """All of a PUBLISH before its packet id: at QoS 0 the packet is `head + payload`, else `head + packet_id.to_bytes(2, "big") + payload`.

    payload_size in bytes. Errors: ValueError (topic over 65,535 bytes or with a lone surrogate, packet over the greatest remaining length).
    """
    name = topic.encode()
    size = len(name)
    if not 0 < size <= LONGEST or not 0 <= qos <= 2 or (dup and not qos):
        raise ValueError(f"no PUBLISH has a topic of {size} bytes, QoS {qos} and dup={dup}")
    length = 2 + size + payload_size + (2 if qos else 0)
    first = 0x30 | (0x08 if dup else 0) | qos << 1 | (1 if retain else 0)
    return b"%c%b%b%b" % (first, _length(length), size.to_bytes(2, "big"), name)


def puback(packet_id: int) -> bytes:
    """PUBACK (clause 3.4). Errors: ValueError when packet_id isn't 1..65535."""
    return b"\x40\x02" + _id(packet_id)


def pubrec(packet_id: int) -> bytes:
    """PUBREC (clause 3.5). Errors: as `puback`."""
    return b"\x50\x02" + _id(packet_id)


def pubrel(packet_id: int) -> bytes:
    """PUBREL (clause 3.6), flags 0010 [MQTT-3.6.1-1]. Errors: as `puback`."""
    return b"\x62\x02" + _id(packet_id)


def pubcomp(packet_id: int) -> bytes:
    """PUBCOMP (clause 3.7). Errors: as `puback`."""
    return b"\x70\x02" + _id(packet_id)


def suback(packet_id: int, codes: Iterable[int]) -> bytes:
    """SUBACK (clause 3.9): one code for each filter, in their order [MQTT-3.9.3-1]. Errors: ValueError."""
    return _packet(0x90, _id(packet_id) + bytes(codes))


def unsuback(packet_id: int) -> bytes:
    """UNSUBACK (clause 3.11). Errors: as `puback`."""
    return b"\xb0\x02" + _id(packet_id)


def connack(code: int, present: bool = False, level: Level = Level.V311) -> bytes:
    """CONNACK (clause 3.2). A refusal never says session present [MQTT-3.2.2-4]; 3.1 has no such flag."""
    flag = present and not code and level is not Level.V31
    return bytes((0x20, 2, flag, code))


def encode(packet: Packet, level: Level = Level.V311) -> bytes:
    """Any packet. `level` is the connection's; a CONNECT carries its own. Errors: ValueError for what no packet can hold."""
    match packet:
        case Publish():
            return _publish(packet)
        case PubAck():
            return puback(packet.packet_id)
        case PubRec():
            return pubrec(packet.packet_id)
        case PubRel():
            return pubrel(packet.packet_id)
        case PubComp():
            return pubcomp(packet.packet_id)
        case Subscribe():
            filters = b"".join(_text(filter) + bytes((qos,)) for filter, qos in packet.filters)
            return _packet(0x82, _id(packet.packet_id) + filters)
        case SubAck():
            return suback(packet.packet_id, packet.codes)
        case Unsubscribe():
            return _packet(0xA2, _id(packet.packet_id) + b"".join(map(_text, packet.filters)))
        case UnsubAck():
            return unsuback(packet.packet_id)
        case Connect():
            return _connect(packet)
        case ConnAck():
            return connack(packet.code, packet.session_present, level)
        case PingReq():
            return PINGREQ
        case PingResp():
            return PINGRESP
        case Disconnect():
            return DISCONNECT
        case _:
            assert_never(packet)


def _publish(packet: Publish) -> bytes:
    if packet.oversize:
        raise ValueError("the payload of this PUBLISH was skipped when it was read")
    head = publish_head(packet.topic, len(packet.payload), packet.qos, packet.retain, packet.dup)
    if packet.qos:
        return head + _id(packet.packet_id) + packet.payload
    return head + packet.payload


def _connect(packet: Connect) -> bytes:
    """Fields in the order that [MQTT-3.1.3-1] gives."""
    will = packet.will
    if packet.password is not None and packet.username is None:
        raise ValueError("a password without a user name [MQTT-3.1.2-22]")
    flags = 0x02 if packet.clean else 0
    parts = [_text(packet.client_id)]
    if will is not None:
        flags |= 0x04 | will.qos << 3 | (0x20 if will.retain else 0)
        parts += (_text(will.topic), _blob(will.payload))
    if packet.username is not None:
        flags |= 0x80
        parts.append(_text(packet.username))
    if packet.password is not None:
        flags |= 0x40
        parts.append(_blob(packet.password))
    head = b"%b%c%b" % (_PROTOCOL[packet.level], flags, packet.keep_alive.to_bytes(2, "big"))
    return _packet(0x10, head + b"".join(parts))


def _packet(first: int, body: bytes) -> bytes:
    return b"%c%b%b" % (first, _length(len(body)), body)


def _length(number: int) -> bytes:
    """The remaining length, 1 to 4 bytes (clause 2.2.3)."""
    if number < 128:
        return bytes((number,))
    if number > MOST:
        raise ValueError(f"a packet of {number} bytes is over the greatest remaining length")
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _id(packet_id: int) -> bytes:
    if not 0 < packet_id <= 65535:
        raise ValueError(f"packet id {packet_id}")  # [MQTT-2.3.1-1]
    return packet_id.to_bytes(2, "big")


def _blob(data: bytes) -> bytes:
    if len(data) > LONGEST:
        raise ValueError(f"a field of {len(data)} bytes is over {LONGEST}")
    return len(data).to_bytes(2, "big") + data


def _text(string: str) -> bytes:
    return _blob(string.encode())
