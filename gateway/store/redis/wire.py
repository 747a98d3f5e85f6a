"""Connections to Redis: requests go out in one write for each server, replies come back in order. Used by one thread (the pump's).

Nothing is executed twice: a request is sent again only when its server said that it did not execute it (NOSCRIPT, MOVED, ASK).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.retry import Retry

from gateway.store.redis import errors
from gateway.store.redis.errors import Failure
from gateway.store.redis.scripts import Script, all_scripts

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 5.0
OLDEST = (7, 0)


class Request(NamedTuple):
    """key: by which a Redis Cluster finds its server; None: any. script: what `args` calls, if it is an EVALSHA."""

    key: str | None
    args: tuple[Any, ...]
    script: Script | None


class Servers(Protocol):
    """The Redis behind the store. name: its URL without secrets."""

    name: str

    def connect(self) -> None:
        """Before each batch: a connection that is known to be good. Raises Failure."""

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Reply, ResponseError or Failure of each; never raises."""

    def samples(self) -> list[str | None]:
        """A key of each server, as far as known."""

    def guard(self, key: str) -> tuple[str, ...]:
        """What is to be said to be a key of a script, beside its keys, of which `key` is one."""

    def interrupt(self) -> None:
        """From another thread: let `exchange` end soon."""

    def close(self) -> None: ...


class Wire:
    """One connection to one server. find: its host and port. options: arguments of redis-py's connections."""

    def __init__(self, name: str, find: Callable[[], tuple[str, int]], options: Mapping[str, Any]) -> None:
        self.name = name
        self._find = find
        self._options = options
        self._connection: Any = None

    def connect(self, *, any_role: bool = False) -> None:
        """Unless it stands. any_role: a replica will do. Raises Failure."""
        if self._stands():
            return
        try:
            host, port = self._find()
            connection = connection_to(host, port, self._options)
            self._connection = connection
            connection.connect()
            self._check(any_role)
            self._load([script.text for script in all_scripts().values()])
        except (RedisError, OSError) as error:
            self.close()
            raise errors.unreachable(self.name, error) from None  # redis-py's own text may quote what it was given
        except Failure:
            self.close()
            raise

    def _stands(self) -> bool:
        connection = self._connection
        if connection is None:
            return False
        try:
            if not connection.can_read(timeout=0):
                return True
        except (RedisError, OSError):
            pass  # the server closed it while it was idle: make a new one before anything is sent
        self.close()
        return False

    def _check(self, any_role: bool) -> None:
        """That the server is new enough and a master. Raises Failure."""
        (reply,) = self._ask([("INFO",)])
        info = info_of(reply)
        version = info.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
            raise Failure(f"store {self.name}: Redis {version} is too old", "use Redis 7.0 or later", fatal=True)
        if info.get("role", "master") != "master" and not any_role:
            raise Failure(f"store {self.name}: it is a replica and takes no writes", "set store.url to the master, or to its Sentinels")

    def _load(self, texts: Sequence[str]) -> None:
        self._ask([("SCRIPT", "LOAD", text) for text in texts])

    def _ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Raises Failure, for any reply that is an error."""
        replies = self.receive(len(commands)) if (failure := self.send(commands)) is None else [failure]
        for reply in replies:
            if isinstance(reply, Failure):
                raise reply
            if isinstance(reply, Exception):
                raise errors.refused(self.name, reply) or Failure(f"store {self.name}: {reply}", "use Redis 7.0 or later", fatal=True)
        return replies

    def send(self, commands: Sequence[Sequence[Any]]) -> Failure | None:
        """In one write. None: they went out."""
        connection = self._connection
        if connection is None:
            return errors.lost(self.name, ConnectionError())
        try:
            connection.send_packed_command(connection.pack_commands(commands))
        except (RedisError, OSError) as error:
            self.close()
            return errors.lost(self.name, error)
        return None

    def receive(self, n: int) -> list[Any]:
        """The replies to the last n commands sent; a ResponseError is one, and a Failure in the place of each that did not come."""
        replies: list[Any] = []
        connection = self._connection
        try:
            while connection is not None and len(replies) < n:
                try:
                    replies.append(connection.read_response())
                except ResponseError as error:
                    replies.append(error)
        except (RedisError, OSError) as error:
            self.close()
            replies += [errors.refused(self.name, error) or errors.lost(self.name, error)] * (n - len(replies))
        replies += [errors.lost(self.name, ConnectionError())] * (n - len(replies))
        return replies

    def load_again(self, requests: Sequence[Request]) -> list[Any]:
        """These found their scripts flushed, and were not executed: load them and call again, in their order."""
        texts = list({request.script.text: None for request in requests if request.script})
        commands = [*(("SCRIPT", "LOAD", text) for text in texts), *(request.args for request in requests)]
        if (failure := self.send(commands)) is not None:
            return [failure] * len(requests)
        return self.receive(len(commands))[len(texts) :]

    def judged(self, reply: Any) -> Any:
        """A Failure when the server can't do it now; its connection is given up then if another server may be the master."""
        if not isinstance(reply, ResponseError):
            return reply
        if errors.code_of(reply) in ("READONLY", "MASTERDOWN"):
            self.close()
        return errors.not_now(self.name, reply) or reply

    def interrupt(self) -> None:
        connection = self._connection
        sock = getattr(connection, "_sock", None)  # redis-py has no public way to end a read from another thread
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(RedisError, OSError):
                connection.disconnect()


class Single:
    """One master: at a fixed address, or where Sentinels say. As `Servers`."""

    def __init__(self, wire: Wire) -> None:
        self.name = wire.name
        self._wire = wire

    def connect(self) -> None:
        self._wire.connect()

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        wire = self._wire
        if (failure := wire.send([request.args for request in requests])) is not None:
            return [failure] * len(requests)
        replies = wire.receive(len(requests))
        missing = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:
            for n, reply in zip(missing, wire.load_again([requests[n] for n in missing]), strict=True):
                replies[n] = reply
        return [wire.judged(reply) for reply in replies]

    def samples(self) -> list[str | None]:
        return [None]

    def guard(self, key: str) -> tuple[str, ...]:
        return ()

    def interrupt(self) -> None:
        self._wire.interrupt()

    def close(self) -> None:
        self._wire.close()


def connection_to(host: str, port: int, options: Mapping[str, Any]) -> Any:
    """Of redis-py, not connected yet. RESP2: replies look the same whatever its version."""
    kind = SSLConnection if "ssl_cert_reqs" in options else Connection
    return kind(
        host=host,
        port=port,
        protocol=2,
        decode_responses=False,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        **options,
    )


def info_of(reply: bytes) -> dict[str, str]:
    """The reply of INFO."""
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}
