"""gateway.rules.presence: contract section 7."""

from __future__ import annotations

import json

from gateway.ports import Event
from gateway.rules import presence

EVENT = Event("0A" * 16, "GID_x@@@灯", "tcpclean", 1700000000123, 7, "ab" * 16, "10.0.0.1:4711", "taken_over", "node-1")


def test_topic() -> None:
    assert presence.event_topic("GID_x12") == "GID_x12_MQTT"


def test_body_has_exactly_the_five_fields() -> None:
    body = presence.event_body(EVENT)
    assert json.loads(body) == {
        "clientId": "GID_x@@@灯",
        "time": 1700000000123,
        "eventType": "tcpclean",
        "channelId": "ab" * 16,
        "clientIp": "10.0.0.1:4711",
    }
    assert "灯".encode() in body


def test_properties() -> None:
    assert presence.event_properties(EVENT) == {"seq": "7", "reason": "taken_over", "node": "node-1"}
    assert presence.event_properties(EVENT._replace(reason="", node="")) == {"seq": "7"}
