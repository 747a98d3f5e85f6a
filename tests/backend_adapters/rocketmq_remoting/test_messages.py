"""Messages: batches as brokers read them, stored messages as brokers write them, and garbage (design section 6)."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from backend_adapters.rocketmq_remoting.messages import (
    MAX_PROPERTIES,
    MessageError,
    decode_messages,
    decode_properties,
    encode_message,
    encode_properties,
    tag_hash,
)
from gateway.ports import Message, Properties

ID = "C0A8000112340BADF00D000000010000"
MAGIC_1, MAGIC_2 = 0xDAA320A7, 0xDAA320AB
clean = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x01\x02"), min_size=1, max_size=12)
tags = st.one_of(st.just(""), st.from_regex(r"[A-Za-z0-9_]{1,12}", fullmatch=True))


def record(body: bytes, properties: bytes) -> bytes:
    """One message of a batch, as Apache's own encoder lays it out."""
    size = 4 * 5 + len(body) + 2 + len(properties)
    return struct.pack(">iiiii", size, 0, 0, 0, len(body)) + body + struct.pack(">h", len(properties)) + properties


def stored(
    body: bytes, properties: bytes, *, offset: int = 5, flags: int = 0, topic: bytes = b"topic", magic: int = MAGIC_1, physical: int = 99
) -> bytes:
    """One message of a pull, as Apache's own store lays it out."""
    born = bytes(16 if flags & 0x10 else 4) + struct.pack(">i", 1)
    host = bytes([10, 0, 0, 1] if not flags & 0x20 else 16) + struct.pack(">i", 10911)
    tail = struct.pack(">i", len(body)) + body
    tail += struct.pack(">h" if magic == MAGIC_2 else ">b", len(topic)) + topic + struct.pack(">h", len(properties)) + properties
    head = struct.pack(">IIiiqqiq", magic, 0, 3, 0, offset, physical, flags, 111) + born + struct.pack(">q", 222) + host
    head += struct.pack(">iq", 0, 0)
    return struct.pack(">i", 4 + len(head) + len(tail)) + head + tail


def message(body: bytes = b"", tag: str = "", properties: dict[str, str] | None = None, id: str = ID) -> Message:
    return Message("topic", body, tag, Properties(properties or {}), "key", id)


@given(st.binary(max_size=50), tags, st.dictionaries(clean, clean, max_size=4))
def test_a_batched_message_is_laid_out_as_brokers_expect(body: bytes, tag: str, properties: dict[str, str]) -> None:
    properties = {f"p{name}": value for name, value in properties.items()}  # no reserved one
    data = encode_message(message(body, tag, properties))
    (length,) = struct.unpack_from(">h", data, 20 + len(body))
    assert data == record(body, data[22 + len(body) :])
    assert length == len(data) - 22 - len(body)
    expected = {**properties, "UNIQ_KEY": ID, **({"TAGS": tag} if tag else {})}
    assert decode_properties(data[22 + len(body) :]) == expected


@given(st.binary(max_size=50), tags, st.dictionaries(clean, clean, max_size=4), st.sampled_from([0, 0x10, 0x20, 0x30]), st.booleans())
def test_a_stored_message_comes_back(body: bytes, tag: str, properties: dict[str, str], flags: int, long: bool) -> None:
    properties = {f"p{name}": value for name, value in properties.items()}
    wire = encode_message(message(body, tag, properties))[22 + len(body) :]
    topic, magic = (b"t" * 200, MAGIC_2) if long else (b"t" * 127, MAGIC_1)
    data = stored(body, wire, flags=flags, topic=topic, magic=magic)
    messages, whole = decode_messages(data * 3)
    assert whole
    assert len(messages) == 3
    assert messages[0] == (5, tag, body, properties, ID, 222, 111, "")


@given(st.binary(max_size=400))
def test_garbage_never_raises(data: bytes) -> None:
    decode_messages(data)


