"""The server's side of one network connection: which packet may come when (clauses 3.1, 3.14 and 4.8). Bytes in, values out."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.mqtt.decode import Decoder
from gateway.mqtt.encode import connack
from gateway.mqtt.errors import Fault, MqttError
from gateway.mqtt.packets import (
    ConnAck,
    Connect,
    ConnectCode,
    Disconnect,
    Level,
    Packet,
    PingResp,
    SubAck,
    UnsubAck,
)

_FROM_SERVERS = (ConnAck, SubAck, UnsubAck, PingResp)

_ANSWERS = {  # [MQTT-3.1.2-2] [MQTT-3.1.3-8]
    Fault.BAD_LEVEL: connack(ConnectCode.BAD_LEVEL),
    Fault.BAD_IDENTIFIER: connack(ConnectCode.BAD_IDENTIFIER),
}

_CONNECT = 0x10


@dataclass(slots=True, frozen=True)
class Close:
    """Send `answer` (it may be empty), then close the network connection [MQTT-4.8.0-1]. text: field and clause, never the bytes."""

    fault: Fault
    text: str
    answer: bytes = b""


class Connection:
    """keep_alive: seconds, 0 = none, from the CONNECT. max_packet, max_payload: bytes, as in `Decoder`."""

    __slots__ = ("_connected", "_decoder", "_ended", "keep_alive")

    def __init__(self, *, max_packet: int = 1 << 20, max_payload: int = 65536) -> None:
        self._decoder = Decoder(max_packet=max_packet, max_payload=max_payload)
        self._connected = False
        self._ended = False
        self.keep_alive = 0

    @property
    def level(self) -> Level:
        """The protocol level: of the CONNECT once that was read, 3.1.1 before."""
        return self._decoder.level

    @property
    def connected(self) -> bool:
        """A CONNECT was read."""
        return self._connected

    def feed(self, data: bytes) -> list[Packet] | list[Packet | Close]:
        """What the bytes say, in order. The first value is a Connect [MQTT-3.1.0-1]; a Disconnect or a Close is always the last one ever:
        later calls give []. Never raises."""
        decoder = self._decoder
        if decoder.unusual:
            return self._unusual(data)
        packets = decoder.feed(data)
        if decoder.unusual:
            return self._sift(packets)
        return packets

    def _unusual(self, data: bytes) -> list[Packet | Close]:
        """Before the CONNECT and after the end."""
        if self._ended or not data:
            return []
        decoder = self._decoder
        if decoder.idle and data[0] != _CONNECT:  # not to wait for the end of a packet that is wrong anyway
            return [self._close(MqttError(Fault.PROTOCOL, "the first packet is no CONNECT [MQTT-3.1.0-1]"))]
        return self._sift(decoder.feed(data))

    def _sift(self, packets: list[Packet]) -> list[Packet | Close]:
        """Let pass what may come now, up to the first packet that ends the connection."""
        passed: list[Packet | Close] = []
        for packet in packets:
            violation = self._violation(packet)
            if violation:
                passed.append(self._close(MqttError(Fault.PROTOCOL, violation)))
                return passed
            passed.append(packet)
            if isinstance(packet, Connect):
                self._connected = True
                self.keep_alive = packet.keep_alive
            elif isinstance(packet, Disconnect):
                self._ended = True  # nothing after it is processed [MQTT-3.14.4-2]
                self._decoder.unusual = True
                return passed
        if self._decoder.error is not None:
            passed.append(self._close(self._decoder.error))
        elif self._connected:
            self._decoder.unusual = False
        return passed

    def _violation(self, packet: Packet) -> str:
        """Why the packet may not come now, or ""."""
        if isinstance(packet, Connect):
            return "a second CONNECT [MQTT-3.1.0-2]" if self._connected else ""
        if not self._connected:
            return "the first packet is no CONNECT [MQTT-3.1.0-1]"
        if isinstance(packet, _FROM_SERVERS):
            return f"a client sent {type(packet).__name__.upper()} (table 2.1)"
        return ""

    def _close(self, error: MqttError) -> Close:
        self._ended = True
        self._decoder.unusual = True
        answer = b"" if self._connected else _ANSWERS.get(error.fault, b"")
        return Close(error.fault, str(error), answer)

    def expired(self, now: float, last: float) -> bool:
        """Whether a client whose last packet came at `last` is to be taken for gone at `now` (seconds of one clock) [MQTT-3.1.2-24]."""
        return self.keep_alive > 0 and now - last > self.keep_alive * 1.5
