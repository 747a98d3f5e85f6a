"""Messages as RocketMQ carries them: encoded for a batch, decoded as they are stored (design section 6). Pure and hot."""

from __future__ import annotations

import struct
from typing import NamedTuple

from gateway.ports import Message, Properties

from .compression import CompressionError, decompress

MAX_PROPERTIES = 32_767  # bytes a message; a signed 16-bit length on the wire
MAX_BODY = 16 * 1024 * 1024  # bytes of an unpacked body; brokers take 4 MiB by default

_BATCHED = struct.Struct(">IIIII")
_SHORT = struct.Struct(">H")
_MAGIC_1 = 0xDAA320A7
_MAGIC_2 = 0xDAA320AB  # topics longer than 127 bytes: the topic's length has 2 bytes
_COMPRESSED, _BORN_V6, _STORE_V6, _UNWRAP, _INNER_BATCH = 0x1, 0x10, 0x20, 0x40, 0x80
# total, magic, queue offset, physical offset, sysFlag, born at, (born host), stored at, store host, body length
_STORED = {
    0: struct.Struct(">II12xqqiq8xq8s12xi"),
    _BORN_V6: struct.Struct(">II12xqqiq20xq8s12xi"),
    _STORE_V6: struct.Struct(">II12xqqiq8xq20s12xi"),
    _BORN_V6 | _STORE_V6: struct.Struct(">II12xqqiq20xq20s12xi"),
}
_COMMON = _STORED[0]
_SMALLEST = _COMMON.size + 3

# Names with a meaning for RocketMQ itself: a sender's property must not make a message a delayed, a transactional, or another's one.
_RESERVED = """
TAGS UNIQ_KEY WAIT DELAY RETRY_TOPIC REAL_TOPIC REAL_QID TRAN_MSG PGROUP MIN_OFFSET MAX_OFFSET BUYER_ID
ORIGIN_MESSAGE_ID TRANSFER_FLAG CORRECTION_FLAG MQ2_FLAG RECONSUME_TIME MSG_REGION TRACE_ON EXTEND_UNIQ_INFO
MAX_RECONSUME_TIMES CONSUME_START_TIME INNER_NUM INNER_BASE DUP_INFO CHECK_IMMUNITY_TIME_IN_SECONDS
TRAN_PREPARED_QUEUE_OFFSET __transactionId__ TRANSACTION_CHECK_TIMES CLUSTER MSG_TYPE POP_CK POP_CK_OFFSET 1ST_POP_TIME
PROPERTY_FORWARD_QUEUE_ID REDIRECT INNER_MULTI_DISPATCH INNER_MULTI_QUEUE_OFFSET TIMER_DELAY_SEC TIMER_DELIVER_MS
TIMER_DELAY_MS TIMER_ENQUEUE_MS TIMER_DEQUEUE_MS TIMER_ROLL_TIMES TIMER_OUT_MS TIMER_DEL_UNIQKEY TIMER_DELAY_LEVEL
__CRC32# DLQ_ORIGIN_TOPIC DLQ_ORIGIN_MESSAGE_ID
"""
RESERVED = frozenset(_RESERVED.split())
_BROKERS_OWN = ("CLUSTER", "WAIT", "MSG_REGION", "TRACE_ON", "__CRC32#")  # added on the way: no property of the sender's


class MessageError(Exception):
    """This message can't be carried. The text says why."""


class Stored(NamedTuple):
    """A message as a pull brings it. fault: "" or why `body` could not be had; the message is to be skipped then."""

    offset: int
    tag: str
    body: bytes
    properties: dict[str, str]
    id: str
    stored_at: int
    born_at: int
    fault: str


# ---------------------------------------------------------------- to the broker


def encode_properties(properties: Properties) -> bytes:
    """`name \\1 value \\2` for each. Raises MessageError."""
    parts: list[str] = []
    for name, value in properties.items():
        if name in RESERVED:
            raise MessageError(f"the property name {name} is RocketMQ's own")
        _check_text(name, "a property name")
        _check_text(value, f"property {name!r}")
        parts.append(f"{name}\x01{value}\x02")
    return _utf8("".join(parts))


def encode_message(message: Message) -> bytes:
    """One record of a batch's body. Raises MessageError."""
    properties = message.properties
    wire = properties.wire
    if wire is None:
        wire = properties.wire = encode_properties(properties)
    tag = message.tag
    own = _own_properties(tag, message.id)
    body = message.body
    length = len(wire) + len(own)
    if length > MAX_PROPERTIES:
        raise MessageError(f"the properties take {length} bytes, more than {MAX_PROPERTIES}")
    size = len(body)
    return b"".join((_BATCHED.pack(22 + size + length, 0, 0, 0, size), body, _SHORT.pack(length), wire, own))


_tags: dict[str, bytes] = {"": b"UNIQ_KEY\x01"}


