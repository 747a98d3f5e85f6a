"""MQTT's bytes in one place: `Decoder`, `encode` and the encoders of single packets. The work is in `decode`, `bodies` and `encode`."""

from gateway.mqtt.decode import Decoder
from gateway.mqtt.encode import (
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    connack,
    encode,
    puback,
    pubcomp,
    publish_head,
    pubrec,
    pubrel,
    suback,
    unsuback,
)

__all__ = [
    "DISCONNECT",
    "PINGREQ",
    "PINGRESP",
    "Decoder",
    "connack",
    "encode",
    "puback",
    "pubcomp",
    "publish_head",
    "pubrec",
    "pubrel",
    "suback",
    "unsuback",
]
