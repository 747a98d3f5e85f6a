"""A minimal client of RocketMQ's remoting protocol for tests: routes, send, pull, offsets, topic creation.

JSON headers, one request at a time on each connection."""

from __future__ import annotations

import json
import re
import struct
import time
import uuid
import zlib
from collections.abc import Collection, Mapping
from itertools import count
from typing import Any, NamedTuple

import trio

GET_ROUTE, CREATE_TOPIC, PULL, SEND, SEND_BATCH, MAX_OFFSET, MIN_OFFSET = 105, 17, 11, 310, 320, 30, 31
CLUSTER_INFO = 106
SUCCESS, PULL_NOT_FOUND, PULL_RETRY, PULL_MOVED = 0, 19, 20, 21
COMPRESSED = 1
_numbers = count(1)
_turns = count()

QueueName = tuple[str, int]  # broker name, queue id


class RemotingError(Exception):
    """An answer that is no success: its code and remark."""

    def __init__(self, code: int, remark: str) -> None:
        super().__init__(f"{code}: {remark}")
        self.code = code


class StoredMessage(NamedTuple):
    """What a pull returns of one message."""

    offset: int
    body: bytes
    properties: dict[str, str]


class Answer(NamedTuple):
    code: int
    remark: str
    fields: dict[str, str]
    body: bytes


class _Connection:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.lock = trio.Lock()
        self._bytes = bytearray()

    async def ask(self, code: int, fields: Mapping[str, object], body: bytes) -> Answer:
        opaque = next(_numbers)
        texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()}
        header: dict[str, Any] = {"code": code, "language": "OTHER", "version": 0, "opaque": opaque, "flag": 0, "extFields": texts}
        raw = json.dumps(header).encode()
        await self.stream.send_all(struct.pack("!II", 4 + len(raw) + len(body), len(raw)) + raw + body)
        while True:
            answer_to, is_answer, answer = await self._receive()
            if is_answer and answer_to == opaque:
                return answer

    async def _receive(self) -> tuple[int, bool, Answer]:
        await self._fill(4)
        (size,) = struct.unpack_from("!I", self._bytes)
        await self._fill(4 + size)
        frame = bytes(self._bytes[4 : 4 + size])
        del self._bytes[: 4 + size]
        length = struct.unpack_from("!I", frame)[0] & 0xFFFFFF
        header = json.loads(frame[4 : 4 + length])
        answer = Answer(header["code"], header.get("remark") or "", header.get("extFields") or {}, frame[4 + length :])
        return header["opaque"], bool(header["flag"] & 1), answer

    async def _fill(self, size: int) -> None:
        while len(self._bytes) < size:
            data = await self.stream.receive_some(65536)
            if not data:
                raise RemotingError(-1, "the server closed the connection")
            self._bytes += data


