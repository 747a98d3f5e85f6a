"""A device's socket: what is written arrives whole and in order, and whatever a device does to its connection ends that connection
alone."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import observe
from gateway.transports import tcp

SEND_TIMEOUT = 5.0
MUCH = b"".join(i.to_bytes(4, "big") for i in range(500_000))  # more than any socket buffer of a test machine takes at once


class Pair:
    """A transport and the device's end of it."""

    def __init__(self, flusher: tcp.Flusher) -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        self.transport = tcp.TcpTransport(near, "192.0.2.1:1", flusher)
        self.device = far

    async def read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            await trio.lowlevel.wait_readable(self.device)
            data = self.device.recv(65536)
            if not data:
                break
            found += data
        return bytes(found)

    async def read_all(self) -> bytes:
        return await self.read(1 << 40)


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    async with trio.open_nursery() as nursery:
        flusher = tcp.Flusher(SEND_TIMEOUT)
        await nursery.start(flusher.run)
        made = Pair(flusher)
        try:
            yield made
        finally:
            made.transport.free()
            made.device.close()
        nursery.cancel_scope.cancel()


async def test_writes_of_one_pass_leave_together(autojump_clock: MockClock) -> None:
    async with pair() as both:
        both.transport.write(b"one")
        both.transport.write(b"two")
        assert both.transport.buffered == 6
        await wait_all_tasks_blocked()
        assert both.transport.buffered == 0
        assert both.device.recv(100) == b"onetwo"


async def test_partial_sends_keep_every_byte_in_order() -> None:
    async with pair() as both:
        both.transport.write(MUCH)
        await wait_all_tasks_blocked()
        assert 0 < both.transport.buffered < len(MUCH)  # the socket took a part
        both.transport.write(b"behind it")
        with trio.fail_after(10):
            assert await both.read(len(MUCH) + 9) == MUCH + b"behind it"
            await wait_all_tasks_blocked()
            assert both.transport.buffered == 0
            both.transport.write(b"and on")  # the flusher has it again
            assert await both.read(6) == b"and on"


async def test_stuck_socket_ends_after_the_send_timeout(autojump_clock: MockClock) -> None:
    async with pair() as both:
        before = observe.counters().get("send_timeout", 0)
        began = trio.current_time()
        both.transport.write(MUCH)
        assert await both.transport.receive() == b""  # the reader wakes, so its link ends
        assert trio.current_time() - began == pytest.approx(SEND_TIMEOUT, abs=0.01)
        assert both.transport.buffered == 0
        assert observe.counters()["send_timeout"] == before + 1


async def test_progress_restarts_the_send_timeout(autojump_clock: MockClock) -> None:
    async with pair() as both:
        both.transport.write(MUCH)
        await wait_all_tasks_blocked()
        left = both.transport.buffered
        for _ in range(3):
            await trio.sleep(SEND_TIMEOUT * 0.9)
            await both.read(300_000)
            await wait_all_tasks_blocked()
            assert not both.transport.closed
        assert both.transport.buffered < left


async def test_close_of_a_stuck_socket_ends_nothing_else(autojump_clock: MockClock) -> None:
    """A device that reads nothing says DISCONNECT: its drain and its end both wait for the socket."""
    async with pair() as both:
        both.transport.write(MUCH)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        await both.transport.aclose()
        assert trio.current_time() - began == pytest.approx(tcp.CLOSE_SECONDS, abs=0.01)
        assert both.transport.sock.fileno() == -1


async def test_close_of_a_stuck_socket_lets_a_slow_device_read_on() -> None:
    async with pair() as both, trio.open_nursery() as nursery:
        both.transport.write(MUCH)
        await wait_all_tasks_blocked()
        nursery.start_soon(both.transport.aclose)
        with trio.fail_after(tcp.CLOSE_SECONDS):  # it sees the end at once, not when the socket is freed
            assert await both.read_all() == MUCH
        both.device.close()


async def test_close_sends_what_was_written_last() -> None:
    """A refusing CONNACK reaches the device before the end."""
    async with pair() as both, trio.open_nursery() as nursery:
        both.transport.write(b"\x20\x02\x00\x05")
        both.transport.close()
        both.transport.write(b"ignored")
        nursery.start_soon(both.transport.aclose)
        assert await both.read_all() == b"\x20\x02\x00\x05"
        both.device.close()


