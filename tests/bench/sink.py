"""The other end for the generator's own ceiling: a process that accepts clients, acknowledges every PUBLISH unread, and copies what is
published to a fan-out topic to every subscriber. It stores, checks and routes nothing.

    python -m tests.bench.sink PORT
"""

from __future__ import annotations

import gc
import select
import socket
import sys
from typing import Any

from tests.bench import wire


class _Peer:
    """One accepted client. size: of its PUBLISHes, 0 until the first came. audience: where they are copied to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.greeted = False
        self.listens = False
        self.size = 0
        self.qos = 0
        self.copied = False
        self.bytes = 0
        self.acks = b""


class Sink:
    """A server on one epoll set."""

    def __init__(self, port: int) -> None:
        self.door = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.door.setblocking(False)
        self.epoll = select.epoll()
        self.epoll.register(self.door.fileno(), select.EPOLLIN)
        self.peers: dict[int, _Peer] = {}
        self.audience: list[_Peer] = []

    def serve(self) -> None:
        """For ever."""
        door, peers = self.door.fileno(), self.peers
        while True:
            for fd, _ in self.epoll.poll(-1, 512):
                if fd == door:
                    self._accept()
                    continue
                peer = peers[fd]
                try:
                    data = peer.sock.recv(65536)
                except ConnectionError:
                    data = b""
                if not data or data == wire.DISCONNECT:
                    self._forget(fd, peer)
                elif peer.size:
                    self._publishes(peer, data)
                elif not peer.listens:
                    self._hello(peer, data)

    def _accept(self) -> None:
        sock = self.door.accept()[0]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.peers[sock.fileno()] = _Peer(sock)
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def _forget(self, fd: int, peer: _Peer) -> None:
        self.epoll.unregister(fd)
        del self.peers[fd]
        if peer.listens:
            self.audience.remove(peer)
        peer.sock.close()

    def _hello(self, peer: _Peer, data: bytes) -> None:
        if not peer.greeted:
            peer.greeted = True
            peer.sock.send(wire.CONNACK)
        elif data[0] == 0x82:
            peer.listens = True
            self.audience.append(peer)
            peer.sock.send(wire.suback(data[-1]))
        elif data[0] & 0xF0 == 0x30:
            peer.size = 2 + data[1] if data[1] < 128 else 3 + (data[1] & 0x7F) + (data[2] << 7)
            peer.qos = data[0] >> 1 & 3
            peer.copied = b"-fan" in data[:64]
            peer.acks = wire.puback_ring(wire.RING)
            self._publishes(peer, data)

    def _publishes(self, peer: _Peer, data: bytes) -> None:
        if peer.copied:
            for listener in self.audience:
                listener.sock.send(data)
        if peer.qos:
            place = peer.bytes // peer.size
            peer.bytes += len(data)
            count = peer.bytes // peer.size - place
            place %= wire.RING
            peer.sock.send(peer.acks[place * 4 : (place + count) * 4])


def main(arguments: list[str]) -> Any:
    gc.disable()
    Sink(int(arguments[1])).serve()


if __name__ == "__main__":
    main(sys.argv)
