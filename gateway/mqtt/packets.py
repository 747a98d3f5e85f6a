"""The control packets of MQTT 3.1, 3.1.1 (and, later, 5.0) as plain values (clause 3). Parametric in the protocol level.

Values are made by the decoder, which has checked every field that can be checked without knowing the connection's state.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """The protocol level of a CONNECT (clause 3.1.2.2)."""

    V31 = 3
    V311 = 4
    V5 = 5


class ConnectCode(IntEnum):
    """CONNACK return codes (table 3.1)."""

    ACCEPTED = 0
    BAD_LEVEL = 1
    BAD_IDENTIFIER = 2
    UNAVAILABLE = 3
    BAD_CREDENTIALS = 4
    NOT_AUTHORIZED = 5


SUBACK_FAILURE = 0x80


@dataclass(slots=True)
class Will:
    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(slots=True)
class Connect:
    """keep_alive in seconds, 0 = none. A password is never part of the repr."""

    level: Level
    client_id: str
    clean: bool
    keep_alive: int
    will: Will | None
    username: str | None
    password: bytes | None

    def __repr__(self) -> str:
        return f"Connect(level={self.level}, client_id={self.client_id!r}, clean={self.clean}, keep_alive={self.keep_alive})"


@dataclass(slots=True)
class ConnAck:
    session_present: bool
    code: int


class Publish:
    """packet_id is 0 at QoS 0. oversize: 0, or the bytes of a payload over the limit, which was skipped (payload is empty then)."""

    __slots__ = ("dup", "oversize", "packet_id", "payload", "qos", "retain", "topic")

    def __init__(
        self, topic: str, payload: bytes, qos: int = 0, retain: bool = False, dup: bool = False, packet_id: int = 0, oversize: int = 0
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.dup = dup
        self.packet_id = packet_id
        self.oversize = oversize

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Publish):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in Publish.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        flags = f"qos={self.qos}, packet_id={self.packet_id}, dup={self.dup}, retain={self.retain}"
        return f"Publish({self.topic!r}, {len(self.payload)} bytes, {flags})"


@dataclass(slots=True)
class PubAck:
    packet_id: int


@dataclass(slots=True)
class PubRec:
    packet_id: int


@dataclass(slots=True)
class PubRel:
    packet_id: int


@dataclass(slots=True)
class PubComp:
    packet_id: int


@dataclass(slots=True)
class Subscribe:
    packet_id: int
    filters: list[tuple[str, int]]  # (topic filter, requested QoS)


@dataclass(slots=True)
class SubAck:
    packet_id: int
    codes: list[int]


@dataclass(slots=True)
class Unsubscribe:
    packet_id: int
    filters: list[str]


@dataclass(slots=True)
class UnsubAck:
    packet_id: int


@dataclass(slots=True)
class PingReq:
    pass


@dataclass(slots=True)
class PingResp:
    pass


@dataclass(slots=True)
class Disconnect:
    pass


Packet = (
    Connect
    | ConnAck
    | Publish
    | PubAck
    | PubRec
    | PubRel
    | PubComp
    | Subscribe
    | SubAck
    | Unsubscribe
    | UnsubAck
    | PingReq
    | PingResp
    | Disconnect
)