class Remoting:
    """namesrv: "host:port"."""

    def __init__(self, namesrv: str) -> None:
        self._namesrv = namesrv
        self._connections: dict[str, _Connection] = {}

    async def close(self) -> None:
        """Close every connection."""
        for connection in self._connections.values():
            await trio.aclose_forcefully(connection.stream)

    async def create_topic(self, topic: str, queues: int, brokers: Collection[str] | None = None) -> None:
        """On every master (or those named), and wait until the name server shows it."""
        info = _json((await self._ask(self._namesrv, CLUSTER_INFO, {})).body)
        fields = {
            "topic": topic,
            "defaultTopic": "TBW102",
            "readQueueNums": queues,
            "writeQueueNums": queues,
            "perm": 6,
            "topicFilterType": "SINGLE_TAG",
            "topicSysFlag": 0,
            "order": False,
        }
        for name, broker in info["brokerAddrTable"].items():
            if brokers is None or name in brokers:
                await self._ask(broker["brokerAddrs"]["0"], CREATE_TOPIC, fields)
        with trio.fail_after(20):
            while not await self._route(topic):
                await trio.sleep(0.1)

    async def send(self, topic: str, body: bytes, properties: Mapping[str, str], compress: bool = False) -> None:
        """As ordinary SDKs do; an empty body travels in a batch of one, since 5.5.0 refuses it alone."""
        queues = await self._queues(topic)
        queue = queues[next(_turns) % len(queues)]
        named = {"UNIQ_KEY": uuid.uuid4().hex.upper(), **properties}
        encoded = "".join(f"{name}\x01{value}\x02" for name, value in named.items())
        fields: dict[str, object] = {
            "a": "test_server_app",
            "b": topic,
            "c": "TBW102",
            "d": 4,
            "e": queue[1],
            "f": COMPRESSED if compress else 0,
            "g": int(time.time() * 1000),
            "h": 0,
            "i": encoded,
            "j": 0,
            "k": False,
            "m": not body,
        }
        if body:
            await self._ask(await self._address(topic, queue[0]), SEND, fields, zlib.compress(body) if compress else body)
            return
        raw = encoded.encode()
        entry = struct.pack("!IIII", 0, 0, 0, 0) + struct.pack("!H", len(raw)) + raw
        await self._ask(await self._address(topic, queue[0]), SEND_BATCH, fields, struct.pack("!I", 4 + len(entry)) + entry)

    async def positions(self, topic: str, from_start: bool) -> dict[QueueName, int]:
        """The end of each queue, or its beginning."""
        found: dict[QueueName, int] = {}
        for queue in await self._queues(topic):
            fields = {"topic": topic, "queueId": queue[1]}
            answer = await self._ask(await self._address(topic, queue[0]), MIN_OFFSET if from_start else MAX_OFFSET, fields)
            found[queue] = int(answer.fields["offset"])
        return found

    async def pull(self, topic: str, queue: QueueName, offset: int) -> tuple[list[StoredMessage], int]:
        """Messages from `offset` on, at once, and the offset to go on at."""
        fields = {
            "consumerGroup": "test_server_app",
            "topic": topic,
            "queueId": queue[1],
            "queueOffset": offset,
            "maxMsgNums": 32,
            "sysFlag": 4,
            "commitOffset": 0,
            "suspendTimeoutMillis": 0,
            "subscription": "*",
            "subVersion": 0,
            "expressionType": "TAG",
        }
        answer = await self._ask(await self._address(topic, queue[0]), PULL, fields, good=(SUCCESS, PULL_NOT_FOUND, PULL_RETRY, PULL_MOVED))
        return (_messages(answer.body) if answer.code == SUCCESS else []), int(answer.fields["nextBeginOffset"])

    async def _route(self, topic: str) -> dict[str, Any]:
        try:
            answer = await self._ask(self._namesrv, GET_ROUTE, {"topic": topic, "acceptStandardJsonOnly": True})
        except RemotingError:
            return {}
        return _json(answer.body)

    async def _queues(self, topic: str) -> list[QueueName]:
        route = await self._route(topic)
        assert route, f"no such topic: {topic}"
        return [(data["brokerName"], number) for data in route["queueDatas"] for number in range(data["readQueueNums"])]

    async def _address(self, topic: str, broker: str) -> str:
        for data in (await self._route(topic))["brokerDatas"]:
            if data["brokerName"] == broker:
                address: str = data["brokerAddrs"]["0"]
                return address
        raise AssertionError(f"no broker {broker}")

    async def _ask(
        self, address: str, code: int, fields: Mapping[str, object], body: bytes = b"", good: tuple[int, ...] = (SUCCESS,)
    ) -> Answer:
        if address not in self._connections:
            host, _, port = address.rpartition(":")
            self._connections[address] = _Connection(await trio.open_tcp_stream(host, int(port)))
        connection = self._connections[address]
        async with connection.lock:
            answer = await connection.ask(code, fields, body)
        if answer.code not in good:
            raise RemotingError(answer.code, answer.remark)
        return answer


def _json(body: bytes) -> dict[str, Any]:
    """A name server's JSON; older ones write numbers as names without quotes."""
    value: dict[str, Any] = json.loads(re.sub(rb"([{,])(\d+):", rb'\1"\2":', body))
    return value


def _messages(body: bytes) -> list[StoredMessage]:
    found = []
    at = 0
    while at < len(body):
        (size,) = struct.unpack_from("!I", body, at)
        found.append(_message(body[at : at + size]))
        at += size
    return found


def _message(raw: bytes) -> StoredMessage:
    _, magic, _, _, _, offset, _, flags, _ = struct.unpack_from("!IiIIIqqiq", raw)
    at = 48 + (20 if flags & 16 else 8) + 8 + (20 if flags & 32 else 8) + 4 + 8
    (length,) = struct.unpack_from("!I", raw, at)
    body = raw[at + 4 : at + 4 + length]
    at += 4 + length
    if magic == -626843477:  # the second magic has a longer topic
        at += 2 + struct.unpack_from("!H", raw, at)[0]
    else:
        at += 1 + raw[at]
    (length,) = struct.unpack_from("!H", raw, at)
    pairs = raw[at + 2 : at + 2 + length].decode().split("\x02")
    properties = dict(pair.split("\x01", 1) for pair in pairs if pair)
    return StoredMessage(offset, zlib.decompress(body) if flags & COMPRESSED else body, properties)
