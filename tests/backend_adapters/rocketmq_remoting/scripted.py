"""A name server and brokers in memory, on trio's own clock: they can be told to refuse, to freeze, to break off and to say anything."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from backend_adapters.rocketmq_remoting import RocketMQ, codes, endpoints
from backend_adapters.rocketmq_remoting.frames import ANSWER, ONE_WAY, Decoder, Frame, encode
from backend_adapters.rocketmq_remoting.messages import decode_properties
from gateway.ports import BackendError, Message, Properties, Queue, Receipt, Received

NAMESRV = "namesrv:9876"
Answer = tuple[int, str, dict[str, str], bytes]  # code, remark, fields, body


class Server:
    """One address. hook: asked first; an answer of its own, or None for the usual one, or `SILENCE`."""

    SILENCE: Answer = (-1, "", {}, b"")

    def __init__(self, address: str) -> None:
        self.address = address
        self.refusing = False  # connections
        self.frozen = False
        self.asked: list[Frame] = []
        self.hook: Callable[[Frame], Answer | None] = lambda frame: None
        self.streams: list[trio.testing.MemoryReceiveStream | trio.abc.Stream] = []
        self._thaw = trio.Event()
        self._turn = trio.Lock()

    def freeze(self) -> None:
        """SIGSTOP: what comes is kept, nothing is answered."""
        self.frozen = True
        self._thaw = trio.Event()

    def thaw(self) -> None:
        self.frozen = False
        self._thaw.set()

    async def kill(self) -> None:
        """SIGKILL: connections break, new ones are refused."""
        self.refusing = True
        await self.break_off()

    async def break_off(self) -> None:
        streams, self.streams = self.streams, []
        for stream in streams:
            await trio.aclose_forcefully(stream)

    def count(self, code: int) -> int:
        return sum(frame.code == code for frame in self.asked)

    async def say(self, code: int, fields: dict[str, str], body: bytes = b"", flag: int = 0, opaque: int = 1) -> None:
        """A request of the server's own."""
        stream = self.streams[-1]
        assert isinstance(stream, trio.StapledStream)
        await stream.send_all(encode(code, opaque, flag, fields, len(body)) + body)

    async def serve(self, stream: trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]) -> None:
        self.streams.append(stream)
        decoder = Decoder()
        try:
            async with trio.open_nursery() as nursery:
                while data := await stream.receive_some():
                    while self.frozen:
                        await self._thaw.wait()
                    for frame in decoder.feed(bytes(data)):
                        self.asked.append(frame)
                        if not frame.flag & ANSWER:
                            nursery.start_soon(self._answer, stream, frame)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer(self, stream: trio.abc.SendStream, frame: Frame) -> None:
        answer = self.hook(frame) or await self.answer(frame)
        if answer is self.SILENCE or frame.flag & ONE_WAY:
            return
        code, remark, fields, body = answer
        async with self._turn:
            await stream.send_all(encode(code, frame.opaque, ANSWER, fields, len(body), remark) + body)

    async def answer(self, frame: Frame) -> Answer:
        return codes.SUCCESS, "", {}, b""


