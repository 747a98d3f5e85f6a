"""What commands print: one line a message, for people or as JSON; and the times that people write."""

from __future__ import annotations

import base64
import json
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from gateway.tools.running import ToolError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHOWN_BYTES = 64


def emit(line: str) -> None:
    """A line on stdout, at once: others read it through a pipe. Raises BrokenPipeError."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def emit_json(value: Mapping[str, object]) -> None:
    """A JSON object on a line of stdout."""
    emit(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def readable(data: bytes) -> str:
    """A payload for a terminal: its text when that is harmless, else its length and first bytes."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if data and all(c.isprintable() or c in "\n\t" for c in text) and text:
        return text
    dots = "..." if len(data) > _SHOWN_BYTES else ""
    return f"<{len(data)} bytes{': ' + data[:_SHOWN_BYTES].hex(' ') if data else ''}{dots}>"


def harmless(text: str) -> str:
    """A name from elsewhere for a terminal: control characters escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def payload_fields(data: bytes) -> dict[str, object]:
    """A payload for JSON: `body` in base64, and `text` when it is UTF-8."""
    fields: dict[str, object] = {"body": base64.b64encode(data).decode("ascii")}
    try:
        fields["text"] = data.decode()
    except UnicodeDecodeError:
        pass
    return fields


def clock(ms: int) -> str:
    """A time for people, in the local zone."""
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def start_time(text: str) -> str:
    """`--from`: begin, now, ms since 1970, an ISO time, or so long ago (`10m`, `2h`, `1d`), as `begin`, `now` or ms. Raises ToolError."""
    if text in ("begin", "now"):
        return text
    if text.isdigit():
        return str(int(text) * (1000 if len(text) <= 10 else 1))
    if ago := re.fullmatch(r"(\d+)([smhd])", text):
        return str(int((time.time() - int(ago[1]) * _UNITS[ago[2]]) * 1000))
    try:
        return str(int(datetime.fromisoformat(text).timestamp() * 1000))
    except ValueError:
        raise ToolError(f"--from: {text!r} is no time. Write begin, now, 10m, 2h, 1d or 2026-01-31T08:00:00.") from None
