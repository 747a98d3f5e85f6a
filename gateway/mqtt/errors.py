"""The peer's faults: what a device can do wrong on the wire (clause 4.8). Each closes that connection and nothing else."""

from __future__ import annotations

from enum import Enum


class Fault(Enum):
    MALFORMED = "malformed_packet"  # bytes that are no packet of this level
    PROTOCOL = "protocol_violation"  # a packet that may not come now
    TOO_LARGE = "packet_too_large"  # over the gateway's limit for one packet
    BAD_LEVEL = "unacceptable_protocol_level"  # answered with CONNACK 0x01 [MQTT-3.1.2-2]
    BAD_IDENTIFIER = "identifier_rejected"  # answered with CONNACK 0x02 [MQTT-3.1.3-8]


class MqttError(Exception):
    """fault: for counting. The text names the field and the clause, never the bytes."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault
