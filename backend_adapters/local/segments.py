"""How messages lie in the embedded log: what may be stored, and the bytes of a segment. Pure.

A segment is what one transaction adds to one queue: messages with consecutive offsets. Each is its born_at (ms, 8 bytes) and a record of
RocketMQ's batch form, so that both backends take, refuse and give back the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from backend_adapters.rocketmq_remoting.messages import MessageError, decode_properties, encode_message
from gateway.ports import BackendError, Message, Refusal

BODY_BYTES = 4 * 1024 * 1024  # RocketMQ's maxMessageSize

_BORN_AT = struct.Struct(">Q")
_RECORD = struct.Struct(">QI12xI")  # born_at; length of the record; magic, CRC, flag; length of the body


class Read(NamedTuple):
    """A message as it was read from a segment."""

    id: str
    tag: str
    properties: dict[str, str]
    body: bytes
    born_at: int


def encode(message: Message, born_at: int) -> tuple[bytes, bytes]:
    """Two parts of a segment. Raises BackendError: TOO_LARGE for a body over 4 MiB, INVALID for what RocketMQ could not carry."""
    if len(message.body) > BODY_BYTES:
        raise BackendError(Refusal.TOO_LARGE, f"the body has {len(message.body)} bytes, more than {BODY_BYTES}")
    try:
        return _BORN_AT.pack(born_at), encode_message(message)
    except MessageError as problem:
        raise BackendError(Refusal.INVALID, str(problem)) from None


def decode(data: bytes, skip: int) -> Iterator[Read]:
    """The messages of a segment after the first `skip`, in order."""
    at = 0
    while at < len(data):
        born_at, length, size = _RECORD.unpack_from(data, at)
        body_at = at + _RECORD.size
        at += _BORN_AT.size + length
        if skip:
            skip -= 1
            continue
        properties = decode_properties(data[body_at + size + 2 : at])
        id = properties.pop("UNIQ_KEY")
        yield Read(id, properties.pop("TAGS", ""), properties, data[body_at : body_at + size], born_at)