class Broker(Server):
    """Stores batches in lists, and lets them be pulled."""

    def __init__(self, name: str, address: str, queues: int) -> None:
        super().__init__(address)
        self.name = name
        self.queues: dict[int, list[tuple[dict[str, str], bytes]]] = {id: [] for id in range(queues)}
        self.committed: dict[int, int] = {}
        self.permission = 6
        self.slaves: list[Broker] = []
        self._more = trio.Event()

    @property
    def addresses(self) -> dict[str, str]:
        return {str(id): each.address for id, each in enumerate((self, *self.slaves))}

    async def answer(self, frame: Frame) -> Answer:
        fields = frame.fields
        if int(fields.get("queueId", fields.get("e", "0"))) not in self.queues:
            return codes.INVALID_PARAMETER, "request queueId is illegal", {}, b""
        if frame.code == codes.SEND_BATCH_MESSAGE:
            queue = self.queues[int(fields["e"])]
            offset = len(queue)
            queue += parse_batch(frame.body)
            self.tell()
            return codes.SUCCESS, "", {"msgId": "x", "queueId": fields["e"], "queueOffset": str(offset)}, b""
        if frame.code == codes.PULL_MESSAGE:
            return await self._pull(fields)
        if frame.code == codes.GET_MAX_OFFSET:
            return codes.SUCCESS, "", {"offset": str(len(self.queues[int(fields["queueId"])]))}, b""
        if frame.code in (codes.GET_MIN_OFFSET, codes.SEARCH_OFFSET_BY_TIMESTAMP):
            return codes.SUCCESS, "", {"offset": "0"}, b""
        if frame.code == codes.QUERY_CONSUMER_OFFSET:
            offset = self.committed.get(int(fields["queueId"]), -1)
            return (codes.SUCCESS if offset >= 0 else codes.QUERY_NOT_FOUND), "", {"offset": str(offset)}, b""
        if frame.code == codes.UPDATE_CONSUMER_OFFSET:
            table = self.committed or {}
            table[int(fields["queueId"])] = int(fields["commitOffset"])
            if table is not self.committed:  # as the real one: a group's first offsets, told together, replace each other
                await trio.sleep(0.001)
                self.committed = table
        return codes.SUCCESS, "", {}, b""

    def tell(self) -> None:
        """Wake held pulls."""
        self._more.set()
        self._more = trio.Event()

    async def _pull(self, fields: dict[str, str]) -> Answer:
        queue, position = self.queues[int(fields["queueId"])], int(fields["queueOffset"])
        wanted = set(fields["subscription"].split(" || "))
        with trio.move_on_after(int(fields["suspendTimeoutMillis"]) / 1000):
            while len(queue) <= position:
                await self._more.wait()
        found = queue[position : position + 32]
        following = {"nextBeginOffset": str(position + len(found)), "minOffset": "0", "maxOffset": str(len(queue))}
        if position > len(queue):
            return codes.PULL_OFFSET_MOVED, "OFFSET_OVERFLOW_BADLY", {**following, "nextBeginOffset": str(len(queue))}, b""
        matching = [
            stored_bytes(position + at, properties, body)
            for at, (properties, body) in enumerate(found)
            if "*" in wanted or properties.get("TAGS") in wanted
        ]
        if matching:
            return codes.SUCCESS, "FOUND", following, b"".join(matching)
        return (codes.PULL_RETRY_IMMEDIATELY if found else codes.PULL_NOT_FOUND), "", following, b""

    def bodies(self, queue: int | None = None) -> list[bytes]:
        ids = self.queues if queue is None else [queue]
        return [body for id in ids for _, body in self.queues[id]]


