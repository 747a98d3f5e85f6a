"""A small MQTT 3.1.1 device on trio, on the gateway's own codec: connect, publish and wait for the acknowledgement, subscribe and read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import cycle

import trio

from gateway.mqtt import codec
from gateway.mqtt.packets import (
    SUBACK_FAILURE,
    ConnAck,
    Connect,
    ConnectCode,
    Disconnect,
    Level,
    Packet,
    PingReq,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
)
from gateway.tools.running import ToolError

LARGEST = 268_435_455
KEEP_ALIVE = 60  # seconds
PATIENCE = 15.0  # seconds for an answer

_REFUSED = {
    ConnectCode.BAD_LEVEL: "the gateway does not speak MQTT 3.1.1",
    ConnectCode.BAD_IDENTIFIER: "the Client ID is refused; in strict mode it is <GroupID>@@@<DeviceID>, at most 64 characters",
    ConnectCode.UNAVAILABLE: "the gateway can't take connections now; see `mqtt-gateway check`, or its quota of connections",
    ConnectCode.BAD_CREDENTIALS: "wrong user name or password; choose the account with --account, or give the gateway's --config",
    ConnectCode.NOT_AUTHORIZED: "the group was never created or belongs to another account; add it to the account's groups",
}


class Device:
    """One connection. What it reads is handled by the task that `connected` runs."""

    def __init__(self, stream: trio.SocketStream, server: str, on_message: Callable[[Publish], Awaitable[None]]) -> None:
        self._stream = stream
        self._server = server
        self._on_message = on_message
        self._decoder = codec.Decoder(max_packet=LARGEST + 5, max_payload=LARGEST)
        self._lock = trio.Lock()
        self._ids = cycle(range(1, 65536))
        self._answers: dict[tuple[type[Packet], int], trio.MemorySendChannel[Packet]] = {}
        self._received: set[int] = set()  # QoS 2 ids between PUBLISH and PUBREL
        self._leaving = False

    async def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Send, and wait until the gateway has acknowledged it; QoS 0 only sends. Raises ToolError."""
        packet_id = next(self._ids) if qos else 0
        packet = Publish(topic, payload, qos, retain, packet_id=packet_id)
        if qos == 0:
            await self._send(packet)
        elif qos == 1:
            await self._ask(packet, PubAck, packet_id)
        else:
            await self._ask(packet, PubRec, packet_id)
            await self._ask(PubRel(packet_id), PubComp, packet_id)

    async def subscribe(self, filters: list[str], qos: int) -> None:
        """Raises ToolError naming the filters that are refused."""
        packet_id = next(self._ids)
        answer = await self._ask(Subscribe(packet_id, [(one, qos) for one in filters]), SubAck, packet_id)
        assert isinstance(answer, SubAck)
        refused = [one for one, code in zip(filters, answer.codes, strict=False) if code == SUBACK_FAILURE]
        if refused:
            raise ToolError(f"refused: {', '.join(refused)}. Its first level must be a bridged topic; see limits for length and number.")

    async def connect(self, connect: Connect) -> bool:
        """CONNECT; whether a session was present. Raises ToolError when it is refused."""
        answer = await self._ask(connect, ConnAck, 0)
        assert isinstance(answer, ConnAck)
        if answer.code:
            text = _REFUSED.get(answer.code, "for an unknown reason")  # type: ignore[call-overload]
            raise ToolError(f"{self._server} refused the connection (code {answer.code}): {text}.")
        return answer.session_present

    async def run(self) -> None:
        """Read and answer until the connection ends. Raises ToolError when the gateway ends it."""
        while True:
            try:
                data = await self._stream.receive_some(1 << 16)
            except trio.BrokenResourceError:
                data = b""
            if not data and self._leaving:
                return
            if not data:
                raise ToolError(f"{self._server} closed the connection: what was sent is not allowed, or it stops; its log has the reason.")
            for packet in self._decoder.feed(data):
                await self._handle(packet)
            if self._decoder.error is not None:
                raise ToolError(f"{self._server} sent what is no MQTT: {self._decoder.error}")

    async def ping(self) -> None:
        """Keep the connection alive for ever."""
        while True:
            await trio.sleep(KEEP_ALIVE / 2)
            await self._send(PingReq())

    async def disconnect(self) -> None:
        """Say goodbye; a will is discarded."""
        self._leaving = True
        await self._send(Disconnect())

    async def _handle(self, packet: Packet) -> None:
        match packet:
            case Publish(qos=0):
                await self._on_message(packet)
            case Publish(qos=1):
                await self._on_message(packet)
                await self._send(PubAck(packet.packet_id))
            case Publish():
                if packet.packet_id not in self._received:
                    self._received.add(packet.packet_id)
                    await self._on_message(packet)
                await self._send(PubRec(packet.packet_id))
            case PubRel():
                self._received.discard(packet.packet_id)
                await self._send(PubComp(packet.packet_id))
            case _:
                self._leaving = isinstance(packet, ConnAck) and packet.code != 0  # the end that follows is no news
                waiting = self._answers.pop((type(packet), getattr(packet, "packet_id", 0)), None)
                if waiting is not None:
                    waiting.send_nowait(packet)

    async def _ask(self, packet: Packet, kind: type[Packet], packet_id: int) -> Packet:
        send, receive = trio.open_memory_channel[Packet](1)
        self._answers[kind, packet_id] = send
        await self._send(packet)
        with trio.move_on_after(PATIENCE):
            return await receive.receive()
        raise ToolError(f"{self._server} did not acknowledge within {PATIENCE:.0f} s; `mqtt-gateway check` tells which server is missing.")

    async def _send(self, packet: Packet) -> None:
        try:
            async with self._lock:
                await self._stream.send_all(codec.encode(packet))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            if not self._leaving:
                await trio.sleep_forever()  # `run` reads the end and tells it
        except ValueError as error:
            raise ToolError(f"MQTT can not carry this: {error}") from None


async def _ignore(_: Publish) -> None:
    """For a device that subscribes nothing."""


@asynccontextmanager
async def connected(
    host: str, port: int, connect: Connect, on_message: Callable[[Publish], Awaitable[None]] = _ignore
) -> AsyncIterator[Device]:
    """A connected device, kept alive. Raises ToolError."""
    server = f"{host}:{port}"
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        raise ToolError(f"no gateway answers on {server} ({error}). Start it with `mqtt-gateway serve`, or give --server.") from None
    async with stream:
        device = Device(stream, server, on_message)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.run)
            await device.connect(connect)
            nursery.start_soon(device.ping)
            try:
                yield device
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await device.disconnect()
            nursery.cancel_scope.cancel()


def connect_packet(client_id: str, username: str | None, password: str | None, *, clean: bool) -> Connect:
    """A CONNECT without a will."""
    return Connect(Level.V311, client_id, clean, KEEP_ALIVE, None, username, None if password is None else password.encode())