async def test_unread_input_does_not_reset_the_last_answer() -> None:
    async with pair() as both, trio.open_nursery() as nursery:
        both.device.send(b"more that nobody will look at")
        both.transport.write(b"last")
        nursery.start_soon(both.transport.aclose)
        assert await both.read_all() == b"last"
        both.device.close()


@pytest.mark.parametrize("end", ["close", "shut", "free"])
async def test_a_waiting_receive_ends(end: str, autojump_clock: MockClock) -> None:
    async with pair() as both:
        found: list[bytes] = []

        async def read() -> None:
            found.append(await both.transport.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            getattr(both.transport, end)()
            if end == "close":  # the device answers our end with its own
                both.device.close()
        assert found == [b""]


async def test_broken_socket_wakes_the_reader(autojump_clock: MockClock) -> None:
    async with pair() as both:
        both.device.close()
        both.transport.write(b"x")
        await wait_all_tasks_blocked()
        assert both.transport.closed
        assert both.transport.buffered == 0
        assert await both.transport.receive() == b""


async def test_free_while_it_drains(autojump_clock: MockClock) -> None:
    async with pair() as both:
        both.transport.write(MUCH)
        await wait_all_tasks_blocked()
        both.transport.free()
        both.transport.free()
        await trio.sleep(SEND_TIMEOUT * 2)  # a fault of the drain would end the flusher's nursery


class Listener:
    """A listening socket that answers from a script."""

    def __init__(self, *script: Any) -> None:
        self._script = list(script)

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        if not self._script:
            raise BlockingIOError
        found = self._script.pop(0)
        if isinstance(found, OSError):
            raise found
        return found, ("192.0.2.7", 1883)


async def _accepted(monkeypatch: pytest.MonkeyPatch, listener: Listener) -> list[str]:
    peers: list[str] = []

    async def handle(transport: tcp.TcpTransport) -> None:
        peers.append(transport.peer)
        transport.free()

    async def readable(_sock: object) -> None:
        await trio.sleep(0 if listener._script else 60)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", readable)
    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            await tcp.accept(listener, tcp.Flusher(1.0), handle, nursery)  # type: ignore[arg-type]
    return peers


@pytest.mark.parametrize("number", sorted(tcp.BUSY_ERRNOS))
async def test_no_more_files_is_said_and_waited_for(number: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    before = observe.counters().get("accept_failed", 0)
    listener = Listener(OSError(number, "busy"), socket.socket())
    assert await _accepted(monkeypatch, listener) == ["192.0.2.7:1883"]
    assert observe.counters()["accept_failed"] == before + 1


async def test_device_that_is_gone_before_accept_ends_nothing(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    reset, device = socket.socketpair()  # no TCP option can be set: reset before we looked
    listener = Listener(ConnectionAbortedError(errno.ECONNABORTED, "gone"), reset, socket.socket())
    assert await _accepted(monkeypatch, listener) == ["192.0.2.7:1883"]
    assert reset.fileno() == -1
    device.close()


async def test_a_listener_that_is_broken_is_no_secret(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    with pytest.raises(ExceptionGroup) as raised:
        await _accepted(monkeypatch, Listener(OSError(errno.EBADF, "bad")))
    assert raised.group_contains(OSError, match="bad")


async def test_port_in_use_is_an_error_with_a_cure() -> None:
    first = tcp.bind("127.0.0.1:0", 1)[0]
    try:
        port = first.getsockname()[1]
        with pytest.raises(tcp.TransportError, match=rf"127.0.0.1:{port}.*another address"):
            tcp.bind(f"127.0.0.1:{port}", 1)
    finally:
        first.close()


def test_address_that_is_none() -> None:
    with pytest.raises(tcp.TransportError, match="host:port"):
        tcp.bind("127.0.0.1:mqtt", 1)


@pytest.mark.parametrize(("address", "text"), [(("192.0.2.1", 5), "192.0.2.1:5"), (("2001:db8::1", 5, 0, 0), "[2001:db8::1]:5")])
def test_peer_name(address: tuple[Any, ...], text: str) -> None:
    assert tcp.peer_name(address) == text