class Cluster:
    """A name server and its brokers. registered: brokers that the name server knows; topics: the topics it knows of."""

    def __init__(self, brokers: int = 1, queues: int = 2) -> None:
        self.brokers = [Broker(f"broker-{id}", f"broker{id}:10911", queues) for id in range(brokers)]
        self.registered = list(self.brokers)
        self.topics = {"topic"}
        self.url = f"rocketmq://{NAMESRV}"
        self.namesrv = Server(NAMESRV)
        self.namesrv.hook = self._name
        self.backend: RocketMQ

    def _name(self, frame: Frame) -> Answer | None:
        if frame.code == codes.GET_CLUSTER_INFO:
            table = {each.name: {"brokerAddrs": {"0": each.address}} for each in self.registered}
            return codes.SUCCESS, "", {}, json.dumps({"brokerAddrTable": table}).encode()
        if frame.code != codes.GET_ROUTE:
            return codes.NOT_SUPPORTED, "", {}, b""
        if frame.fields["topic"] not in self.topics or not self.registered:
            return codes.TOPIC_NOT_EXIST, "No topic route info", {}, b""
        route = {
            "brokerDatas": [{"brokerName": each.name, "brokerAddrs": each.addresses} for each in self.registered],
            "queueDatas": [
                {"brokerName": each.name, "perm": each.permission, "readQueueNums": len(each.queues), "writeQueueNums": len(each.queues)}
                for each in self.registered
            ],
        }
        return codes.SUCCESS, "", {}, json.dumps(route).encode()

    @asynccontextmanager
    async def running(self, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> AsyncIterator[RocketMQ]:
        async with trio.open_nursery() as servers:

            async def connect(address: str) -> trio.abc.Stream:
                await trio.lowlevel.checkpoint()
                server = next(
                    (
                        each
                        for each in (self.namesrv, *self.brokers, *(slave for each in self.brokers for slave in each.slaves))
                        if each.address == address
                    ),
                    None,
                )
                if server is None or server.refusing:
                    raise OSError(f"{address}: connection refused")
                ours, theirs = trio.testing.memory_stream_pair()
                servers.start_soon(server.serve, theirs)
                return ours

            monkeypatch.setattr(endpoints, "open_stream", connect)
            self.backend = RocketMQ.open(self.url, **limits)
            async with trio.open_nursery() as nursery:
                await nursery.start(lambda task_status: self.backend.run(task_status=task_status))
                yield self.backend
                nursery.cancel_scope.cancel()
            servers.cancel_scope.cancel()


class Outcomes:
    """What became of the messages that `send` submitted, in the order in which `done` was called."""

    def __init__(self, backend: RocketMQ) -> None:
        self.backend = backend
        self.all: list[tuple[bytes, Receipt | BackendError]] = []

    def send(self, body: bytes, key: str = "key", *, topic: str = "topic", tag: str = "T", ordered: bool = False) -> str:
        id = self.backend.new_id()
        message = Message(topic, body, tag, Properties(), key, id, ordered)
        self.backend.submit(message, lambda outcome: self.all.append((body, outcome)))
        return id

    @property
    def bodies(self) -> list[bytes]:
        return [body for body, _ in self.all]

    async def until(self, many: int, seconds: float = 120) -> None:
        with trio.fail_after(seconds):
            while len(self.all) < many:
                await trio.sleep(0.01)


class Listener:
    """Remembers; holds what `hold` names."""

    def __init__(self, hold: Callable[[Received], bool] = lambda _: False) -> None:
        self.hold = hold
        self.messages: list[Received] = []
        self.assigned_at: dict[Queue, int] = {}
        self.gone: list[Queue] = []

    def assigned(self, queue: Queue, position: int) -> None:
        self.assigned_at[queue] = position

    def revoked(self, queue: Queue) -> None:
        self.gone.append(queue)

    async def received(self, messages: list[Received]) -> None:
        self.messages += messages
        for message in messages:
            if self.hold(message):
                message.hold()
        await trio.lowlevel.checkpoint()

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.messages]

    async def until(self, many: int, seconds: float = 120) -> None:
        await self.when(lambda: len(self.messages) >= many, seconds)

    async def when(self, true: Callable[[], bool], seconds: float = 120) -> None:
        with trio.fail_after(seconds):
            while not true():
                await trio.sleep(0.01)


def parse_batch(data: bytes) -> list[tuple[dict[str, str], bytes]]:
    messages: list[tuple[dict[str, str], bytes]] = []
    while data:
        total, _, _, _, size = struct.unpack_from(">iiiii", data)
        messages.append((decode_properties(data[20 + size + 2 : total]), data[20 : 20 + size]))
        data = data[total:]
    return messages


def stored_bytes(offset: int, properties: dict[str, str], body: bytes, flags: int = 0) -> bytes:
    wire = "".join(f"{name}\x01{value}\x02" for name, value in properties.items()).encode()
    tail = struct.pack(">i", len(body)) + body + b"\5topic" + struct.pack(">h", len(wire)) + wire
    head = struct.pack(">IIiiqqiq", 0xDAA320A7, 0, 0, 0, offset, 0, flags, 1) + bytes(8) + struct.pack(">q", 2) + bytes(8 + 12)
    return struct.pack(">i", 4 + len(head) + len(tail)) + head + tail
