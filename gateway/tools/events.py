"""Lifecycle events of a group as its event topic has them (contract section 7), each once, filtered."""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, NamedTuple

from gateway.rules.presence import CONNECT, DISCONNECT, TCPCLEAN

TYPES = (CONNECT, DISCONNECT, TCPCLEAN)
_REMEMBERED = 100_000  # identities of events, to drop repeats


class Filter(NamedTuple):
    """Empty: everything. client: the whole Client ID, or the part behind the group."""

    client: str = ""
    types: frozenset[str] = frozenset()
    reason: str = ""

    def passes(self, event: dict[str, Any]) -> bool:
        client = event["clientId"]
        return (
            (not self.client or self.client in (client, client.partition("@@@")[2]))
            and (not self.types or event["eventType"] in self.types)
            and (not self.reason or event["reason"] == self.reason)
        )


class Repeats:
    """Drops events that come twice: their identity is (channelId, eventType)."""

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._remembered = remembered
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()

    def is_new(self, event: dict[str, Any]) -> bool:
        """Whether the event is the first with its identity; remembers it."""
        identity = (event["channelId"], event["eventType"])
        if identity in self._seen:
            return False
        self._seen[identity] = None
        if len(self._seen) > self._remembered:
            self._seen.popitem(last=False)
        return True


def parse_event(message: dict[str, Any]) -> dict[str, Any] | None:
    """The event in a message of an event topic, with `seq`, `reason` and `node` of its properties; None when it is none."""
    try:
        body = json.loads(base64.b64decode(message["body"]))
        event = {
            "clientId": str(body["clientId"]),
            "time": int(body["time"]),
            "eventType": str(body["eventType"]),
            "channelId": str(body["channelId"]),
            "clientIp": str(body.get("clientIp", "")),  # readers tolerate a missing one
        }
    except (KeyError, TypeError, ValueError):
        return None
    properties = message["properties"]
    event["seq"] = int(properties["seq"]) if str(properties.get("seq", "")).isdigit() else None
    event["reason"] = properties.get("reason", "")
    event["node"] = properties.get("node", "")
    return event


async def events(messages: AsyncIterator[dict[str, Any]], wanted: Filter) -> AsyncGenerator[dict[str, Any], None]:
    """The wanted events among the messages of an event topic, each once."""
    repeats = Repeats()
    async for message in messages:
        event = parse_event(message)
        if event is not None and repeats.is_new(event) and wanted.passes(event):
            yield event
