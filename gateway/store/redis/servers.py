"""`store.url` for Redis: what it says, how it is shown without its secrets, and the servers behind it.

redis://[user:password@]host[:6379][/db]                    one server; rediss: with TLS (?ca=PATH, ?verify=0)
redis+sentinel://[user:password@]host[:26379],.../service[/db]   the master that Sentinels name; rediss+sentinel: TLS to all
redis+cluster://[user:password@]host[:6379],...             a Redis Cluster; rediss+cluster: with TLS
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

from redis.exceptions import RedisError, ResponseError

from gateway.ports import StoreError
from gateway.store.redis import errors
from gateway.store.redis.slots import Sharded
from gateway.store.redis.wire import Servers, Single, Wire, connection_to

FORMS = "redis://host:6379/0, redis+sentinel://host:26379,host2:26379/service/0 or redis+cluster://host:6379,host2:6379 (rediss for TLS)"


@dataclass(frozen=True, slots=True)
class Address:
    """kind: "", "sentinel" or "cluster". service: the name of the master, for Sentinels. ca: a file of certificates, "" the system's."""

    kind: str
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    service: str
    db: int
    user: str
    password: str = field(repr=False)
    ca: str
    verify: bool

    def shown(self) -> str:
        """As a URL without secrets, for messages."""
        scheme = ("rediss" if self.tls else "redis") + (f"+{self.kind}" if self.kind else "")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        path = f"/{self.service}" if self.service else ""
        return f"{scheme}://{hosts}{path}/{self.db}"

    def options(self) -> dict[str, Any]:
        """Arguments of redis-py's connections, but for host and port."""
        given: dict[str, Any] = {"db": self.db, "username": self.user or None, "password": self.password or None}
        given["client_name"] = "mqtt-gateway"
        if self.tls:
            given |= {"ssl_cert_reqs": "required" if self.verify else "none", "ssl_check_hostname": self.verify}
            given |= {"ssl_ca_certs": self.ca} if self.ca else {}
        return given


def parse(url: str) -> Address:
    """Raises StoreError, without what may be a secret."""
    scheme, separator, rest = url.partition("://")
    base, _, kind = scheme.partition("+")
    if not separator or base not in ("redis", "rediss") or kind not in ("", "sentinel", "cluster") or scheme.endswith("+"):
        raise _bad(f"the scheme {scheme[:20]!r} is unknown" if separator else "it has no scheme")
    rest, _, query = rest.partition("?")
    credentials, _, place = rest.rpartition("@")
    hosts, _, path = place.partition("/")
    user, colon, password = credentials.partition(":")
    if credentials and not colon:
        raise _bad("before the @ stand a user name, a colon and a password (or only :password)")
    options = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    ca, verify = options.pop("ca", ""), options.pop("verify", "1")
    if options or verify not in ("0", "1"):
        raise _bad("only ?ca=PATH and ?verify=0 may follow")
    if (ca or verify == "0") and base != "rediss":
        raise _bad("?ca and ?verify are for rediss")
    service, db = _path(path, kind)
    port = 26379 if kind == "sentinel" else 6379
    found = tuple(_host(one, port) for one in hosts.split(","))
    if len(found) > 1 and not kind:
        raise _bad("several hosts need redis+sentinel or redis+cluster")
    return Address(kind, base == "rediss", found, service, db, unquote(user), unquote(password), ca, verify == "1")


def _path(path: str, kind: str) -> tuple[str, int]:
    """(service, db)"""
    parts = [unquote(part) for part in path.split("/")] if path else []
    service = parts.pop(0) if kind == "sentinel" and parts else ""
    if kind == "sentinel" and not service:
        raise _bad("the name of the master is missing after the Sentinels")
    db = parts.pop(0) if parts else ""
    if parts or (db and not db.isascii()) or (db and not db.isdigit()):
        raise _bad("the database is a number")
    if kind == "cluster" and int(db or 0):
        raise _bad("a Redis Cluster has database 0 only")
    return service, int(db or 0)


def _host(text: str, port: int) -> tuple[str, int]:
    host, colon, given = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, given = text, ""
    host = host.removeprefix("[").removesuffix("]")
    if not host or (given and not (given.isascii() and given.isdigit() and 0 < int(given) < 65536)) or (colon and not given):
        raise _bad("a host is missing, or its port is no number from 1 to 65535")
    return host, int(given or port)


def _bad(why: str) -> StoreError:
    return StoreError(f"store.url: {why}; write it as {FORMS}; percent-encode what is special in a password")


def shown(url: str) -> str:
    """The URL without secrets; "redis" when it is not readable."""
    try:
        return parse(url).shown()
    except StoreError:
        return "redis"


def servers_of(address: Address) -> Servers:
    """Not connected yet; one for each thread."""
    options = address.options()
    name = address.shown()
    if address.kind == "cluster":
        return Sharded(name, address.hosts, options)
    if address.kind == "sentinel":
        return Single(Wire(name, _sentinels(address, options), options))
    return Single(Wire(name, lambda: address.hosts[0], options))


def _sentinels(address: Address, options: Mapping[str, Any]) -> Callable[[], tuple[str, int]]:
    """Asks one Sentinel after the other for the master; raises Failure. They have no databases, and no passwords of their own."""
    asked = {**options, "db": 0, "username": None, "password": None}

    def find() -> tuple[str, int]:
        why = "no Sentinel answers"
        for host, port in address.hosts:
            connection = connection_to(host, port, asked)
            try:
                connection.connect()
                connection.send_command("SENTINEL", "get-master-addr-by-name", address.service)
                reply: Any = connection.read_response()
            except ResponseError as error:
                why = f"Sentinel {host}:{port} refuses ({error})"
                continue
            except (RedisError, OSError):
                continue
            finally:
                connection.disconnect()
            if reply is not None:
                return reply[0].decode(), int(reply[1])
            why = f"the Sentinels know no master {address.service!r}"
        raise errors.Failure(f"store {address.shown()}: {why}", "start the Sentinels, or correct store.url")

    return find
