"""What `check` tells of a Redis: does it answer, is it new enough, and what its settings mean for what the gateway has acknowledged
(docs/guarantees.md). Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from redis.exceptions import ResponseError

from gateway.ports import Health, StoreError
from gateway.store.pump import Pump
from gateway.store.redis.engine import Call, Command, Line, Lockstep, Steps
from gateway.store.redis.servers import parse, servers_of
from gateway.store.redis.wire import Servers, info_of

_WANTED = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy", "min-replicas-to-write", "min-replicas-max-lag")
_FSYNC = {
    "always": "what is acknowledged survives the death of Redis and of its machine",
    "everysec": "what is acknowledged survives the death of Redis, unless its disk lags; with its machine the last two seconds may be lost",
    "no": "what is acknowledged survives the death of Redis; with its machine the last half minute may be lost",
}


async def report(url: str) -> list[Health]:
    """Some rows of each server that has a part of the data; never raises. The caller has the deadline."""
    try:
        address = parse(url)
    except StoreError as error:
        return [Health("store", False, str(error), "correct store.url")]
    engine = Lockstep(servers_of(address))
    pump: Pump[Any] = Pump("redis-report", engine, after=lambda: None, died=lambda _: None)
    try:
        await pump.start()
        found = await Line(pump).ask(lambda: read(engine.servers))
        return [row for one in found for row in _rows(*one)]
    except StoreError as error:
        cure = getattr(error, "cure", "see store.url")
        return [Health(address.shown(), False, str(error).removesuffix(f"; {cure}"), cure)]
    finally:
        await pump.stop()


def read(servers: Servers) -> Steps[list[tuple[str, Any, Any]]]:
    """The name of each server, and its answers to INFO and CONFIG GET; a managed Redis, or a user of few rights, may refuse the latter."""
    samples = servers.samples()
    calls: list[Call | Command] = [Command(args, key) for key in samples for args in (("INFO",), ("CONFIG", "GET", *_WANTED))]
    replies = yield calls
    names = [f"{servers.name} [{n + 1} of {len(samples)}]" if len(samples) > 1 else servers.name for n in range(len(samples))]
    return list(zip(names, replies[::2], replies[1::2], strict=True))


def _rows(name: str, info: Any, config: Any) -> Iterator[Health]:
    if isinstance(info, ResponseError):
        yield Health(name, False, f"INFO is refused ({info})", "let the user of store.url run INFO")
        return
    yield from judge(name, info_of(info), _pairs(config) if isinstance(config, list) and config else None)


def summary(name: str, info: Any, config: Any) -> Health:
    """One row of one server, for a store that serves: what may be lost one day is told, but is no reason to be unready."""
    server, *rest = _rows(name, info, config)
    persistence = next(iter(rest), server)
    wrong = next((row for row in (server, persistence) if not row.ok), None)
    if wrong is not None:
        return wrong._replace(name=name)
    details = [row.detail if row.ok else f"ATTENTION: {row.detail}; {row.cure}" for row in (server, *rest)]
    return Health(name, True, "; ".join(details))


def _pairs(config: list[bytes]) -> dict[str, str]:
    """The reply of CONFIG GET."""
    return {config[n].decode(): config[n + 1].decode() for n in range(0, len(config), 2)}


def judge(name: str, info: Mapping[str, str], config: Mapping[str, str] | None) -> Iterator[Health]:
    """The rows of one server. info: of INFO; config: of CONFIG GET, None when the server does not let us read it."""
    version, role = info.get("redis_version", "?"), info.get("role", "?")
    if role == "master":
        yield Health(name, True, f"answers, Redis {version}, {role}")
    else:
        yield Health(name, False, f"answers, Redis {version}, but it is a {role}", "set store.url to the master, or to its Sentinels")
    settings = config or {}
    yield _persistence(f"{name} persistence", info, settings.get("appendfsync"))
    yield _memory(f"{name} memory", info, settings)
    yield _replicas(f"{name} replicas", info, settings)


def _persistence(name: str, info: Mapping[str, str], fsync: str | None) -> Health:
    for field, what in (("aof_last_write_status", "write its append-only file"), ("rdb_last_bgsave_status", "save its snapshot")):
        if info.get(field, "ok") != "ok":
            return Health(name, False, f"Redis can't {what}", "free disk space where Redis runs, see the log of Redis")
    if info.get("aof_enabled") != "1":
        text = "ATTENTION: appendonly no: when Redis ends, what is acknowledged since its last snapshot is lost"
        return Health(name, True, text, "set appendonly yes, unless sessions and offline messages may be lost")
    if fsync is None:
        return Health(name, True, "appendonly yes; appendfsync can't be read (CONFIG GET is refused)")
    return Health(name, True, f"appendonly yes, appendfsync {fsync}: {_FSYNC.get(fsync, 'unknown to this gateway')}")


def _memory(name: str, info: Mapping[str, str], settings: Mapping[str, str]) -> Health:
    policy = settings.get("maxmemory-policy") or info.get("maxmemory_policy", "?")
    most = int(info.get("maxmemory", "0"))
    bound = f"{most >> 20} MiB at most" if most else "no maxmemory"
    text = f"{int(info.get('used_memory', '0')) >> 20} MiB used, {bound}, maxmemory-policy {policy}"
    if policy != "noeviction":
        return Health(name, False, f"{text}: sessions would be thrown away when memory is full", "set maxmemory-policy noeviction")
    return Health(name, True, text)


def _replicas(name: str, info: Mapping[str, str], settings: Mapping[str, str]) -> Health:
    replicas, wanted = int(info.get("connected_slaves", "0")), int(settings.get("min-replicas-to-write", "0"))
    text = f"{replicas} connected, min-replicas-to-write {wanted if settings else 'not readable'}"
    if wanted > replicas:
        return Health(name, False, f"{text}: every write is refused", "start the replicas, or lower min-replicas-to-write")
    if not replicas:
        return Health(name, True, f"{text}: when this machine is lost, all sessions and stored messages are")
    if not wanted:
        tail = "a failover may lose the last moments, and everything that a cut-off master took"
        return Health(name, True, f"{text}: replication is asynchronous; {tail}", "set min-replicas-to-write 1 to bound that")
    lag = settings.get("min-replicas-max-lag", "?")
    return Health(name, True, f"{text}: replication is asynchronous; a failover loses the last moments, {lag} s at the worst")