@given(st.binary(max_size=40), st.sampled_from([0, 1, 0x101, 0x201, 0x301, 0x701, 0x30, 0xC0, 0xC1]), st.data())
def test_damage_never_raises(body: bytes, flags: int, data: st.DataObject) -> None:
    wire = bytearray(stored(body, b"TAGS\x01T\x02UNIQ_KEY\x01" + ID.encode(), flags=flags) * 2)
    for _ in range(data.draw(st.integers(0, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] ^= data.draw(st.integers(1, 255))
    decode_messages(bytes(wire[: data.draw(st.integers(0, len(wire)))]))


def test_what_is_before_the_damage_is_kept() -> None:
    good = stored(b"good", b"")
    messages, whole = decode_messages(good + b"\0" * 100)
    assert [each.body for each in messages] == [b"good"]
    assert not whole


def test_a_message_of_another_producer_without_unique_key_has_the_brokers_id() -> None:
    (only,), _ = decode_messages(stored(b"", b"KEYS\x01order 7\x02"))
    assert only.id == "0A000001" + "00002A9F" + "0000000000000063"
    assert only.properties == {"KEYS": "order 7"}


def test_what_brokers_add_is_no_property() -> None:
    (only,), _ = decode_messages(stored(b"", b"CLUSTER\x01c\x02WAIT\x01true\x02MSG_REGION\x01r\x02TRACE_ON\x01true\x02a\x01b"))
    assert only.properties == {"a": "b"}


@given(st.dictionaries(clean, st.text(max_size=3), max_size=3), st.sampled_from(["\x01", "\x02", ""]), clean)
def test_properties_that_would_be_lost_or_forged_are_refused(properties: dict[str, str], evil: str, name: str) -> None:
    for bad in ({name: evil}, {evil: "v"}, {name + evil: "v" + evil} if evil else {"": ""}):
        with pytest.raises(MessageError):
            encode_properties(Properties({**properties, **bad}))


@pytest.mark.parametrize("name", ["TAGS", "UNIQ_KEY", "DELAY", "TRAN_MSG", "TIMER_DELIVER_MS", "__CRC32#", "REAL_TOPIC"])
def test_names_of_rocketmqs_own_are_refused(name: str) -> None:
    with pytest.raises(MessageError, match="RocketMQ's own"):
        encode_properties(Properties({name: "1"}))


@pytest.mark.parametrize("tag", ["a||b", "|", " a", "a ", "*", "a\x01", "a\x02b", "\ud800"])
def test_tags_that_no_filter_can_name_are_refused(tag: str) -> None:
    with pytest.raises(MessageError):
        encode_message(message(tag=tag))


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(MessageError):
        encode_message(message(properties={"a": "\udc80"}))


def test_an_id_can_forge_nothing() -> None:
    with pytest.raises(MessageError):
        encode_message(message(id="a\x02DELAY\x011"))


def test_properties_have_a_bound_in_bytes() -> None:
    own = len(b"UNIQ_KEY\x01\x02") + len(ID)
    room = MAX_PROPERTIES - own - len(b"n\x01\x02")
    assert encode_message(message(properties={"n": "v" * room}))
    with pytest.raises(MessageError, match="32767"):
        encode_message(message(properties={"n": "v" * (room + 1)}))
    with pytest.raises(MessageError):
        encode_message(message(properties={"n": "ü" * (room // 2 + 1)}))


def test_shared_properties_are_encoded_once() -> None:
    properties = Properties({"a": "b"})
    first = encode_message(Message("t", b"", "", properties, "", ID))
    assert properties.wire == b"a\x01b\x02"
    properties.wire = b"c\x01d\x02"
    assert encode_message(Message("t", b"", "", properties, "", ID)) == first.replace(b"a\x01b", b"c\x01d")


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("pack", "kind"), [(zlib.compress, 0), (zlib.compress, 3), (gzip.compress, 0), (gzip.compress, 3), (lz4.frame.compress, 1), (zstd, 2)]
)
def test_bodies_that_other_producers_compressed_arrive_whole(pack: Callable[[bytes], bytes], kind: int) -> None:
    body = bytes(range(256)) * 80
    (only,), _ = decode_messages(stored(pack(body), b"", flags=1 | kind << 8))
    assert only.body == body
    assert not only.fault
    (bomb,), _ = decode_messages(stored(pack(body), b"", flags=1 | kind << 8), max_body=len(body) - 1)
    assert bomb.body == b""
    assert "larger" in bomb.fault
    (short,), _ = decode_messages(stored(pack(body)[:-20], b"", flags=1 | kind << 8), max_body=len(body))
    assert short.fault


def test_an_unknown_compression_is_a_fault_of_that_message_alone() -> None:
    messages, whole = decode_messages(stored(b"x", b"", flags=1 | 5 << 8) + stored(b"y", b"", offset=6))
    assert whole
    assert [bool(each.fault) for each in messages] == [True, False]


def test_an_inner_batch_has_offsets_from_the_batchs_on() -> None:
    inner = record(b"one", b"UNIQ_KEY\x01A1\x02TAGS\x01T\x02p\x01q\x02") + record(b"", b"") + record(b"three", b"UNIQ_KEY\x01A3\x02")
    messages, whole = decode_messages(stored(inner, b"UNIQ_KEY\x01B\x02", flags=0xC0, offset=10))
    assert whole
    assert [(each.offset, each.tag, each.body, each.id) for each in messages] == [
        (10, "T", b"one", "A1"),
        (11, "", b"", "B0001"),
        (12, "", b"three", "A3"),
    ]
    (packed,) = {tuple(each.body for each in decode_messages(stored(zlib.compress(inner), b"", flags=0xC1))[0])}
    assert packed == (b"one", b"", b"three")


def test_a_damaged_inner_batch_is_a_fault() -> None:
    messages, whole = decode_messages(stored(record(b"one", b"") + b"rest", b"", flags=0xC0, offset=10))
    assert whole
    assert [(each.offset, bool(each.fault)) for each in messages] == [(10, False), (11, True)]


@pytest.mark.parametrize(
    ("tag", "value"), [("", 0), ("a", 97), ("hello", 99162322), ("TagA", 2598919), ("😀", 1772899), ("polygenelubricants", -2147483648)]
)
def test_the_tags_hash_is_javas(tag: str, value: int) -> None:
    assert tag_hash(tag) == value
