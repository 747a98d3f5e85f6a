"""What a PUBLISH is in the backend, and what a backend message is to devices (contract section 5)."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from gateway.mqtt.topics import LONGEST, split_parent
from gateway.ports import Properties

SECOND_TOPIC = "mqttSecondTopic"
QOS = "qoslevel"
CLEAN_SESSION = "cleansessionflag"
REAL_TOPIC = "mqttRealTopic"
CLIENT_ID = "clientId"
RETAIN = "mqttRetain"
GATEWAY = "mqttGateway"  # the mark of a device's message: the instance that took it; without it no message with a device's tag is one

P2P = "/p2p/"
_QOS = {"0": 0, "1": 1, "2": 2}
_DEFAULT_QOS = 1
_control = re.compile("[\x00-\x1f\x7f-\x9f]").search
_wildcard = re.compile("[+#]").search


class Route(NamedTuple):
    """Where a PUBLISH goes. topic: the RocketMQ topic. second: the rest with its leading "/", or "". p2p: the one receiver, or None."""

    topic: str
    second: str
    p2p: str | None


class Unroutable(Enum):
    """Why a message of the backend can not become a PUBLISH. It is skipped and counted."""

    EMPTY = "topic_empty"
    WILDCARD = "topic_wildcard"
    CONTROL = "topic_control_character"
    TOO_LONG = "topic_too_long"
    NO_RECEIVER = "p2p_without_client_id"


class Downlink:
    """A backend message as devices get it.

    topic: what subscriptions are matched with. shown: the topic that the device sees. p2p: the one receiver, or None.
    sender_persistent: the sender's session kind, which decides whether a P2P message is kept offline. origin: the message's tag.
    sender: the Client ID of the device that sent it, "" for a server app.
    """

    __slots__ = ("origin", "p2p", "qos", "retain", "sender", "sender_persistent", "shown", "topic")

    def __init__(
        self, topic: str, shown: str, qos: int, retain: bool, p2p: str | None, sender_persistent: bool, origin: str, sender: str
    ) -> None:
        self.topic = topic
        self.shown = shown
        self.qos = qos
        self.retain = retain
        self.p2p = p2p
        self.sender_persistent = sender_persistent
        self.origin = origin
        self.sender = sender


def route(mqtt_topic: str, bridged: Container[str], default_topic: str) -> Route | None:
    """Where a PUBLISH to `mqtt_topic` goes; None when its first level is not bridged and there is no `default_topic` ("").

    Through the default topic the whole MQTT topic goes into `second`, so there only `p2p/<ClientID>` is P2P.
    """
    parent, second = split_parent(mqtt_topic)
    if parent not in bridged or parent == default_topic:
        if not default_topic:
            return None
        parent, second = default_topic, "/" + mqtt_topic
    return Route(parent, second, second[len(P2P) :] or None if second.startswith(P2P) else None)


def uplink_properties(route: Route, *, client_id: str, qos: int, clean: bool, retain: bool, instance: str) -> Properties:
    """The properties of a device's message. None of them is empty; the limits of names keep their sum far below 32,767 bytes."""
    properties = Properties()
    if route.second:
        properties[SECOND_TOPIC] = route.second
    properties[QOS] = "012"[qos]
    properties[CLEAN_SESSION] = "true" if clean else "false"
    properties[CLIENT_ID] = client_id
    properties[GATEWAY] = instance
    if retain:
        properties[RETAIN] = "true"
    return properties


def downlink(topic: str, tag: str, properties: Mapping[str, str], *, default_topic: str) -> Downlink | Unroutable:
    """A message of RocketMQ topic `topic` for devices, or why it can't become one. What a server app left out or misspelt has a default:
    QoS 1, cleanSession true, the leading "/" of the subtopic."""
    get = properties.get
    place = _place(topic, get(SECOND_TOPIC, ""), get(REAL_TOPIC, ""), topic == default_topic)
    if isinstance(place, Unroutable):
        return place
    matched, shown, p2p = place
    return Downlink(
        matched,
        shown,
        _QOS.get(get(QOS, ""), _DEFAULT_QOS),
        get(RETAIN, "").lower() == "true",
        p2p,
        get(CLEAN_SESSION, "").lower() == "false",
        tag,
        get(CLIENT_ID, ""),
    )


@lru_cache(maxsize=4096)
def _place(topic: str, second: str, real: str, whole: bool) -> tuple[str, str, str | None] | Unroutable:
    """(topic to match, topic to show, P2P receiver). whole: the subtopic is the whole MQTT topic."""
    if second and second[0] != "/":
        second = "/" + second
    matched = second[1:] if whole else topic + second
    p2p = None
    if second.startswith(P2P):
        p2p = second[len(P2P) :]
        if not p2p:
            return Unroutable.NO_RECEIVER
    shown = real or matched
    # a P2P message is not matched, so its receiver may have a wildcard character in its Client ID when another topic is shown
    fault = _unpublishable(shown) or (None if p2p else _unpublishable(matched))
    return fault or (matched, shown, p2p)


def _unpublishable(topic: str) -> Unroutable | None:
    if not topic:
        return Unroutable.EMPTY  # [MQTT-4.7.3-1]
    if _wildcard(topic):
        return Unroutable.WILDCARD  # [MQTT-3.3.2-2]
    if _control(topic):
        return Unroutable.CONTROL
    if len(topic.encode()) > LONGEST:
        return Unroutable.TOO_LONG  # [MQTT-4.7.3-3]
    return None
