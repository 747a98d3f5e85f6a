"""gateway.tools.events: parsing, repeats and filters, fed with what the gateway itself writes."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.ports import Event
from gateway.rules import presence
from gateway.tools.events import Filter, Repeats, events, parse_event


def message(event: Event) -> dict[str, Any]:
    return {"body": base64.b64encode(presence.event_body(event)).decode(), "properties": dict(presence.event_properties(event))}


def event(client: str = "GID_x@@@1", type: str = "connect", channel: str = "c1", seq: int = 1, reason: str = "") -> Event:
    return Event("id", client, type, 1000 + seq, seq, channel, "1.2.3.4:5", reason, "node")


async def stream(*found: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    for one in found:
        yield one


async def collect(wanted: Filter, *found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["clientId"], one["eventType"]) async for one in events(stream(*found), wanted)]


def test_what_the_gateway_writes_is_read() -> None:
    assert parse_event(message(event(reason="kicked", type="tcpclean", seq=7))) == {
        "clientId": "GID_x@@@1",
        "time": 1007,
        "eventType": "tcpclean",
        "channelId": "c1",
        "clientIp": "1.2.3.4:5",
        "seq": 7,
        "reason": "kicked",
        "node": "node",
    }


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b"nonsense", b'{"clientId": "a", "time": "x", "eventType": "connect", "channelId": "c"}']
)
def test_what_is_no_event_is_skipped(body: bytes) -> None:
    assert parse_event({"body": base64.b64encode(body).decode(), "properties": {}}) is None


def test_a_missing_address_is_tolerated() -> None:
    body = b'{"clientId": "a", "time": 5, "eventType": "connect", "channelId": "c"}'
    found = parse_event({"body": base64.b64encode(body).decode(), "properties": {"seq": "x"}})
    assert found is not None
    assert (found["clientIp"], found["seq"], found["reason"]) == ("", None, "")


async def test_repeats_are_dropped() -> None:
    first, second = message(event()), message(event(type="tcpclean"))
    assert await collect(Filter(), first, first, second, first, second) == [("GID_x@@@1", "connect"), ("GID_x@@@1", "tcpclean")]


def test_the_memory_of_repeats_is_bounded() -> None:
    repeats = Repeats(remembered=2)
    found = [{"channelId": name, "eventType": "connect"} for name in "abc"]
    assert [repeats.is_new(one) for one in found] == [True, True, True]
    assert not repeats.is_new(found[2])
    assert repeats.is_new(found[0])


async def test_filters() -> None:
    found = [
        message(event("GID_x@@@1", "connect", "c1")),
        message(event("GID_x@@@2", "connect", "c2")),
        message(event("GID_x@@@1", "tcpclean", "c1", reason="kicked")),
    ]
    assert await collect(Filter(client="GID_x@@@1"), *found) == [("GID_x@@@1", "connect"), ("GID_x@@@1", "tcpclean")]
    assert await collect(Filter(client="2"), *found) == [("GID_x@@@2", "connect")]
    assert await collect(Filter(types=frozenset({"tcpclean"})), *found) == [("GID_x@@@1", "tcpclean")]
    assert await collect(Filter(reason="kicked"), *found) == [("GID_x@@@1", "tcpclean")]
    assert await collect(Filter(client="2", reason="kicked"), *found) == []
