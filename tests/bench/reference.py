"""Bare RocketMQ, the honest ceiling: what one short loop on one socket, with the standard library alone, gets out of the broker.

`store`: batches (SEND_BATCH_MESSAGE, 320) of `batch` messages, one batch in flight for each queue, made before the clock starts; only the
unique keys are new in each. With 8 queues and batches of 13 (200), about as many messages are under way as with 100 devices that have
1 (16) in flight each. `relay`: a producer's socket sends single messages at a fixed rate, and a consumer's socket (PULL_MESSAGE, 11, long
polling on all queues) says when each arrived. `produce`: the producer's half alone, for devices that receive. No retries: any answer but
success ends the run.
"""

from __future__ import annotations

import json
import re
import select
import socket
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from tests.bench.crew import Figures, Window
from tests.bench.links import Address
from tests.bench.wire import STAMP

QUEUES = 8
DRAIN = 15.0  # seconds for the last answers
SEND_BATCH, PULL, CREATE_TOPIC, MAX_OFFSET, CLUSTER = 320, 11, 17, 30, 106
_serial = count(1)


class Wrong(Exception):
    """The broker did not answer with success."""


def frame(code: int, opaque: int, fields: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A request with a JSON header."""
    header = {"code": code, "language": "OTHER", "version": 0, "opaque": opaque, "flag": 0, "serializeTypeCurrentRPC": "JSON"}
    raw = json.dumps({**header, "extFields": {key: str(value) for key, value in fields.items()}}).encode()
    return struct.pack("!II", 4 + len(raw) + len(body), len(raw)) + raw + body


class Connection:
    """A socket that speaks frames."""

    def __init__(self, address: Address) -> None:
        self.sock = socket.create_connection(address, timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def read(self) -> list[tuple[dict[str, Any], bytes]]:
        """(header, body) of the frames that are there; waits for more bytes once."""
        data = self._rest + self.sock.recv(1 << 20)
        frames, at = [], 0
        while len(data) - at >= 4 and len(data) - at >= 4 + (total := int.from_bytes(data[at : at + 4])):
            middle = at + 8 + int.from_bytes(data[at + 5 : at + 8])
            frames.append((json.loads(data[at + 8 : middle]), data[middle : at + 4 + total]))
            at += 4 + total
        self._rest = data[at:]
        return frames

    def call(self, code: int, fields: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        """One request, its answer. Raises Wrong."""
        self.sock.sendall(frame(code, 0, fields))
        while not (frames := self.read()):
            pass
        if frames[0][0]["code"]:
            raise Wrong(f"request {code}: code {frames[0][0]['code']}, {frames[0][0].get('remark')}")
        return frames[0]


def broker(namesrv: Address) -> Address:
    """The first broker that the name server knows."""
    found = re.search(rb'"(\d+\.\d+\.\d+\.\d+):(\d+)"', Connection(namesrv).call(CLUSTER, {})[1])
    if not found:
        raise Wrong("the name server knows no broker")
    return found[1].decode(), int(found[2])


def create_topic(address: Address, topic: str) -> None:
    """Make `topic` with QUEUES queues on the broker at `address`."""
    fields = {"topic": topic, "defaultTopic": "TBW102", "readQueueNums": QUEUES, "writeQueueNums": QUEUES, "perm": 6, "order": "false"}
    Connection(address).call(CREATE_TOPIC, {**fields, "topicFilterType": "SINGLE_TAG", "topicSysFlag": 0})


def message(body: bytes, properties: Mapping[str, str]) -> bytes:
    """One message of a batch body."""
    raw = "\2".join(f"{name}\1{value}" for name, value in properties.items()).encode()
    size = 22 + len(body) + len(raw)
    return struct.pack("!IIIII", size, 0, zlib.crc32(body) & 0x7FFFFFFF, 0, len(body)) + body + struct.pack("!H", len(raw)) + raw


def _send_fields(topic: str, queue: int) -> dict[str, Any]:
    fields = {"a": "GID_bench", "b": topic, "c": "TBW102", "d": 4, "e": queue, "f": 0, "g": int(time.time() * 1000)}
    return {**fields, "h": 0, "i": "", "j": 0, "k": "false", "m": "true", "n": ""}


def _unique() -> str:
    return f"7F000001{next(_serial):024X}"


def store(ready: Callable[[], Window], *, address: Address, topic: str, payload: int, batch: int, deep: int = 1) -> Figures:
    """Keep `deep` batches in flight on each queue. Figures: count (messages stored in the window of time), missing (not answered)."""
    link = Connection(address)
    properties = {"TAGS": "MQTT2MQ", "qoslevel": "1", "clientId": "bench-u0000", "cleansessionflag": "true"}
    place = len(message(bytes(payload), {"UNIQ_KEY": ""}))  # where the value of the first property begins
    one = message(bytes(payload), {"UNIQ_KEY": _unique(), **properties})
    requests = [bytearray(frame(SEND_BATCH, queue, _send_fields(topic, queue), one * batch)) for queue in range(QUEUES)]
    when = ready()
    stored = at_begin = waiting = laps = 0

    def send(queue: int) -> None:
        nonlocal laps
        laps += 1
        request = requests[queue]
        for index in range(batch):  # 8 hex digits for the batch, 4 for the message in it
            at = len(request) - (batch - index) * len(one) + place
            request[at + 20 : at + 32] = b"%08X%04X" % (laps, index)
        link.sock.sendall(request)

    for queue in range(QUEUES * deep):
        send(queue % QUEUES)
        waiting += 1
    at_end = 0
    while waiting and (now := time.monotonic()) < when.end + DRAIN:
        if not at_begin and now >= when.begin:
            at_begin = stored or 1
        if not at_end and now >= when.end:
            at_end = stored
        for header, _ in link.read():
            if header["code"]:
                raise Wrong(f"send: code {header['code']}, {header.get('remark')}")
            stored += batch
            if now < when.end:
                send(header["opaque"])
            else:
                waiting -= 1
    return {"count": (at_end or stored) - at_begin, "missing": waiting * batch}


class _Source:
    """The producer's half: stamped messages, evenly spread over time and over the queues."""

    def __init__(self, address: Address, topic: str, payload: int, devices: int, rate: float, total: int, when: Window) -> None:
        self.link = Connection(address)
        self.topic, self.devices, self.rate, self.total, self.when = topic, devices, rate, total, when
        self.filler = bytes(payload - STAMP.size)
        self.number = self.answered = 0
        self.late: list[int] = []

    def due(self) -> float:
        """When the next message is to be sent (monotonic seconds)."""
        return self.when.start + self.number / self.rate

    def send_due(self) -> None:
        """Send what is due and not sent yet."""
        while self.number < self.total and (moment := self.due()) <= (now := time.monotonic()):
            body = STAMP.pack(int(moment * 1e9), self.number) + self.filler
            properties = {
                "UNIQ_KEY": _unique(),
                "TAGS": "MQ2MQTT",
                "mqttSecondTopic": f"/d{self.number % self.devices:04}",
                "qoslevel": "1",
            }
            queue = self.number % QUEUES
            self.link.sock.sendall(frame(SEND_BATCH, self.number, _send_fields(self.topic, queue), message(body, properties)))
            self.number += 1
            if moment >= self.when.begin:
                self.late.append(int((now - moment) * 1e9))

    def hear(self) -> None:
        for header, _ in self.link.read():
            if header["code"]:
                raise Wrong(f"send: code {header['code']}, {header.get('remark')}")
            self.answered += 1


def produce(ready: Callable[[], Window], *, address: Address, topic: str, payload: int, devices: int, rate: float, total: int) -> Figures:
    """Send `total` messages, `rate` a second, to the subtopics /d0000, /d0001, ... of `topic`.
    Figures: count, late (ns, due to sent), missing."""
    when = ready()
    source = _Source(address, topic, payload, devices, rate, total, when)
    while source.number < total or (source.answered < source.number and time.monotonic() < when.end + DRAIN):
        _wait(source)
        source.send_due()
    return {"count": len(source.late), "late": source.late, "missing": source.number - source.answered}


def _wait(source: _Source, consumer: socket.socket | None = None) -> bool:
    """Until something can be read or is due; select's timeout is exact to a fraction of a millisecond.
    Whether the consumer has something."""
    left = source.due() - time.monotonic() if source.number < source.total else 0.05
    ours = source.link.sock
    readable = select.select([ours, consumer] if consumer else [ours], [], [], max(0.0, left))[0]
    if ours in readable:
        source.hear()
    return consumer in readable


def relay(ready: Callable[[], Window], *, address: Address, topic: str, payload: int, rate: float, total: int) -> Figures:
    """Send `total` messages, `rate` a second, and pull them back. Figures: delay (ns, due to pulled), late (ns, due to sent), missing."""
    consumer = Connection(address)
    places = [int(consumer.call(MAX_OFFSET, {"topic": topic, "queueId": queue})[0]["extFields"]["offset"]) for queue in range(QUEUES)]

    def pull(queue: int) -> None:
        fields = {"consumerGroup": "GID_bench", "topic": topic, "queueId": queue, "queueOffset": places[queue], "maxMsgNums": 32}
        fields |= {"sysFlag": 6, "commitOffset": 0, "suspendTimeoutMillis": 15000, "subscription": "MQ2MQTT", "subVersion": 0}
        consumer.sock.sendall(frame(PULL, queue, {**fields, "expressionType": "TAG"}))

    def pulled() -> None:
        for header, body in consumer.read():
            now, queue = time.monotonic_ns(), header["opaque"]
            if header["code"] not in (0, 19, 20):  # SUCCESS, PULL_NOT_FOUND, PULL_RETRY_IMMEDIATELY
                raise Wrong(f"pull: code {header['code']}, {header.get('remark')}")
            places[queue] = int(header["extFields"]["nextBeginOffset"])
            pull(queue)
            for due, _ in _stamps(body):
                arrived.append(now - due if due >= begin else -1)

    when = ready()
    begin, arrived = int(when.begin * 1e9), list[int]()
    source = _Source(address, topic, payload, 1, rate, total, when)
    for queue in range(QUEUES):
        pull(queue)
    while source.number < total or (len(arrived) < source.number and time.monotonic() < when.end + DRAIN):
        if _wait(source, consumer.sock):
            pulled()
        source.send_due()
    delay = [value for value in arrived if value >= 0]
    return {"delay": delay, "late": source.late, "missing": source.number - len(arrived)}


def _stamps(body: bytes) -> list[tuple[int, int]]:
    """(due, number) of the messages of a pull answer: the body's length is at byte 84 of each (IPv4 hosts), the body follows."""
    found, at = [], 0
    while at < len(body):
        found.append(STAMP.unpack_from(body, at + 88))
        at += int.from_bytes(body[at : at + 4])
    return found