def _own_properties(tag: str, id: str) -> bytes:
    if not id.isalnum():
        raise MessageError("a message id has other characters than letters and digits")
    prefix = _tags.get(tag)
    if prefix is None:
        _check_text(tag, "a tag")
        if "|" in tag or tag.strip() != tag or tag == "*":  # "a || b" separates tags in a filter, "*" is all
            raise MessageError("a tag is '*', has '|' in it, or begins or ends with a space")
        if len(_tags) >= 1000:
            _tags.clear()
        prefix = _utf8(f"TAGS\x01{tag}\x02UNIQ_KEY\x01")
        _tags[tag] = prefix
    return b"%b%b\x02" % (prefix, id.encode())


def _check_text(text: str, what: str) -> None:
    if not text:
        raise MessageError(f"{what} is empty: it would be lost")
    if "\x01" in text or "\x02" in text:
        raise MessageError(f"{what} has U+0001 or U+0002 in it: they separate properties")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise MessageError("a property or tag can not be written as UTF-8") from None


# ---------------------------------------------------------------- from the broker


def decode_messages(data: bytes, max_body: int = MAX_BODY) -> tuple[list[Stored], bool]:
    """The messages of a pull's body, in order. False: what follows them is damaged and can't be read. Never raises."""
    messages: list[Stored] = []
    at, end = 0, len(data)
    while end - at >= _SMALLEST:
        total, magic, offset, physical, flags, born_at, stored_at, host, body_length = _COMMON.unpack_from(data, at)
        head = _COMMON
        if total < _SMALLEST or total > end - at or (magic != _MAGIC_1 and magic != _MAGIC_2):
            return messages, False
        if flags & (_BORN_V6 | _STORE_V6):
            head = _STORED[flags & (_BORN_V6 | _STORE_V6)]
            if total < head.size + 3:
                return messages, False
            total, magic, offset, physical, flags, born_at, stored_at, host, body_length = head.unpack_from(data, at)
        stop = at + total
        body_at = at + head.size
        topic_at = body_at + body_length
        if body_length < 0 or topic_at >= stop:
            return messages, False
        properties_at = topic_at + (1 + data[topic_at] if magic == _MAGIC_1 else 2 + int.from_bytes(data[topic_at : topic_at + 2], "big"))
        if properties_at + 2 > stop:
            return messages, False
        length = data[properties_at] << 8 | data[properties_at + 1]
        if properties_at + 2 + length > stop:
            return messages, False
        properties = decode_properties(data[properties_at + 2 : properties_at + 2 + length])
        id = properties.pop("UNIQ_KEY", "") or f"{host.hex()}{physical & 0xFFFFFFFFFFFFFFFF:016x}".upper()
        body = data[body_at:topic_at]
        at = stop
        if not flags & (_COMPRESSED | _INNER_BATCH):
            messages.append(Stored(offset, properties.pop("TAGS", ""), body, properties, id, stored_at, born_at, ""))
            continue
        messages += _unpack(Stored(offset, properties.pop("TAGS", ""), body, properties, id, stored_at, born_at, ""), flags, max_body)
    return messages, at == end


def _unpack(message: Stored, flags: int, max_body: int) -> list[Stored]:
    """A compressed message, or the messages of an inner batch, which have offsets of their own from the batch's on."""
    body = message.body
    if flags & _COMPRESSED:
        try:
            body = decompress(body, flags >> 8 & 7, max_body)
        except CompressionError as error:
            return [message._replace(body=b"", fault=str(error))]
    if not (flags & _INNER_BATCH and flags & _UNWRAP):
        return [message._replace(body=body)]
    inner: list[Stored] = []
    at = 0
    while at < len(body):
        offset = message.offset + len(inner)
        if len(body) - at < _BATCHED.size + 2:
            return [*inner, message._replace(offset=offset, body=b"", fault="an inner batch is damaged")]
        total, _, _, _, size = _BATCHED.unpack_from(body, at)
        properties_at = at + _BATCHED.size + size
        if total < _BATCHED.size + 2 + size or at + total > len(body):
            return [*inner, message._replace(offset=offset, body=b"", fault="an inner batch is damaged")]
        (length,) = _SHORT.unpack_from(body, properties_at)
        properties = decode_properties(body[properties_at + 2 : min(properties_at + 2 + length, at + total)])
        id = properties.pop("UNIQ_KEY", "") or f"{message.id}{len(inner):04X}"
        tag = properties.pop("TAGS", "")
        inner.append(message._replace(offset=offset, tag=tag, body=body[at + 20 : properties_at], properties=properties, id=id))
        at += total
    return inner


def decode_properties(data: bytes) -> dict[str, str]:
    """What RocketMQ's own decoder reads: pairs without a name or a value are left out, of doubles the last one counts."""
    properties: dict[str, str] = {}
    for pair in data.decode(errors="replace").split("\x02"):
        name, _, value = pair.partition("\x01")
        if name and value:
            properties[name] = value
    for name in _BROKERS_OWN:
        properties.pop(name, None)
    return properties


def tag_hash(tag: str) -> int:
    """Java's String.hashCode, by which brokers filter."""
    value = 0
    units = tag.encode("utf-16-be", "surrogatepass")
    for at in range(0, len(units), 2):
        value = (31 * value + (units[at] << 8 | units[at + 1])) & 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
