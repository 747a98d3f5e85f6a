"""Makes `UNIQ_KEY`s in the layout of RocketMQ's own, from which its tools read host, process and time. No I/O but the clock."""

from __future__ import annotations

import os
import secrets
import socket
import time


class UniqueIds:
    """Strictly growing within a process: IPv4 (8 hex digits), process id (4), random (8), ms since the local month began (8), counter (4).

    The random part is chosen anew in each process and each month, so that neither a restart nor the next month can repeat an id.
    """

    __slots__ = ("_base", "_clock", "_host", "_last", "_month_end", "_prefix")

    def __init__(self, host: bytes | None = None, clock: object = None) -> None:
        self._clock = clock if callable(clock) else time.time
        self._host = local_address() if host is None else host
        self._begin_month()

    def _begin_month(self) -> None:
        local = time.localtime(self._clock())
        begin = time.mktime((local.tm_year, local.tm_mon, 1, 0, 0, 0, 0, 0, -1))
        year, month = (local.tm_year + 1, 1) if local.tm_mon == 12 else (local.tm_year, local.tm_mon + 1)
        self._base = int(begin * 1000)
        self._month_end = int(time.mktime((year, month, 1, 0, 0, 0, 0, 0, -1)) * 1000) - self._base
        self._prefix = self._host.hex().upper() + f"{os.getpid() & 0xFFFF:04X}" + secrets.token_hex(4).upper()
        self._last = -1

    def new(self) -> str:
        """32 hex digits."""
        ms = int(self._clock() * 1000) - self._base
        if ms >= self._month_end:
            self._begin_month()
            ms = int(self._clock() * 1000) - self._base
        number = ms << 16
        if number <= self._last:  # the same ms, or the clock went back
            number = self._last + 1
        self._last = number
        return f"{self._prefix}{number:012X}"


def local_address() -> bytes:
    """The IPv4 address this machine would use towards the world, 127.0.0.1 without a network; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1
            return socket.inet_aton(probe.getsockname()[0])
        except OSError:
            return b"\x7f\x00\x00\x01"
