"""Lifecycle events as backend messages (contract section 7)."""

from __future__ import annotations

import json
from enum import Enum

from gateway.ports import Event, Properties

CONNECT = "connect"
DISCONNECT = "disconnect"
TCPCLEAN = "tcpclean"


class Reason(Enum):
    """Why a connection was refused or ended: property `reason` of its `tcpclean`, and of the counted facts."""

    # refused: there are no events
    BAD_IDENTIFIER = "bad_identifier"
    BAD_CREDENTIALS = "bad_credentials"
    QUOTA = "quota"
    CONNECT_TIMEOUT = "connect_timeout"
    # refused, or ended later
    NOT_PERMITTED = "not_permitted"
    PROTOCOL_ERROR = "protocol_error"
    UNAVAILABLE = "unavailable"  # store or backend
    INTERNAL_ERROR = "internal_error"
    # ended
    CLIENT_DISCONNECT = "client_disconnect"
    CONNECTION_LOST = "connection_lost"
    KEEP_ALIVE_TIMEOUT = "keep_alive_timeout"
    TAKEN_OVER = "taken_over"
    SLOW_CONSUMER = "slow_consumer"
    SEND_TIMEOUT = "send_timeout"
    KICKED = "kicked"
    SHUTDOWN = "shutdown"
    NODE_LOST = "node_lost"


def event_topic(group: str) -> str:
    """The backend topic of a group's events; the operator creates it for the groups he wants watched."""
    return f"{group}_MQTT"


def event_body(event: Event) -> bytes:
    """The JSON that server apps read; field names as the reference documents spell them."""
    fields = {
        "clientId": event.client_id,
        "time": event.time,
        "eventType": event.type,
        "channelId": event.channel_id,
        "clientIp": event.client_ip,
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def event_properties(event: Event) -> Properties:
    """Ours, beside the body: seq (grows by 1 per client: a consumer sees repeats and gaps), reason, node."""
    properties = Properties(seq=str(event.seq))
    if event.reason:
        properties["reason"] = event.reason
    if event.node:
        properties["node"] = event.node
    return properties
