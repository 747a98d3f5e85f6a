"""The decoder and the encoders against each other: round trips, any split, any garbage, limits, and what happens at a fault."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mqtt import codec
from gateway.mqtt.decode import Decoder
from gateway.mqtt.encode import MOST, encode, publish_head
from gateway.mqtt.errors import Fault
from gateway.mqtt.packets import (
    ConnAck,
    Connect,
    Level,
    Packet,
    PingReq,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
)
from tests.mqtt import strategies
from tests.mqtt.strategies import LEVELS, pieces

each_level = pytest.mark.parametrize("level", LEVELS)


def decode(data: bytes, level: Level = Level.V311) -> list[Packet]:
    decoder = Decoder(level=level)
    packets = decoder.feed(data)
    assert decoder.error is None
    assert decoder.idle
    return packets


@each_level
@given(data=st.data())
def test_round_trip(level: Level, data: st.DataObject) -> None:
    packet = data.draw(strategies.packets(level))
    assert decode(encode(packet, level), level) == [packet]


@each_level
@given(data=st.data())
def test_any_split_gives_the_same_packets(level: Level, data: st.DataObject) -> None:
    packets = data.draw(st.lists(strategies.packets(level), max_size=6))
    stream = b"".join(encode(packet, level) for packet in packets)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    decoder = Decoder(level=level)
    found = [packet for piece in pieces(stream, cuts) for packet in decoder.feed(piece)]
    assert found == packets
    assert decoder.error is None


@each_level
@given(data=st.data())
def test_byte_by_byte(level: Level, data: st.DataObject) -> None:
    packets = data.draw(st.lists(strategies.packets(level), max_size=3))
    stream = b"".join(encode(packet, level) for packet in packets)[:3000]
    decoder, whole = Decoder(level=level), Decoder(level=level)
    assert [packet for at in range(len(stream)) for packet in decoder.feed(stream[at : at + 1])] == whole.feed(stream)


@each_level
@given(garbage=st.lists(st.binary(max_size=60), max_size=5))
def test_garbage_never_raises(level: Level, garbage: list[bytes]) -> None:
    decoder = Decoder(level=level, max_packet=2000, max_payload=50)
    for data in garbage:
        failed = decoder.error
        assert failed is None or decoder.feed(data) == []
        if failed is None:
            decoder.feed(data)
    assert decoder.error is None or decoder.error.fault in Fault


@each_level
@given(data=st.data())
def test_damaged_packets_give_our_errors_at_any_split(level: Level, data: st.DataObject) -> None:
    """One byte changed: both ways to feed it give the same packets and the same fault."""
    packets = data.draw(st.lists(strategies.packets(level), min_size=1, max_size=3))
    stream = bytearray(b"".join(encode(packet, level) for packet in packets))
    at = data.draw(st.integers(0, min(len(stream) - 1, 60)))
    stream[at] = data.draw(st.integers(0, 255))
    whole, split = Decoder(level=level), Decoder(level=level)
    expected = whole.feed(bytes(stream))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert [packet for piece in pieces(bytes(stream), cuts) for packet in split.feed(piece)] == expected
    assert (whole.error and whole.error.fault) == (split.error and split.error.fault)


def test_packets_before_the_fault_come_out_and_nothing_after() -> None:
    decoder = Decoder()
    good = codec.puback(1) + codec.PINGREQ
    assert decoder.feed(good + b"\xff\x00" + codec.PINGREQ) == [PubAck(1), PingReq()]
    error = decoder.error
    assert error is not None
    assert error.fault is Fault.MALFORMED
    assert decoder.feed(codec.PINGREQ) == []
    assert decoder.error is error


def test_a_connect_sets_the_level_for_what_follows_in_the_same_read() -> None:
    connect = encode(Connect(Level.V31, "c", True, 0, None, None, None))
    again = b"\x8a" + encode(Subscribe(1, [("a", 0)]))[1:]
    decoder = Decoder()
    assert len(decoder.feed(connect + again)) == 2
    assert decoder.level is Level.V31
    newer = Decoder()
    newer.feed(encode(Connect(Level.V311, "c", True, 0, None, None, None)) + again)
    assert newer.error is not None


# ---------------------------------------------------------------- limits


@given(
    publish=strategies.publishes(),
    limit=st.integers(0, 60),
    cuts=st.lists(st.integers(0, 300), max_size=6),
)
def test_oversize_payload_is_skipped(publish: Publish, limit: int, cuts: list[int]) -> None:
    stream = encode(publish) + codec.PINGREQ
    decoder = Decoder(max_payload=limit)
    found = [packet for piece in pieces(stream, cuts) for packet in decoder.feed(piece)]
    size = len(publish.payload)
    if size > limit:
        publish = Publish(publish.topic, b"", publish.qos, publish.retain, publish.dup, publish.packet_id, size)
    assert found == [publish, PingReq()]
    assert decoder.error is None


def test_skipped_bytes_are_not_kept() -> None:
    decoder = Decoder(max_payload=1000)
    stream = encode(Publish("a/b", b"x" * 900_000, 1, packet_id=7))
    for at in range(0, len(stream) - 1, 4096):
        assert decoder.feed(stream[at : min(at + 4096, len(stream) - 1)]) == []
        assert decoder._pending is None
        assert not decoder.idle
    assert decoder.feed(stream[-1:]) == [Publish("a/b", b"", 1, packet_id=7, oversize=900_000)]
    assert decoder.idle


@pytest.mark.parametrize("first", [0x10, 0x30, 0x82])
@pytest.mark.parametrize("size", [1001, MOST])
def test_a_packet_over_the_limit_fails_with_its_fixed_header(first: int, size: int) -> None:
    header = bytearray(b"%c" % first)
    length = size - 3
    while length > 127:
        header.append(length & 127 | 128)
        length >>= 7
    header.append(length)
    decoder = Decoder(max_packet=1000)
    for byte in header[:-1]:
        assert decoder.feed(bytes((byte,))) == []
    assert decoder.error is None
    decoder.feed(bytes(header[-1:]))
    assert decoder.error is not None
    assert decoder.error.fault is Fault.TOO_LARGE


def test_a_packet_at_the_limit_passes() -> None:
    stream = encode(Publish("a", b"x" * 994))
    assert len(stream) == 1000
    assert len(Decoder(max_packet=1000).feed(stream)) == 1
    over = Decoder(max_packet=999)
    assert over.feed(codec.PINGREQ + stream) == [PingReq()]
    assert over.error is not None
    assert over.error.fault is Fault.TOO_LARGE


def test_wrong_flags_fail_before_the_rest_is_there() -> None:
    decoder = Decoder()
    decoder.feed(b"\x80")
    assert decoder.error is not None


# ---------------------------------------------------------------- encoders


@given(publish=strategies.publishes())
def test_publish_head_is_the_start_of_the_packet(publish: Publish) -> None:
    head = publish_head(publish.topic, len(publish.payload), publish.qos, publish.retain, publish.dup)
    number = publish.packet_id.to_bytes(2, "big") if publish.qos else b""
    assert head + number + publish.payload == encode(publish)


@given(number=strategies.ids)
def test_encoders_of_single_packets(number: int) -> None:
    assert decode(codec.puback(number)) == [PubAck(number)]
    assert decode(codec.pubrec(number)) == [PubRec(number)]
    assert decode(codec.pubrel(number)) == [PubRel(number)]
    assert decode(codec.pubcomp(number)) == [PubComp(number)]
    assert decode(codec.unsuback(number)) == [UnsubAck(number)]
    assert decode(codec.suback(number, [0, 1, 2, 0x80])) == [SubAck(number, [0, 1, 2, 0x80])]


def test_connack_forms() -> None:
    assert codec.connack(0, True) == b"\x20\x02\x01\x00"
    assert codec.connack(0) == b"\x20\x02\x00\x00"
    assert codec.connack(5, True) == b"\x20\x02\x00\x05"  # [MQTT-3.2.2-4]
    assert encode(ConnAck(True, 0), Level.V31) == b"\x20\x02\x00\x00"


@pytest.mark.parametrize("size", [0, 127, 128, 16383, 16384, 65536, 2097151 - 3, 2097152])
def test_remaining_length_borders(size: int) -> None:
    packet = Publish("a", bytes(size))
    decoder = Decoder(max_packet=1 << 24, max_payload=1 << 24)
    assert decoder.feed(encode(packet)) == [packet]


@pytest.mark.parametrize(
    "packet",
    [
        Publish("a" * 65536, b""),
        Publish("é" * 32768, b""),
        Publish("", b""),
        Publish("\ud800", b""),
        Publish("a", b"", 1),
        Publish("a", b"", 3, packet_id=1),
        Publish("a", b"", 0, dup=True),
        Publish("a", b"", oversize=5),
        PubAck(0),
        PubRel(65536),
        SubAck(1, [256]),
        Connect(Level.V311, "a", True, 0, None, None, b"x"),
        Connect(Level.V311, "a" * 65536, True, 0, None, None, None),
    ],
)
def test_what_no_packet_can_hold_is_a_value_error(packet: Packet) -> None:
    with pytest.raises(ValueError, match=r"."):
        encode(packet)


def test_packet_over_the_greatest_remaining_length() -> None:
    assert publish_head("a", MOST - 3, 0, False).endswith(b"\xff\xff\xff\x7f\x00\x01a")
    with pytest.raises(ValueError, match="remaining length"):
        publish_head("a", MOST - 2, 0, False)


def test_no_password_in_a_repr() -> None:
    assert "secret" not in repr(Connect(Level.V311, "a", True, 0, None, "user", b"secret"))
