"""Topic names and topic filters (clause 4.7): what is well formed, and what matches what."""

from __future__ import annotations

import re

from gateway.mqtt.errors import Fault, MqttError

LONGEST = 65535  # bytes of UTF-8 in any MQTT string [MQTT-4.7.3-3]

# Contract section 2: control characters could forge backend properties; clause 1.5.3 allows to close the connection for them.
_control = re.compile("[\x00-\x1f\x7f-\x9f]").search
_not_in_name = re.compile("[\x00-\x1f\x7f-\x9f+#]").search


def check_text(text: str, field: str) -> None:
    """Refuse control characters. Errors: MqttError (MALFORMED), whose text names `field` [MQTT-1.5.3-2], contract section 2."""
    if _control(text):
        raise MqttError(Fault.MALFORMED, f"{field}: control character [MQTT-1.5.3-2]")


def check_name(topic: str) -> None:
    """A topic name that a PUBLISH or a will may carry. Errors: MqttError (MALFORMED) with the clause [MQTT-3.3.2-2] [MQTT-4.7.3-1]."""
    if not topic:
        raise MqttError(Fault.MALFORMED, "topic: empty [MQTT-4.7.3-1]")
    if _not_in_name(topic):
        check_text(topic, "topic")
        raise MqttError(Fault.MALFORMED, "topic: wildcard [MQTT-3.3.2-2]")
    _check_size(topic, "topic")


def check_filter(filter: str) -> None:
    """A topic filter that a SUBSCRIBE may carry. Errors: MqttError (MALFORMED) with the clause [MQTT-4.7.1-2] [MQTT-4.7.1-3]."""
    if not filter:
        raise MqttError(Fault.MALFORMED, "filter: empty [MQTT-4.7.3-1]")
    check_text(filter, "filter")
    _check_size(filter, "filter")
    if "#" in filter and (filter.find("#") != len(filter) - 1 or (len(filter) > 1 and filter[-2] != "/")):
        raise MqttError(Fault.MALFORMED, "filter: # is not the whole last level [MQTT-4.7.1-2]")
    if "+" in filter and any("+" in level and level != "+" for level in filter.split("/")):
        raise MqttError(Fault.MALFORMED, "filter: + is not a whole level [MQTT-4.7.1-3]")


def _check_size(text: str, field: str) -> None:
    if text.isascii():
        size = len(text)
    else:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise MqttError(Fault.MALFORMED, f"{field}: lone surrogate [MQTT-1.5.3-1]") from None
    if size > LONGEST:
        raise MqttError(Fault.MALFORMED, f"{field}: over {LONGEST} bytes [MQTT-4.7.3-3]")


def matches(filter: str, topic: str) -> bool:
    """Whether the (well formed) filter matches the topic name [MQTT-4.7.1-1] [MQTT-4.7.3-4]. For many filters: `tree.Tree`."""
    if filter == topic:
        return True
    if topic[:1] == "$" and filter[:1] in ("#", "+"):
        return False  # [MQTT-4.7.2-1]
    levels = topic.split("/")
    wanted = filter.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        if len(levels) < len(wanted):
            return False
        del levels[len(wanted) :]  # "#" stands for any number of levels, none included
    return len(levels) == len(wanted) and all(want in ("+", level) for want, level in zip(wanted, levels, strict=True))


def split_parent(topic: str) -> tuple[str, str]:
    """(first level, the rest with its leading "/" or ""): parent topic and subtopic (contract section 1). Joined they are `topic`."""
    parent, slash, rest = topic.partition("/")
    return parent, slash + rest
