"""Many client sockets of one process: opened in groups, waited for with microseconds' precision."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from tests.bench import wire

Address = tuple[str, int]
PATIENCE = 60.0  # seconds for a group of connections to be accepted: ends a run against a dead server
GROUP = 100  # connections opened at once: below any listen backlog
_LOW = os.open(os.devnull, os.O_RDONLY)  # a number that select can take, reserved before thousands of sockets are opened
PORTS_PER_ADDRESS = 4000  # connections from one loopback address, so that ephemeral ports never run out


class Refused(Exception):
    """The server did not accept what the load needs: the run is void."""


class Link:
    """A connected client. index: its number in its process. pos: place (bytes) in a ring of acknowledgements. rest: the beginning of a
    packet that was cut."""

    __slots__ = ("fd", "index", "pos", "recv", "rest", "send", "sock")

    def __init__(self, sock: socket.socket, index: int) -> None:
        self.sock = sock
        self.index = index
        self.fd = sock.fileno()
        self.recv = sock.recv
        self.send = sock.send
        self.pos = 0
        self.rest = b""


def _chunks(items: Iterable[bytes]) -> Iterator[list[bytes]]:
    walk = iter(items)
    while chunk := list(islice(walk, GROUP)):
        yield chunk


def open_links(address: Address, hellos: Iterable[bytes], spread: int = 0) -> list[Link]:
    """Connect and introduce one client per CONNECT of `hellos`. spread: offset into 127.0.0.x, different for each process.
    Raises Refused, OSError."""
    links: list[Link] = []
    for chunk in _chunks(hellos):
        group = []
        for index in range(len(links), len(links) + len(chunk)):
            sock = socket.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind((f"127.0.0.{2 + spread * 8 + index // PORTS_PER_ADDRESS}", 0))
            sock.settimeout(PATIENCE)
            sock.connect(address)
            group.append(Link(sock, index))
        ask(group, chunk, wire.CONNACK)
        links += group
    for link in links:
        link.sock.setblocking(False)
    return links


def ask(links: Sequence[Link], requests: Sequence[bytes], answer: bytes) -> None:
    """Send each link its request and wait for `answer` on each. Raises Refused."""
    for link, request in zip(links, requests, strict=True):
        link.sock.settimeout(PATIENCE)
        link.sock.sendall(request)
    for link in links:
        got = b""
        while len(got) < len(answer):
            more = link.recv(len(answer) - len(got))
            if not more:
                raise Refused(f"connection closed instead of {answer.hex(' ')}")
            got += more
        if got != answer:
            raise Refused(f"{got.hex(' ')} instead of {answer.hex(' ')}")
        link.sock.setblocking(False)


def subscribe_all(links: Sequence[Link], filters: Sequence[str], qos: int) -> None:
    """One SUBSCRIBE for each link, in groups. Raises Refused."""
    for start in range(0, len(links), GROUP):
        group = slice(start, start + GROUP)
        ask(links[group], [wire.subscribe(name, qos) for name in filters[group]], wire.suback(qos))


def close_all(links: Iterable[Link]) -> None:
    """DISCONNECT and close, whatever state they are in."""
    for link in links:
        try:
            link.send(wire.DISCONNECT)
        except OSError:
            pass  # the server was first
        link.sock.close()


class Watch:
    """An epoll set whose timeouts are exact to about 0.1 ms (epoll's own are whole milliseconds). One at a time in a process."""

    def __init__(self, links: Iterable[Link]) -> None:
        self._epoll = select.epoll()
        self._fd = os.dup2(self._epoll.fileno(), _LOW, inheritable=False)
        self.by_fd = {link.fd: link for link in links}
        for fd in self.by_fd:
            self._epoll.register(fd, select.EPOLLIN)

    def ready(self, until: float) -> list[Link]:
        """Links with something to read; waits until the monotonic time `until` at most, exactly."""
        events = self._epoll.poll(0, 512)
        if not events:
            left = until - time.monotonic()
            if left <= 0:
                return []
            select.select([self._fd], [], [], left)
            events = self._epoll.poll(0, 512)
        by_fd = self.by_fd
        return [by_fd[fd] for fd, _ in events]

    def busy(self) -> list[Link]:
        """Links with something to read; waits about 20 ms at most. For floods: fewer system calls."""
        by_fd = self.by_fd
        return [by_fd[fd] for fd, _ in self._epoll.poll(0.02, 512)]

    def close(self) -> None:
        self._epoll.close()


def receive(link: Link) -> bytes:
    """What is there to read, up to 64 KiB (more makes malloc dear); b"" when nothing is. Raises Refused when the server closed."""
    try:
        data = link.recv(65536)
    except BlockingIOError:
        return b""
    if not data:
        raise Refused("the server closed a connection under load")
    return data


def send_all(link: Link, data: bytes) -> None:
    """Send to a link whose unread data always fits its socket buffers. Raises Refused when the server stopped reading."""
    if link.send(data) != len(data):
        raise Refused("the server stopped reading")
