"""What an operator should know of the Redis behind the store: does it answer, is it a master, will it keep what it was given."""

from __future__ import annotations

from typing import Any

from redis.exceptions import ResponseError

from gateway.ports import Health
from gateway.store.redis.engine import Call, Command, Steps
from gateway.store.redis.wire import Servers, info_of

_WANTED = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")


def examine(servers: Servers) -> Steps[list[Health]]:
    """Of each server that has a part of the data."""
    samples = servers.samples()
    calls: list[Call | Command] = []
    for key in samples:
        calls += [Command(("INFO",), key), Command(("CONFIG", "GET", *_WANTED), key)]
    replies = yield calls
    found: list[Health] = []
    for n in range(len(samples)):
        name = servers.name if len(samples) == 1 else f"{servers.name} [{n + 1} of {len(samples)}]"
        info, config = replies[2 * n], replies[2 * n + 1]
        if isinstance(info, ResponseError):
            found.append(Health(name, False, f"INFO is refused ({info})", "let the user of store.url run INFO"))
        else:
            found.append(_judge(name, info_of(info), config))
    return found


def _judge(name: str, info: dict[str, str], config: Any) -> Health:
    version, role = info.get("redis_version", "?"), info.get("role", "?")
    if role != "master":
        return Health(name, False, f"Redis {version} is a {role}", "set store.url to the master, or to its Sentinels")
    for field, what in (("aof_last_write_status", "write its append-only file"), ("rdb_last_bgsave_status", "save its snapshot")):
        if info.get(field, "ok") != "ok":
            return Health(name, False, f"Redis {version} can't {what}", "free disk space where Redis runs, see the log of Redis")
    details = [f"Redis {version}", role]
    if isinstance(config, ResponseError) or len(config) < 2:
        details.append("persistence and maxmemory-policy not readable (CONFIG GET is refused)")
        return Health(name, True, ", ".join(details))
    read = {config[n].decode(): config[n + 1].decode() for n in range(0, len(config), 2)}
    on = read.get("appendonly") == "yes"
    details.append(f"appendonly {read.get('appendonly', '?')}" + (f", appendfsync {read.get('appendfsync', '?')}" if on else ""))
    if not on:
        details.append("ATTENTION: what was acknowledged is lost when Redis restarts; set appendonly yes")
    policy = read.get("maxmemory-policy", "?")
    details.append(f"maxmemory-policy {policy}")
    if policy != "noeviction":
        details.append("ATTENTION: sessions would be evicted when memory is full; set maxmemory-policy noeviction")
    return Health(name, True, ", ".join(details))
