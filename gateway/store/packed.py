"""How the values of the port lie in a store: JSON for structure, bytes for bytes."""

from __future__ import annotations

import json
import struct
from typing import Any

from gateway.ports import Event, Message, Properties, Queue, Retained, Will

_LENGTHS = struct.Struct(">II")  # of the JSON head and of the message's body; the rest is the retained payload, when it is another one


def pack_event(event: Event) -> str:
    """All fields but the client id, which has a column."""
    return json.dumps([event.id, event.type, event.time, event.seq, event.channel_id, event.client_ip, event.reason, event.node])


def unpack_event(client_id: str, text: str) -> Event:
    id, type, time, seq, channel_id, client_ip, reason, node = json.loads(text)
    return Event(id, client_id, type, time, seq, channel_id, client_ip, reason, node)


def pack_will(will: Will | None) -> bytes | None:
    """A will's retained payload is its message's body as a rule, and is then kept once."""
    if will is None:
        return None
    message, retained = will.message, will.retained
    head: list[Any] = [message.topic, message.tag, message.properties, message.key, message.id, message.ordered]
    payload = b""
    if retained is not None:
        same = retained.payload == message.body
        head += [retained.topic, retained.qos, retained.id, retained.stored_at, same]
        payload = b"" if same else retained.payload
    text = json.dumps(head).encode()
    return b"".join((_LENGTHS.pack(len(text), len(message.body)), text, message.body, payload))


def unpack_will(blob: bytes | None) -> Will | None:
    if blob is None:
        return None
    head_length, body_length = _LENGTHS.unpack_from(blob)
    start = _LENGTHS.size + head_length
    topic, tag, properties, key, id, ordered, *rest = json.loads(blob[_LENGTHS.size : start])
    body = blob[start : start + body_length]
    message = Message(topic, body, tag, Properties(properties), key, id, ordered)
    if not rest:
        return Will(message, None)
    retained_topic, qos, retained_id, stored_at, same = rest
    return Will(message, Retained(retained_topic, body if same else blob[start + body_length :], qos, retained_id, stored_at))


def pack_source(unique_key: str, source: tuple[Queue, int] | None) -> str | None:
    """With the UNIQ_KEY, so that it can be remembered when the body is gone."""
    if source is None:
        return None
    queue, offset = source
    return json.dumps([unique_key, queue.topic, queue.broker, queue.id, offset])


def unpack_source(text: str) -> tuple[str, Queue, int]:
    """(UNIQ_KEY, queue, offset)"""
    unique_key, topic, broker, id, offset = json.loads(text)
    return unique_key, Queue(topic, broker, id), offset
