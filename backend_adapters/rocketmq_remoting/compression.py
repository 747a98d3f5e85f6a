"""Unpacks bodies that other producers have compressed, with a bound on what comes out (design section 6). Pure."""

from __future__ import annotations

import zlib

import lz4.frame
import zstandard

_GZIP = b"\x1f\x8b"
_LZ4, _ZSTD = 1, 2  # 0 and 3: zlib


class CompressionError(Exception):
    """Damaged, of an unknown kind, or larger than allowed when unpacked."""


def decompress(data: bytes, kind: int, limit: int) -> bytes:
    """kind: bits 8 to 10 of a message's sysFlag. limit: bytes that may come out. Raises CompressionError."""
    try:
        if data.startswith(_GZIP) or kind in (0, 3):
            body, whole = _inflate(data, limit)
        elif kind == _LZ4:
            unpacker = lz4.frame.LZ4FrameDecompressor()
            body = unpacker.decompress(data, max_length=limit + 1)
            whole = unpacker.eof
        elif kind == _ZSTD:
            body, whole = _unpack_zstd(data, limit)
        else:
            raise CompressionError(f"compression type {kind} is not known")
    except (zlib.error, RuntimeError, EOFError, zstandard.ZstdError) as error:
        raise CompressionError("the compressed body is damaged") from error
    if len(body) > limit:
        raise CompressionError(f"the body is larger than {limit} bytes when unpacked")
    if not whole:
        raise CompressionError("the compressed body is cut short")
    return body


def _unpack_zstd(data: bytes, limit: int) -> tuple[bytes, bool]:
    """Twice, since the one interface knows a bound and the other whether the end was reached."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    with unpacker.stream_reader(data) as reader:
        body = reader.read(limit + 1)
    if len(body) > limit:
        return body, True
    whole = unpacker.decompressobj()
    body = whole.decompress(data)
    return body, whole.eof


def _inflate(data: bytes, limit: int) -> tuple[bytes, bool]:
    unpacker = zlib.decompressobj(wbits=47)  # zlib or gzip, whichever the header says
    body = unpacker.decompress(data, limit + 1)
    return body, unpacker.eof or len(body) > limit
