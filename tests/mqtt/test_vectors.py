"""Packets written by hand, byte for byte: what they mean, or which clause refuses them."""

from __future__ import annotations

import pytest

from gateway.mqtt.decode import Decoder
from gateway.mqtt.encode import encode
from gateway.mqtt.errors import Fault
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
    Will,
)

V31, V311 = Level.V31, Level.V311

VALID: list[tuple[str, Level, str, Packet]] = [
    ("connect", V311, "10 0d 00044d515454 04 02 003c 0001 61", Connect(V311, "a", True, 60, None, None, None)),
    ("connect-3.1", V31, "10 0f 00064d5149736470 03 02 003c 0001 61", Connect(V31, "a", True, 60, None, None, None)),
    ("connect-persistent", V311, "10 0d 00044d515454 04 00 0000 0001 61", Connect(V311, "a", False, 0, None, None, None)),
    ("connect-empty-id", V311, "10 0c 00044d515454 04 02 ffff 0000", Connect(V311, "", True, 65535, None, None, None)),
    (
        "connect-all-fields",
        V311,
        "10 1d 00044d515454 04 f6 000a 0001 61 0003 772f74 0002 00ff 0001 75 0002 7000",
        Connect(V311, "a", True, 10, Will("w/t", b"\x00\xff", 2, True), "u", b"p\x00"),
    ),
    (
        "connect-empty-will-and-password",
        V311,
        "10 17 00044d515454 04 c4 000a 0001 61 0001 77 0000 0001 75 0000",
        Connect(V311, "a", False, 10, Will("w", b"", 0, False), "u", b""),
    ),
    ("connect-user-without-password", V311, "10 10 00044d515454 04 82 000a 0001 61 0001 75", Connect(V311, "a", True, 10, None, "u", None)),
    ("connect-3.1-user-flag-no-field", V31, "10 0f 00064d5149736470 03 c2 003c 0001 61", Connect(V31, "a", True, 60, None, None, None)),
    ("connack", V311, "20 02 00 00", ConnAck(False, 0)),
    ("connack-present", V311, "20 02 01 00", ConnAck(True, 0)),
    ("connack-3.1-flags-unused", V31, "20 02 01 00", ConnAck(False, 0)),
    ("connack-refused", V311, "20 02 00 05", ConnAck(False, 5)),
    ("publish-qos0", V311, "30 06 0003 612f62 78", Publish("a/b", b"x")),
    ("publish-empty", V311, "30 05 0003 612f62", Publish("a/b", b"")),
    ("publish-retain", V311, "31 06 0003 612f62 78", Publish("a/b", b"x", 0, True)),
    ("publish-qos1", V311, "32 08 0003 612f62 000a 78", Publish("a/b", b"x", 1, packet_id=10)),
    ("publish-qos2-dup-retain", V311, "3d 08 0003 612f62 ffff 00", Publish("a/b", b"\x00", 2, True, True, 65535)),
    ("publish-bom", V311, "30 06 0004 efbbbf61", Publish("\ufeffa", b"")),
    ("publish-slash", V311, "30 03 0001 2f", Publish("/", b"")),
    ("publish-padded-length", V311, "30 8600 0003 612f62 78", Publish("a/b", b"x")),
    ("publish-3.1-dup-qos0", V31, "38 06 0003 612f62 78", Publish("a/b", b"x")),
    ("puback", V311, "40 02 0001", PubAck(1)),
    ("pubrec", V311, "50 02 0102", PubRec(258)),
    ("pubrel", V311, "62 02 0001", PubRel(1)),
    ("pubrel-3.1-dup", V31, "6a 02 0001", PubRel(1)),
    ("pubcomp", V311, "70 02 ffff", PubComp(65535)),
    ("subscribe", V311, "82 0a 000a 0001 23 01 0001 2b 02", Subscribe(10, [("#", 1), ("+", 2)])),
    ("subscribe-3.1-dup", V31, "8a 06 000a 0001 61 00", Subscribe(10, [("a", 0)])),
    ("suback", V311, "90 06 000a 00 01 02 80", SubAck(10, [0, 1, 2, 0x80])),
    ("unsubscribe", V311, "a2 09 000b 0002 2b2f 0001 23", Unsubscribe(11, ["+/", "#"])),
    ("unsubscribe-3.1-dup", V31, "aa 05 000b 0001 61", Unsubscribe(11, ["a"])),
    ("unsuback", V311, "b0 02 000b", UnsubAck(11)),
    ("pingreq", V311, "c0 00", PingReq()),
    ("pingresp", V311, "d0 00", PingResp()),
    ("disconnect", V311, "e0 00", Disconnect()),
]

