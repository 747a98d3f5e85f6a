"""Servers: an address that is kept connected and known to answer or not, and a broker, which is a name with addresses that may change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from gateway import observe

from . import codes
from .acl import Signer
from .connection import Connection, Lost
from .frames import Frame

HEARTBEAT = 10.0  # seconds; brokers forget a silent client after 120
CONNECT = 3.0  # seconds for a TCP connection
_PAUSE_FIRST, _PAUSE_MOST = 0.1, 3.0  # seconds between attempts
_AILING = 3.0  # seconds for which a broker that refused everything is left alone
Asked = Callable[[Frame], tuple[int, str, bytes] | None]


async def guarded(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` to its end. What it did not expect is logged, and it is begun again after a second; no task dies silently."""
    while True:
        try:
            await work()
            return
        except Exception:  # noqa: BLE001  logged with its traceback
            observe.note(observe.Fact.INTERNAL_ERROR, where=name, exc_info=True)
        await trio.sleep(1)


async def open_stream(address: str) -> trio.abc.Stream:
    """Connect to "host:port". Raises OSError, ValueError."""
    host, _, port = address.rpartition(":")
    return await trio.open_tcp_stream(host.strip("[]"), int(port))


class Endpoint:
    """One address. down: it refused, broke off or was silent, and has answered nothing since."""

    def __init__(self, address: str, signer: Signer | None, asked: Asked, heartbeat: Callable[[], bytes] | None) -> None:
        self.address = address
        self.connection: Connection | None = None
        self.down = False
        self.reason = "not connected yet"
        self.wanted_at = 0.0  # when somebody asked for it last
        self.watchers: list[Callable[[], None]] = []
        self._scope = trio.CancelScope()
        self._stopped = False
        self._signer = signer
        self._asked = asked
        self._heartbeat = heartbeat
        self._pause = 0.0
        self._ready = trio.Event()
        self._heard_at = -1.0

    async def run(self) -> None:
        """Keep a connection until cancelled, or until `stop`."""
        if self._stopped:
            return
        self._scope = trio.CancelScope()
        with self._scope:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.sleep(self._pause)
                    stream = await self._connect()
                    if stream is None:
                        continue
                    self._pause = min(max(self._pause * 2, _PAUSE_FIRST), _PAUSE_MOST)  # until it answers
                    connection = Connection(stream, self.address, self._signer, self._asked, self._heard)
                    ended = trio.Event()
                    connection.changed = lambda connection=connection, ended=ended: self._changed(connection, ended)  # type: ignore[misc]
                    nursery.start_soon(self._live, connection)
                    self.connection = connection
                    self._ready.set()
                    await ended.wait()
                    self.connection = None
                    self._ready = trio.Event()

    def stop(self) -> None:
        """End `run`: no broker has this address any more."""
        self._stopped = True
        self._scope.cancel()

    async def _connect(self) -> trio.abc.Stream | None:
        try:
            with trio.fail_after(CONNECT):
                return await open_stream(self.address)
        except trio.TooSlowError:
            self._mark_down(f"no TCP connection within {CONNECT:.0f} s")
        except (OSError, ValueError) as error:
            self._mark_down(str(error.__cause__ or error))
        self._pause = min(max(self._pause * 2, _PAUSE_FIRST), _PAUSE_MOST)
        return None

    async def _live(self, connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            if self._heartbeat is not None:
                nursery.start_soon(self._beat, connection)
            began = trio.current_time()
            reason = await connection.run()
            if not connection.retired:
                self.reason = reason
                if (self._heard_at < began and connection.unanswered) or connection.silent:
                    self._mark_down(reason)
            nursery.cancel_scope.cancel()

    async def _beat(self, connection: Connection) -> None:
        while not connection.closed:
            self.beat()
            await trio.sleep(HEARTBEAT)

    def beat(self) -> None:
        """Send a heartbeat now, if there is a connection."""
        connection = self.connection
        if self._heartbeat is not None and connection is not None and not connection.closed:
            connection.call(codes.HEART_BEAT, {}, self._heartbeat(), lambda _: None)

    def _changed(self, connection: Connection, ended: trio.Event) -> None:
        if connection.closed or connection.retired:
            ended.set()
        elif connection.silent:
            self._mark_down("it is connected but does not answer")

    def _heard(self) -> None:
        self._heard_at = trio.current_time()
        self._pause = 0.0
        if self.down:
            self.down = False
            self.reason = ""
            observe.note(observe.Fact.BACKEND_RECOVERED, server=self.address)
            self._tell()

    def _mark_down(self, reason: str) -> None:
        self.reason = reason
        if not self.down:
            self.down = True
            observe.note(observe.Fact.BACKEND_UNAVAILABLE, server=self.address, reason="unreachable", detail=reason)
            self._tell()

    def _tell(self) -> None:
        for watcher in list(self.watchers):
            watcher()

    async def request(self, code: int, fields: dict[str, str], body: bytes = b"", timeout: float = 3.0) -> Frame:
        """The answer. Raises Lost, also when there is no connection within `timeout` seconds."""
        with trio.move_on_after(timeout):
            while self.connection is None:
                await self._ready.wait()
            return await self.connection.request(code, fields, body)
        raise Lost(f"{self.address}: no answer within {timeout:g} s" + (f" ({self.reason})" if self.down else ""))

    async def connected(self) -> Connection:
        """A connection that takes requests, as soon as there is one."""
        while self.connection is None:
            await self._ready.wait()
        return self.connection


class Broker:
    """A broker name. down: its master does not answer or takes nothing at the moment; watchers are called when that changes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.addresses: dict[int, str] = {}
        self.master: Endpoint | None = None
        self.slaves: list[Endpoint] = []
        self.down = False
        self.watchers: list[Callable[[], None]] = []
        self._ailing_until = 0.0
        self._changed = trio.Event()

    @property
    def reader(self) -> Endpoint | None:
        """Whom to pull from: the master, or a slave while the master is down."""
        if self.master is None or self.master.down:
            for slave in self.slaves:
                if not slave.down:
                    return slave
        return self.master

    def place(self, addresses: dict[int, str], endpoint: Callable[[str], Endpoint]) -> None:
        """Its addresses by broker id are these now."""
        if addresses == self.addresses:
            return
        self.addresses = addresses
        for old in (self.master, *self.slaves):
            if old is not None and self.review in old.watchers:
                old.watchers.remove(self.review)
        address = addresses.get(codes.MASTER)
        self.master = endpoint(address) if address else None
        self.slaves = [endpoint(other) for id, other in sorted(addresses.items()) if id != codes.MASTER]
        for new in (self.master, *self.slaves):
            if new is not None:
                new.watchers.append(self.review)
        self.review()

    def ail(self) -> None:
        """It answered that it takes nothing now: leave it alone for some seconds."""
        self._ailing_until = trio.current_time() + _AILING
        self.review()

    def well(self) -> None:
        """It has stored something."""
        if self._ailing_until:
            self._ailing_until = 0.0
            self.review()

    def review(self) -> None:
        """Find out whether it is down; to be called now and then, since ailing ends by itself."""
        if self._ailing_until and trio.current_time() >= self._ailing_until:
            self._ailing_until = 0.0
        down = self.master is None or self.master.down or self._ailing_until > 0
        if down != self.down:
            self.down = down
            changed, self._changed = self._changed, trio.Event()
            changed.set()
            for watcher in list(self.watchers):
                watcher()

    async def up(self) -> None:
        """Wait until it is not down."""
        while self.down:
            await self._changed.wait()
