"""From the bytes of one whole packet to its value, for every packet but the hot ones that `decode` reads in its loop (clause 3).

Each function takes the read buffer, the first byte of the variable header, the end of the packet and the level. They raise MqttError alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from gateway.mqtt.errors import Fault, MqttError
from gateway.mqtt.packets import (
    SUBACK_FAILURE,
    ConnAck,
    Connect,
    Disconnect,
    Level,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
    Will,
)
from gateway.mqtt.topics import check_filter, check_name, check_text

Body = Callable[[bytes, int, int, Level], Packet]

_LEVELS = {b"MQTT": Level.V311, b"MQIsdp": Level.V31}


def malformed(text: str) -> NoReturn:
    """Errors: MqttError (MALFORMED), always."""
    raise MqttError(Fault.MALFORMED, text)


def _blob(data: bytes, at: int, end: int, field: str) -> tuple[bytes, int]:
    """A field with a 2-byte length in front, and where the next one starts."""
    start = at + 2
    if start > end:
        malformed(f"{field}: length cut off")
    stop = start + (data[at] << 8 | data[at + 1])
    if stop > end:
        malformed(f"{field}: longer than its packet")
    return data[start:stop], stop


def text(raw: bytes, field: str) -> str:
    """A UTF-8 string [MQTT-1.5.3-1]; a byte order mark stays [MQTT-1.5.3-3]. Errors: MqttError (MALFORMED)."""
    try:
        string = str(raw, "utf-8")
    except UnicodeDecodeError:
        malformed(f"{field}: not UTF-8 [MQTT-1.5.3-1]")
    if "\0" in string:
        malformed(f"{field}: U+0000 [MQTT-1.5.3-2]")
    return string


def _text(data: bytes, at: int, end: int, field: str) -> tuple[str, int]:
    raw, at = _blob(data, at, end, field)
    return text(raw, field), at


def packet_id(data: bytes, at: int, end: int) -> int:
    """The packet id at `at`, 1..65535 [MQTT-2.3.1-1]. Errors: MqttError (MALFORMED)."""
    if at + 2 > end:
        malformed("packet id: cut off")
    number = data[at] << 8 | data[at + 1]
    if not number:
        malformed("packet id: 0 [MQTT-2.3.1-1]")
    return number


def _at_end(at: int, end: int, packet: str) -> None:
    if at != end:
        malformed(f"{packet}: {end - at} bytes too many")


def connect(data: bytes, at: int, end: int, _: Level) -> Connect:
    """Clause 3.1. Errors: MqttError, with BAD_LEVEL [MQTT-3.1.2-2] and BAD_IDENTIFIER [MQTT-3.1.3-8] for those that CONNACK answers."""
    name, at = _blob(data, at, end, "protocol name")
    if name not in _LEVELS:
        raise MqttError(Fault.PROTOCOL, "protocol name: unknown [MQTT-3.1.2-1]")
    if at >= end:
        malformed("protocol level: cut off")
    level = _LEVELS[name]
    if data[at] != level:
        raise MqttError(Fault.BAD_LEVEL, f"protocol level: {data[at]} [MQTT-3.1.2-2]")
    if at + 4 > end:
        malformed("connect flags: cut off")
    flags = data[at + 1]
    if level is not Level.V31:
        _check_flags(flags)
    if flags & 0xC0 == 0x40:
        malformed("connect flags: password without user name [MQTT-3.1.2-22]")
    keep_alive = data[at + 2] << 8 | data[at + 3]
    client_id, at = _text(data, at + 4, end, "client id")  # [MQTT-3.1.3-3]
    check_text(client_id, "client id")
    will, at = _will(data, at, end, flags) if flags & 0x04 else (None, at)
    username: str | None = None
    password: bytes | None = None
    # 3.1: the remaining length decides; a flag may be set though its field is missing.
    if flags & 0x80 and not (level is Level.V31 and at == end):
        username, at = _text(data, at, end, "user name")  # [MQTT-3.1.3-11]
    if flags & 0x40 and not (level is Level.V31 and at == end):
        password, at = _blob(data, at, end, "password")
    _at_end(at, end, "CONNECT")
    clean = bool(flags & 0x02)
    if not client_id and (level is Level.V31 or not clean):
        raise MqttError(Fault.BAD_IDENTIFIER, "client id: empty [MQTT-3.1.3-8]")
    return Connect(level, client_id, clean, keep_alive, will, username, password)


def _check_flags(flags: int) -> None:
    """What 3.1.1 forbids and 3.1 calls unused."""
    if flags & 0x01:
        malformed("connect flags: reserved bit [MQTT-3.1.2-3]")
    if not flags & 0x04 and flags & 0x38:
        malformed("connect flags: will QoS or will retain without a will [MQTT-3.1.2-11]")


def _will(data: bytes, at: int, end: int, flags: int) -> tuple[Will, int]:
    qos = flags >> 3 & 3
    if qos == 3:
        malformed("connect flags: will QoS 3 [MQTT-3.1.2-14]")
    topic, at = _text(data, at, end, "will topic")  # [MQTT-3.1.3-10]
    check_name(topic)
    payload, at = _blob(data, at, end, "will message")
    return Will(topic, payload, qos, bool(flags & 0x20)), at


def connack(data: bytes, at: int, end: int, level: Level) -> ConnAck:
    """Clause 3.2. In 3.1 the flags byte is unused. Errors: MqttError (MALFORMED)."""
    if end - at != 2:
        malformed("CONNACK: not 2 bytes")
    flags = data[at] if level is not Level.V31 else 0
    if flags > 1:
        malformed("CONNACK: reserved flags")
    if flags and data[at + 1]:
        malformed("CONNACK: session present in a refusal [MQTT-3.2.2-4]")
    return ConnAck(bool(flags), data[at + 1])


def subscribe(data: bytes, at: int, end: int, _: Level) -> Subscribe:
    """Clause 3.8. Errors: MqttError (MALFORMED, or PROTOCOL when there is no filter)."""
    number = packet_id(data, at, end)
    at += 2
    filters: list[tuple[str, int]] = []
    while at < end:
        filter, at = _text(data, at, end, "filter")  # [MQTT-3.8.3-1]
        check_filter(filter)
        if at >= end:
            malformed("requested QoS: cut off")
        if data[at] > 2:
            malformed("requested QoS: not 0, 1 or 2 [MQTT-3-8.3-4]")
        filters.append((filter, data[at]))
        at += 1
    if not filters:
        raise MqttError(Fault.PROTOCOL, "SUBSCRIBE: no filter [MQTT-3.8.3-3]")
    return Subscribe(number, filters)


def suback(data: bytes, at: int, end: int, _: Level) -> SubAck:
    """Clause 3.9. Errors: MqttError (MALFORMED)."""
    number = packet_id(data, at, end)
    codes = list(data[at + 2 : end])
    if not codes or any(code > 2 and code != SUBACK_FAILURE for code in codes):
        malformed("SUBACK: return codes [MQTT-3.9.3-2]")
    return SubAck(number, codes)


def unsubscribe(data: bytes, at: int, end: int, _: Level) -> Unsubscribe:
    """Clause 3.10. Errors: MqttError (MALFORMED, or PROTOCOL when there is no filter)."""
    number = packet_id(data, at, end)
    at += 2
    filters: list[str] = []
    while at < end:
        filter, at = _text(data, at, end, "filter")  # [MQTT-3.10.3-1]
        check_filter(filter)
        filters.append(filter)
    if not filters:
        raise MqttError(Fault.PROTOCOL, "UNSUBSCRIBE: no filter [MQTT-3.10.3-2]")
    return Unsubscribe(number, filters)


def _acknowledgement(kind: type[PubAck] | type[PubRec] | type[PubRel] | type[PubComp] | type[UnsubAck]) -> Body:
    """Clauses 3.4 to 3.7 and 3.11: a packet id and nothing else."""

    def read(data: bytes, at: int, end: int, _: Level) -> Packet:
        number = packet_id(data, at, end)
        _at_end(at + 2, end, kind.__name__.upper())
        return kind(number)

    return read


def _bare(kind: type[PingReq] | type[PingResp] | type[Disconnect]) -> Body:
    """Clauses 3.12 to 3.14: a fixed header and nothing else."""

    def read(data: bytes, at: int, end: int, _: Level) -> Packet:
        _at_end(at, end, kind.__name__.upper())
        return kind()

    return read


_pubrel = _acknowledgement(PubRel)

_BY_FIRST_BYTE: dict[int, Body] = {  # type and flags: other flags are malformed [MQTT-2.2.2-2]
    0x10: connect,
    0x20: connack,
    0x40: _acknowledgement(PubAck),
    0x50: _acknowledgement(PubRec),
    0x62: _pubrel,  # [MQTT-3.6.1-1]
    0x70: _acknowledgement(PubComp),
    0x82: subscribe,  # [MQTT-3.8.1-1]
    0x90: suback,
    0xA2: unsubscribe,  # [MQTT-3.10.1-1]
    0xB0: _acknowledgement(UnsubAck),
    0xC0: _bare(PingReq),
    0xD0: _bare(PingResp),
    0xE0: _bare(Disconnect),  # [MQTT-3.14.1-1]
}

# In 3.1 these three may be sent again with DUP set.
_IN_V31 = _BY_FIRST_BYTE | {0x6A: _pubrel, 0x8A: subscribe, 0xAA: unsubscribe}

BODIES: dict[Level, dict[int, Body]] = {Level.V31: _IN_V31, Level.V311: _BY_FIRST_BYTE}
"""Per level: the first byte of a packet (any but PUBLISH) -> who reads its body. A first byte that is missing is malformed."""


def check_first_byte(first: int, level: Level) -> None:
    """Type and flags of a packet's first byte. Errors: MqttError (MALFORMED) [MQTT-2.2.2-2]."""
    if first & 0xF0 == 0x30:
        if first & 0x06 == 0x06:
            malformed("PUBLISH: QoS 3 [MQTT-3.3.1-4]")
        if first & 0x0E == 0x08 and level is not Level.V31:
            malformed("PUBLISH: DUP at QoS 0 [MQTT-3.3.1-2]")
    elif first not in BODIES[level]:
        malformed(f"fixed header: 0x{first:02x} [MQTT-2.2.2-2]")