# Read by a server, written by nobody of ours.
NOT_OURS = {
    "connect-3.1-user-flag-no-field",
    "connack-3.1-flags-unused",
    "publish-padded-length",
    "publish-3.1-dup-qos0",
    "pubrel-3.1-dup",
    "subscribe-3.1-dup",
    "unsubscribe-3.1-dup",
}


@pytest.mark.parametrize(("level", "hex", "packet"), [pytest.param(*row[1:], id=row[0]) for row in VALID])
def test_valid(level: Level, hex: str, packet: Packet) -> None:
    decoder = Decoder(level=level)
    assert decoder.feed(bytes.fromhex(hex)) == [packet]
    assert decoder.error is None


@pytest.mark.parametrize(("level", "hex", "packet"), [pytest.param(*row[1:], id=row[0]) for row in VALID if row[0] not in NOT_OURS])
def test_encoded(level: Level, hex: str, packet: Packet) -> None:
    assert encode(packet, level) == bytes.fromhex(hex)


M, P = Fault.MALFORMED, Fault.PROTOCOL

# name, level, bytes, fault, what the error's text must hold
INVALID: list[tuple[str, Level, str, Fault, str]] = [
    # fixed header
    ("type-0", V311, "00 00", M, "MQTT-2.2.2-2"),
    ("type-15", V311, "f0 00", M, "MQTT-2.2.2-2"),
    ("connect-flags", V311, "11 00", M, "MQTT-2.2.2-2"),
    ("puback-flags", V311, "42 02 0001", M, "MQTT-2.2.2-2"),
    ("pubrec-flags", V311, "51 02 0001", M, "MQTT-2.2.2-2"),
    ("pubrel-flags", V311, "60 02 0001", M, "MQTT-2.2.2-2"),
    ("pubrel-dup", V311, "6a 02 0001", M, "MQTT-2.2.2-2"),
    ("pubcomp-flags", V311, "72 02 0001", M, "MQTT-2.2.2-2"),
    ("subscribe-flags", V311, "80 06 000a 0001 61 00", M, "MQTT-2.2.2-2"),
    ("subscribe-dup", V311, "8a 06 000a 0001 61 00", M, "MQTT-2.2.2-2"),
    ("unsubscribe-flags", V311, "a0 05 000b 0001 61", M, "MQTT-2.2.2-2"),
    ("pingreq-flags", V311, "c1 00", M, "MQTT-2.2.2-2"),
    ("disconnect-flags", V311, "e1 00", M, "MQTT-2.2.2-2"),
    ("length-5-bytes", V311, "30 ffffffff01", M, "remaining length"),
    # connect
    ("protocol-name", V311, "10 0d 00044d515458 04 02 003c 0001 61", P, "MQTT-3.1.2-1"),
    ("protocol-name-case", V311, "10 0d 00046d717474 04 02 003c 0001 61", P, "MQTT-3.1.2-1"),
    ("protocol-name-cut", V311, "10 03 00044d", M, "protocol name"),
    ("level-missing", V311, "10 06 00044d515454", M, "protocol level"),
    ("level-5", V311, "10 0e 00044d515454 05 02 003c 00 0001 61", Fault.BAD_LEVEL, "MQTT-3.1.2-2"),
    ("level-3-named-mqtt", V311, "10 0d 00044d515454 03 02 003c 0001 61", Fault.BAD_LEVEL, "MQTT-3.1.2-2"),
    ("level-4-named-mqisdp", V311, "10 0f 00064d5149736470 04 02 003c 0001 61", Fault.BAD_LEVEL, "MQTT-3.1.2-2"),
    ("level-of-a-bridge", V311, "10 0d 00044d515454 84 02 003c 0001 61", Fault.BAD_LEVEL, "MQTT-3.1.2-2"),
    ("connect-flags-cut", V311, "10 09 00044d515454 04 02 00", M, "connect flags"),
    ("reserved-flag", V311, "10 0d 00044d515454 04 03 003c 0001 61", M, "MQTT-3.1.2-3"),
    ("will-qos-without-will", V311, "10 0d 00044d515454 04 0a 003c 0001 61", M, "MQTT-3.1.2-11"),
    ("will-retain-without-will", V311, "10 0d 00044d515454 04 22 003c 0001 61", M, "MQTT-3.1.2-11"),
    ("will-qos-3", V311, "10 12 00044d515454 04 1e 003c 0001 61 0001 77 0000", M, "MQTT-3.1.2-14"),
    ("will-flag-no-will", V311, "10 0d 00044d515454 04 06 003c 0001 61", M, "will topic"),
    ("will-topic-wildcard", V311, "10 12 00044d515454 04 06 003c 0001 61 0001 23 0000", M, "MQTT-3.3.2-2"),
    ("will-topic-control", V311, "10 12 00044d515454 04 06 003c 0001 61 0001 01 0000", M, "control character"),
    ("will-topic-not-utf8", V311, "10 12 00044d515454 04 06 003c 0001 61 0001 ff 0000", M, "MQTT-1.5.3-1"),
    ("will-message-cut", V311, "10 12 00044d515454 04 06 003c 0001 61 0001 77 0001", M, "will message"),
    ("password-no-user", V311, "10 10 00044d515454 04 42 003c 0001 61 0001 70", M, "MQTT-3.1.2-22"),
    ("password-no-user-3.1", V31, "10 12 00064d5149736470 03 42 003c 0001 61 0001 70", M, "MQTT-3.1.2-22"),
    ("user-flag-no-field", V311, "10 0d 00044d515454 04 82 003c 0001 61", M, "user name"),
    ("password-flag-no-field", V311, "10 10 00044d515454 04 c2 003c 0001 61 0001 75", M, "password"),
    ("user-not-utf8", V311, "10 10 00044d515454 04 82 003c 0001 61 0001 ff", M, "MQTT-1.5.3-1"),
    ("no-client-id", V311, "10 0a 00044d515454 04 02 003c", M, "client id"),
    ("client-id-not-utf8", V311, "10 0d 00044d515454 04 02 003c 0001 c0", M, "MQTT-1.5.3-1"),
    ("client-id-nul", V311, "10 0d 00044d515454 04 02 003c 0001 00", M, "MQTT-1.5.3-2"),
    ("client-id-control", V311, "10 0e 00044d515454 04 02 003c 0002 c280", M, "control character"),
    ("client-id-empty-persistent", V311, "10 0c 00044d515454 04 00 003c 0000", Fault.BAD_IDENTIFIER, "MQTT-3.1.3-8"),
    ("client-id-empty-3.1", V31, "10 0e 00064d5149736470 03 02 003c 0000", Fault.BAD_IDENTIFIER, "MQTT-3.1.3-8"),
    ("connect-bytes-after", V311, "10 0e 00044d515454 04 02 003c 0001 61 00", M, "too many"),
    # publish
    ("publish-qos-3", V311, "36 08 0003 612f62 000a 78", M, "MQTT-3.3.1-4"),
    ("publish-dup-qos-0", V311, "38 06 0003 612f62 78", M, "MQTT-3.3.1-2"),
    ("publish-nothing", V311, "30 00", M, "PUBLISH"),
    ("publish-topic-cut", V311, "30 04 0003 612f", M, "topic"),
    ("publish-no-id", V311, "32 06 0003 612f62 00", M, "packet id"),
    ("publish-id-0", V311, "32 08 0003 612f62 0000 78", M, "MQTT-2.3.1-1"),
    ("publish-empty-topic", V311, "30 03 0000 78", M, "MQTT-4.7.3-1"),
    ("publish-hash", V311, "30 05 0003 612f23", M, "MQTT-3.3.2-2"),
    ("publish-plus", V311, "30 05 0003 2b2f61", M, "MQTT-3.3.2-2"),
    ("publish-nul", V311, "30 05 0003 610062", M, "MQTT-1.5.3-2"),
    ("publish-control-1", V311, "30 05 0003 610162", M, "control character"),
    ("publish-control-1f", V311, "30 05 0003 611f62", M, "control character"),
    ("publish-control-7f", V311, "30 05 0003 617f62", M, "control character"),
    ("publish-control-9f", V311, "30 05 0003 61c29f", M, "control character"),
    ("publish-surrogate", V311, "30 05 0003 eda080", M, "MQTT-1.5.3-1"),
    ("publish-overlong", V311, "30 04 0002 c0af", M, "MQTT-1.5.3-1"),
    # acknowledgements
    *(
        (f"{name}-{what}", V311, f"{first:02x} {rest}", M, text)
        for name, first in (
            ("puback", 0x40),
            ("pubrec", 0x50),
            ("pubrel", 0x62),
            ("pubcomp", 0x70),
            ("unsuback", 0xB0),
        )
        for what, rest, text in (("id-0", "02 0000", "MQTT-2.3.1-1"), ("short", "01 00", "packet id"), ("long", "03 000100", "too many"))
    ),
    # subscribe, suback
    ("subscribe-id-0", V311, "82 06 0000 0001 61 00", M, "MQTT-2.3.1-1"),
    ("subscribe-no-filter", V311, "82 02 000a", P, "MQTT-3.8.3-3"),
    ("subscribe-qos-3", V311, "82 06 000a 0001 61 03", M, "MQTT-3-8.3-4"),
    ("subscribe-reserved-bits", V311, "82 06 000a 0001 61 81", M, "MQTT-3-8.3-4"),
    ("subscribe-no-qos", V311, "82 05 000a 0001 61", M, "requested QoS"),
    ("subscribe-empty-filter", V311, "82 05 000a 0000 00", M, "MQTT-4.7.3-1"),
    ("subscribe-filter-cut", V311, "82 05 000a 0005 61", M, "filter"),
    ("subscribe-not-utf8", V311, "82 06 000a 0001 ff 00", M, "MQTT-1.5.3-1"),
    ("subscribe-control", V311, "82 06 000a 0001 02 00", M, "control character"),
    ("subscribe-hash-inside", V311, "82 08 000a 0003 232f61 00", M, "MQTT-4.7.1-2"),
    ("subscribe-hash-glued", V311, "82 07 000a 0002 6123 00", M, "MQTT-4.7.1-2"),
    ("subscribe-plus-glued", V311, "82 07 000a 0002 612b 00", M, "MQTT-4.7.1-3"),
    ("suback-code", V311, "90 03 000a 03", M, "MQTT-3.9.3-2"),
    ("suback-none", V311, "90 02 000a", M, "MQTT-3.9.3-2"),
    # the rest
    ("unsubscribe-id-0", V311, "a2 05 0000 0001 61", M, "MQTT-2.3.1-1"),
    ("unsubscribe-no-filter", V311, "a2 02 000b", P, "MQTT-3.10.3-2"),
    ("unsubscribe-not-utf8", V311, "a2 05 000b 0001 ff", M, "MQTT-1.5.3-1"),
    ("connack-short", V311, "20 01 00", M, "CONNACK"),
    ("connack-reserved", V311, "20 02 02 00", M, "CONNACK"),
    ("connack-present-refused", V311, "20 02 01 05", M, "MQTT-3.2.2-4"),
    ("pingreq-long", V311, "c0 01 00", M, "too many"),
    ("pingresp-long", V311, "d0 01 00", M, "too many"),
    ("disconnect-long", V311, "e0 01 00", M, "too many"),
]


@pytest.mark.parametrize(("level", "hex", "fault", "text"), [pytest.param(*row[1:], id=row[0]) for row in INVALID])
def test_invalid(level: Level, hex: str, fault: Fault, text: str) -> None:
    decoder = Decoder(level=level)
    assert decoder.feed(bytes.fromhex(hex)) == []
    assert decoder.error is not None
    assert decoder.error.fault is fault
    assert text in str(decoder.error)


@pytest.mark.parametrize("hex", [row[2] for row in INVALID if row[3] in (M, P)])
def test_invalid_byte_by_byte(hex: str) -> None:
    decoder = Decoder()
    assert [packet for byte in bytes.fromhex(hex) for packet in decoder.feed(bytes((byte,)))] == []
    assert decoder.error is not None
