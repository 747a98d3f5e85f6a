"""MQTT's bytes over TCP: listeners, one non-blocking socket per device, and the flusher that sends what a scheduler pass has collected."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Sequence

import trio

from gateway import observe

Socket = socket.socket
RECEIVE_BYTES = 65536
ACCEPTS_ALONE = 64
CLOSE_SECONDS = 2.0  # how long a closed link may take to read our last bytes before the socket goes
BROKEN_ERRNOS = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})
BUSY_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class TransportError(Exception):
    """The address can't be bound. The text names the setting's value and the cure."""


class TcpTransport:
    """One device's socket. `write` never blocks: bytes leave with the next pass of the flusher; `buffered` counts those that did not
    yet."""

    __slots__ = ("_flusher", "_out", "_stuck", "buffered", "closed", "peer", "sock")

    def __init__(self, sock: socket.socket, peer: str, flusher: Flusher) -> None:
        self.sock = sock
        self.peer = peer
        self.buffered = 0
        self.closed = False
        self._out: list[bytes] = []
        self._stuck = False
        self._flusher = flusher

    def write(self, data: bytes) -> None:
        """Queue `data`. After `close` it is ignored."""
        if self.closed:
            return
        out = self._out
        if not out and not self._stuck:
            self._flusher.dirty(self)
        out.append(data)
        self.buffered += len(data)

    async def receive(self) -> bytes:
        """Some bytes, or b"" when the peer has closed, the connection broke or `close` was called."""
        sock = self.sock
        while not self.closed:
            try:
                await trio.lowlevel.wait_readable(sock)
                return sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError):
                return b""
        return b""

    def flush(self) -> None:
        """Send what is queued, as far as the socket takes it. Only the flusher and `close` call this."""
        out = self._out
        if not out or self._stuck:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._break()
            return
        if sent == len(data):
            out.clear()
            self.buffered = 0
            return
        self._out = [data[sent:]]
        self.buffered = len(data) - sent
        self._stuck = True
        self._flusher.stuck(self)

    async def drain(self, timeout: float) -> None:
        """Send the rest of a socket that was full; `timeout` seconds without progress end the connection."""
        while self._out:
            data = b"".join(self._out)
            with trio.move_on_after(timeout) as scope:
                try:
                    await trio.lowlevel.wait_writable(self.sock)
                    sent = self.sock.send(data)
                except BlockingIOError:
                    continue
                except (OSError, trio.ClosedResourceError):
                    self._break()
                    return
            if scope.cancelled_caught:
                observe.note(observe.Fact.SEND_TIMEOUT, client_ip=self.peer)
                self._break()
                return
            # what was written meanwhile stands behind `data` in the list
            rest = b"".join(self._out)[sent:]
            self._out = [rest] if rest else []
            self.buffered = len(rest)
        self._stuck = False

    def _break(self) -> None:
        """Nothing can be sent any more: forget it, and wake the reader."""
        self._out.clear()
        self.buffered = 0
        self._stuck = False
        self.shut()

    def shut(self) -> None:
        """End both directions at once; a waiting `receive` returns b""."""
        self.closed = True
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Send what is queued if the socket takes it, then end the connection; `aclose` frees the socket."""
        if self.closed:
            return
        self.flush()
        self.closed = True
        if not self._stuck:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    async def aclose(self) -> None:
        """Free the socket. The peer gets a moment to read our last bytes: closing with unread input would reset the connection."""
        self.close()
        with trio.move_on_after(CLOSE_SECONDS):
            try:
                if self._stuck:  # `drain` waits for the socket, and only one task may
                    while self._stuck:
                        await trio.sleep(0.02)
                    self.sock.shutdown(socket.SHUT_WR)
                while True:
                    await trio.lowlevel.wait_readable(self.sock)
                    if not self.sock.recv(RECEIVE_BYTES):
                        break
            except (OSError, trio.ClosedResourceError):
                pass
        self.free()

    def free(self) -> None:
        """Close the socket without a wait (also the end of `aclose`, and of a task that is being cancelled)."""
        if self.sock.fileno() < 0:
            return
        self.closed = True
        self._out.clear()
        self.buffered = 0
        trio.lowlevel.notify_closing(self.sock)
        self.sock.close()


class Flusher:
    """Sends, once per scheduler pass, everything that links have written since the last one (design section 8)."""

    def __init__(self, send_timeout: float) -> None:
        self._send_timeout = send_timeout
        self._dirty: list[TcpTransport] = []
        self._lot = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery | None = None

    def dirty(self, transport: TcpTransport) -> None:
        """`transport` has bytes to send."""
        if not self._dirty:
            self._lot.unpark()
        self._dirty.append(transport)

    def stuck(self, transport: TcpTransport) -> None:
        """The socket of `transport` is full: a task of its own drains it."""
        if self._nursery is not None:
            self._nursery.start_soon(transport.drain, self._send_timeout)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    if self._dirty:
                        await trio.lowlevel.checkpoint()
                    else:
                        await self._lot.park()
                    batch, self._dirty = self._dirty, []
                    for transport in batch:
                        transport.flush()
            finally:
                for transport in self._dirty:
                    transport.flush()
                self._nursery = None


def bind(address: str, backlog: int) -> list[socket.socket]:
    """Listening sockets for "host:port" (one for each address that the host name has). Raises TransportError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    sockets: list[socket.socket] = []
    try:
        infos = socket.getaddrinfo(host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, proto, _name, where in infos:
            sock = socket.socket(family, kind, proto)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(where)
            sock.listen(backlog)
            sock.setblocking(False)
    except (OSError, ValueError) as error:
        for sock in sockets:
            sock.close()
        cure = "end the program that holds the port, or set another address" if isinstance(error, OSError) else "write it as host:port"
        raise TransportError(f"can't listen on {address!r}: {error}; {cure}") from error
    return sockets


def peer_name(address: Sequence[object]) -> str:
    """ "ip:port", with brackets around an IPv6 address."""
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def accept(
    listener: socket.socket,
    flusher: Flusher,
    handle: Callable[[TcpTransport], Awaitable[None]],
    nursery: trio.Nursery,
    at_once: int = ACCEPTS_ALONE,
) -> None:
    """Accept devices until cancelled; each is `handle`d in a task of `nursery`. at_once: how many before other tasks, and other
    processes that have the same listener, get their turn."""
    while True:
        try:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(at_once):  # a connect storm must not starve the connections that are there
                sock, address = listener.accept()
                sock.setblocking(False)
                try:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                except OSError:  # reset before we looked
                    sock.close()
                    continue
                nursery.start_soon(handle, TcpTransport(sock, peer_name(address), flusher))
        except BlockingIOError:
            continue
        except ConnectionError:
            continue
        except OSError as error:
            if error.errno in BROKEN_ERRNOS:
                raise
            # accept(2) also tells errors of the new connection's network
            cure = "raise the limit of open files (ulimit -n)" if error.errno in BUSY_ERRNOS else "see what the network or a firewall does"
            observe.note(observe.Fact.ACCEPT_FAILED, error=str(error), cure=cure)
            await trio.sleep(0.1)
