"""Frames of the remoting protocol: bytes to values and back (design section 6). Pure.

total length (4 bytes, without itself), serialisation type (1), header length (3), header, body. A header is JSON (type 0) or RocketMQ's
binary form (type 1); a server answers in the type of the request.
"""

from __future__ import annotations

import json
import struct
from typing import NamedTuple

from .codes import LANGUAGE, LANGUAGE_CODE, VERSION

ANSWER = 1  # flag bits
ONE_WAY = 2
MAX_FRAME = 64 * 1024 * 1024  # bytes; the servers' own bound is 16 MiB, configurable

_LENGTHS = struct.Struct(">II")
_HEAD = struct.Struct(">hBhii")
_INT = struct.Struct(">i")
_SHORT = struct.Struct(">h")


class FrameError(Exception):
    """The peer sent what is no frame of this protocol; the connection can't be read any further."""


class Frame(NamedTuple):
    """A request or an answer. opaque: the number that an answer shares with its request. fields: the header's `extFields`."""

    code: int
    opaque: int
    flag: int
    remark: str
    fields: dict[str, str]
    body: bytes

    @property
    def is_answer(self) -> bool:
        return bool(self.flag & ANSWER)

    @property
    def is_one_way(self) -> bool:
        return bool(self.flag & ONE_WAY)


def encode(code: int, opaque: int, flag: int, fields: dict[str, str], body_length: int, remark: str | None = None) -> bytes:
    """A JSON frame without its body, which follows it on the wire as it is."""
    header = {"code": code, "language": LANGUAGE, "version": VERSION, "opaque": opaque, "flag": flag, "extFields": fields}
    if remark is not None:
        header["remark"] = remark
    data = json.dumps(header, separators=(",", ":")).encode()
    return _LENGTHS.pack(4 + len(data) + body_length, len(data)) + data


def encode_binary(frame: Frame) -> bytes:
    """A whole frame with a header of type 1."""
    fields = bytearray()
    for name, value in frame.fields.items():
        name_bytes, value_bytes = name.encode(), value.encode()
        fields += _SHORT.pack(len(name_bytes)) + name_bytes + _INT.pack(len(value_bytes)) + value_bytes
    remark = frame.remark.encode()
    header = b"".join(
        (
            _HEAD.pack(frame.code, LANGUAGE_CODE, VERSION, frame.opaque, frame.flag),
            _INT.pack(len(remark)),
            remark,
            _INT.pack(len(fields)),
            fields,
        )
    )
    return _LENGTHS.pack(4 + len(header) + len(frame.body), 1 << 24 | len(header)) + header + frame.body


class Decoder:
    """Turns a byte stream, cut anywhere, into frames."""

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises FrameError; the stream is of no use after that."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start, end = 0, len(buffer)
        with memoryview(buffer) as view:
            while end - start >= 8:
                length, head = _LENGTHS.unpack_from(view, start)
                header_length = head & 0xFFFFFF
                if length > self._limit or length < 4 + header_length:
                    raise FrameError(f"a frame of {length} bytes with a header of {header_length}")
                if end - start < 4 + length:
                    break
                body_at = start + 8 + header_length
                stop = start + 4 + length
                frames.append(_decode(head >> 24, bytes(view[start + 8 : body_at]), bytes(view[body_at:stop])))
                start = stop
        if start:
            del buffer[:start]
        return frames


def _decode(kind: int, header: bytes, body: bytes) -> Frame:
    if kind == 0:
        return _decode_json(header, body)
    if kind == 1:
        return _decode_binary(header, body)
    raise FrameError(f"serialisation type {kind} is not known")


def _decode_json(header: bytes, body: bytes) -> Frame:
    try:
        value = json.loads(header)
        code, opaque, flag = value["code"], value["opaque"], value.get("flag", 0)
        fields = value.get("extFields") or {}
        remark = value.get("remark") or ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FrameError("a header is no JSON object with code and opaque") from error
    if not (type(code) is int and type(opaque) is int and type(flag) is int and type(fields) is dict and type(remark) is str):
        raise FrameError("a header has members of the wrong type")
    for value in fields.values():
        if type(value) is not str:
            fields = {name: str(value) for name, value in fields.items() if value is not None}
            break
    return Frame(code, opaque, flag, remark, fields, body)


def _decode_binary(header: bytes, body: bytes) -> Frame:
    try:
        code, _, _, opaque, flag = _HEAD.unpack_from(header)
        remark, at = _text(header, _HEAD.size, _INT)
        (length,) = _INT.unpack_from(header, at)
        at += 4
        end = at + length
        if length < 0 or end > len(header):
            raise FrameError("a binary header is cut short")
        fields: dict[str, str] = {}
        while at < end:
            name, at = _text(header, at, _SHORT)
            fields[name], at = _text(header, at, _INT)
    except (struct.error, UnicodeDecodeError) as error:
        raise FrameError("a binary header is damaged") from error
    return Frame(code, opaque, flag, remark, fields, body)


def _text(data: bytes, at: int, size: struct.Struct) -> tuple[str, int]:
    (length,) = size.unpack_from(data, at)
    at += size.size
    if length < 0 or at + length > len(data):
        raise FrameError("a binary header is cut short")
    return data[at : at + length].decode(), at + length
