"""From the bytes of a connection to packets, whatever pieces they come in (clause 2). Each byte is copied a bounded number of times."""

from __future__ import annotations

from gateway.mqtt.bodies import BODIES, check_first_byte, malformed, packet_id, text
from gateway.mqtt.errors import Fault, MqttError
from gateway.mqtt.packets import Connect, Level, Packet, PubAck, Publish
from gateway.mqtt.topics import check_name

# Topics that were found valid, shared by all decoders: a device repeats its few topics. Bounded in number and in the size of one.
_NAMES: dict[bytes, str] = {}
_NAMES_KEPT = 8192
_NAME_KEPT = 128  # bytes

# First bytes that a server meets in the middle of a conversation; the others need a look by the connection's state.
_USUAL = frozenset((0x40, 0x50, 0x62, 0x6A, 0x70, 0x82, 0x8A, 0xA2, 0xAA, 0xC0))

_blank = Publish.__new__


class Decoder:
    """Decodes the packets of both directions.

    max_packet: bytes of a whole packet, its fixed header included; a larger one is Fault.TOO_LARGE as soon as its fixed header is here.
    max_payload: bytes; a PUBLISH over it comes out without its payload when its end has arrived, `oversize` set; the bytes are not kept.
    level: set by a CONNECT that is decoded, or from outside.
    error: why decoding has ended; None while it goes on.
    unusual: True from the start and after any packet but PUBLISH, SUBSCRIBE, UNSUBSCRIBE, PINGREQ and acknowledgements of a PUBLISH, and
    after an error. Whoever has dealt with it sets it to False.
    """

    __slots__ = ("_need", "_oversize", "_pending", "_skip", "error", "level", "max_packet", "max_payload", "unusual")

    def __init__(self, *, max_packet: int = 1 << 20, max_payload: int = 65536, level: Level = Level.V311) -> None:
        self.max_packet = max_packet
        self.max_payload = max_payload
        self.level = level
        self.error: MqttError | None = None
        self.unusual = True
        self._pending: bytearray | None = None  # the start of a packet
        self._need = 0  # bytes that `_pending` must have before it is worth a look
        self._oversize: Publish | None = None  # its payload is being skipped,
        self._skip = 0  # this many bytes more

    @property
    def idle(self) -> bool:
        """No packet is half here."""
        return self._pending is None and self._oversize is None

    def feed(self, data: bytes) -> list[Packet]:
        """The packets that end in `data`. On bad bytes: those before them, with `error` set; from then on nothing."""
        packets: list[Packet] = []
        if self.error is not None:
            return packets
        start = 0
        if self._pending is not None:
            self._pending += data
            if len(self._pending) < self._need:
                return packets
            data = bytes(self._pending)
            self._pending = None
        elif self._oversize is not None:
            if len(data) < self._skip:
                self._skip -= len(data)
                return packets
            packets.append(self._oversize)
            start = self._skip
            self._oversize = None
        try:
            start = self._read(data, start, packets)
            if start < len(data):
                self._keep(data, start)
        except MqttError as error:
            self.error = error.with_traceback(None)  # its frames would keep the bytes
            self.unusual = True
        return packets

    def _read(self, data: bytes, pos: int, packets: list[Packet]) -> int:
        """Append the whole packets from `pos` on; where the first incomplete one starts. The hot path."""
        append = packets.append
        max_packet = self.max_packet
        size = len(data)
        last = size - 1
        while pos < last:
            first = data[pos]
            length = data[pos + 1]
            body = pos + 2
            if length > 127:
                if body >= size:
                    break
                following = data[body]
                body += 1
                length += (following << 7) - 128
                if following > 127:
                    length, body = _long_length(data, pos)
                    if not body:
                        break
            end = body + length
            if end - pos > max_packet or end > size:
                break  # `_keep` tells which
            if first & 0xF0 == 0x30:
                append(self._publish(first, data, body, end))
            elif first == 0x40 and length == 2:
                number = data[body] << 8 | data[body + 1]
                if not number:
                    malformed("packet id: 0 [MQTT-2.3.1-1]")
                append(PubAck(number))
            else:
                append(self._rare(first, data, body, end))
            pos = end
        return pos

    def _publish(self, first: int, data: bytes, body: int, end: int) -> Publish:
        """Clause 3.3. Fills the fields itself: half the cost of the constructor."""
        topic_at = body + 2
        if topic_at > end:
            malformed("PUBLISH: cut off")
        stop = topic_at + (data[body] << 8 | data[body + 1])
        if stop > end:
            malformed("topic: longer than its packet")
        raw = data[topic_at:stop]
        publish = _blank(Publish)
        publish.topic = _NAMES[raw] if raw in _NAMES else _name(raw)
        publish.qos = qos = first >> 1 & 3
        publish.retain = first & 1 == 1
        if qos:
            if qos == 3:
                check_first_byte(first, self.level)
            if stop + 2 > end:
                malformed("packet id: cut off")
            publish.packet_id = number = data[stop] << 8 | data[stop + 1]
            if not number:
                malformed("packet id: 0 [MQTT-2.3.1-1]")
            publish.dup = first > 0x37
            stop += 2
        else:
            if first > 0x37:
                check_first_byte(first, self.level)
            publish.packet_id = 0
            publish.dup = False
        if end - stop > self.max_payload:
            publish.payload = b""
            publish.oversize = end - stop
        else:
            publish.payload = data[stop:end]
            publish.oversize = 0
        return publish

    def _rare(self, first: int, data: bytes, body: int, end: int) -> Packet:
        check_first_byte(first, self.level)
        packet = BODIES[self.level][first](data, body, end, self.level)
        if first not in _USUAL:
            self.unusual = True
            if isinstance(packet, Connect):
                self.level = packet.level  # what follows in the same read is of this level already
        return packet

    def _keep(self, data: bytes, pos: int) -> None:
        """The packet at `pos` is incomplete or too large: fail at once if it can only be wrong, else keep what is needed of it."""
        first = data[pos]
        check_first_byte(first, self.level)
        length, body = _long_length(data, pos)
        if not body:
            self._need = len(data) - pos + 1
        else:
            end = body + length
            if end - pos > self.max_packet:
                raise MqttError(Fault.TOO_LARGE, f"packet: {end - pos} bytes, over the limit of {self.max_packet}")
            self._need = end - pos
            if length > self.max_payload and first & 0xF0 == 0x30:
                stop = self._payload_start(data, body, end, first)
                if stop > len(data):
                    self._need = stop - pos
                elif end - stop > self.max_payload:
                    self._oversize = _head(data, body, stop, end, first)
                    self._skip = end - len(data)
                    return
        self._pending = bytearray(memoryview(data)[pos:])

    def _payload_start(self, data: bytes, body: int, end: int, first: int) -> int:
        """Where a PUBLISH's payload starts, or, while its topic's length isn't here, where that ends."""
        if body + 2 > end:
            malformed("PUBLISH: cut off")
        if body + 2 > len(data):
            return body + 2
        stop = body + 2 + (data[body] << 8 | data[body + 1]) + (2 if first & 0x06 else 0)
        if stop > end:
            malformed("topic: longer than its packet")
        return stop


