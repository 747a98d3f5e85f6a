"""What a device tells the gateway by publishing to `$SYS/...` (contract sections 5 and 6). Everything else below `$` is acknowledged and
dropped."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gateway import observe
from gateway.mqtt.packets import Publish

if TYPE_CHECKING:
    from gateway.runtime.inlet import Inlet
    from gateway.runtime.link import Link
    from gateway.runtime.pulling import Pulling

ENABLE_ORDER = "$SYS/enableOrderMsg"
GET_OFFLINE = "$SYS/getOfflineMsg"


def publish(link: Link, inlet: Inlet, pulling: Pulling, packet: Publish) -> None:
    """Interpret `packet`; the caller acknowledges it."""
    if packet.topic == GET_OFFLINE:  # at any QoS
        if link.mailbox is not None:
            pulling.request(link.mailbox, packet.payload)
        return
    if packet.topic == ENABLE_ORDER and packet.qos == 1:
        if _says_order(packet.payload):
            inlet.ordered = True
            return
        problem = 'its payload is not {"order": "true"}'
    elif packet.topic == ENABLE_ORDER:
        problem = "it must be published at QoS 1"
    else:
        problem = "unknown system topic"
    observe.note(observe.Fact.MESSAGE_DROPPED, reason="system_topic", client_id=link.client_id, topic=packet.topic, problem=problem)


def _says_order(payload: bytes) -> bool:
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and str(said.get("order")).lower() == "true"
