"""Reads the JSON dialect of older servers: numbers, and whole objects, as names of members. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|([{,]\s*)(-?\d+)(?=\s*:)')
_OBJECT_NAME = re.compile(r'\{\s*("(?:[^"\\]|\\.)*"\s*:[^{}]*)\}\s*:\s*(-?\d+)')


def loads(data: bytes) -> Any:
    """The value. Raises ValueError."""
    try:
        return json.loads(data)
    except ValueError:
        return json.loads(_TOKEN.sub(lambda m: m[0] if m[2] is None else m[1] + b'"' + m[2] + b'"', data))


def queue_offsets(data: bytes) -> list[tuple[str, str, int, int]]:
    """(topic, broker, queue id, offset) of a RESET_OFFSET body, in which an offset's name is an object, or a list holds both.
    Raises ValueError."""
    try:
        table = json.loads(data)["offsetTable"]
        rows = [(row, row["offset"]) for row in table]
    except ValueError:
        text = data.decode()
        rows = [(json.loads("{" + found[1] + "}"), found[2]) for found in _OBJECT_NAME.finditer(text)]
    except (KeyError, TypeError) as error:
        raise ValueError("no table of offsets") from error
    try:
        return [(str(row["topic"]), str(row["brokerName"]), int(row["queueId"]), int(offset)) for row, offset in rows]
    except (KeyError, TypeError) as error:
        raise ValueError("no table of offsets") from error