def _head(data: bytes, body: int, stop: int, end: int, first: int) -> Publish:
    """A PUBLISH whose payload, from `stop` to `end`, is skipped."""
    qos = first >> 1 & 3
    number = packet_id(data, stop - 2, stop) if qos else 0
    topic = _name(data[body + 2 : stop - (2 if qos else 0)])
    return Publish(topic, b"", qos, bool(first & 1), bool(qos and first & 8), number, end - stop)


def _long_length(data: bytes, pos: int) -> tuple[int, int]:
    """The remaining length of the packet at `pos` and where its body starts, or 0 while that is unknown. Errors: MqttError (MALFORMED)."""
    length = 0
    for shift, digit in enumerate(data[pos + 1 : pos + 5]):
        length |= (digit & 127) << 7 * shift
        if digit < 128:
            return length, pos + shift + 2
    if len(data) >= pos + 5:
        malformed("remaining length: over 4 bytes (clause 2.2.3)")
    return 0, 0


def _name(raw: bytes) -> str:
    """The topic name in a PUBLISH. Errors: MqttError (MALFORMED) [MQTT-3.3.2-1] [MQTT-3.3.2-2]."""
    topic = text(raw, "topic")
    check_name(topic)
    if len(raw) <= _NAME_KEPT:
        if len(_NAMES) >= _NAMES_KEPT:
            _NAMES.clear()
        _NAMES[raw] = topic
    return topic
