"""What `check` tells of a Redis: real servers, and each setting that changes what survives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import redis as client
import trio

from deploy.services import Redis
from gateway.ports import Health
from gateway.store.redis.report import judge, report
from tests.kit.server import free_port


async def rows(url: str) -> dict[str, Health]:
    with trio.fail_after(20):
        return {row.name.removeprefix(url).strip(): row for row in await report(url)}


async def test_a_server_of_ours(redis: Redis) -> None:
    found = await rows(redis.url)
    assert list(found) == ["", "persistence", "memory", "replicas"]
    assert all(row.ok for row in found.values())
    assert "appendfsync always: what is acknowledged survives the death of Redis and of its machine" in found["persistence"].detail
    with client.Redis.from_url(redis.url) as server:
        server.config_set("appendfsync", "everysec")
        assert "the last two seconds" in (await rows(redis.url))["persistence"].detail
        server.config_set("appendfsync", "no")
        assert "half minute" in (await rows(redis.url))["persistence"].detail
        server.config_set("appendonly", "no")
        assert "ATTENTION: appendonly no" in (await rows(redis.url))["persistence"].detail
        server.config_set("maxmemory-policy", "allkeys-lru")
        memory = (await rows(redis.url))["memory"]
        assert not memory.ok
        assert memory.cure == "set maxmemory-policy noeviction"
        server.config_set("min-replicas-to-write", "1")
        assert "every write is refused" in (await rows(redis.url))["replicas"].detail
        assert server.dbsize() == 0  # nothing was written


async def test_replicas(redis: Redis, tmp_path: Path) -> None:
    host, port = redis.address.split(":")
    replica = Redis.started(tmp_path / "replica", {"replicaof": f"{host} {port}"})
    try:
        with client.Redis.from_url(redis.url) as server, trio.fail_after(20):
            while not server.info("replication")["connected_slaves"]:
                await trio.sleep(0.05)
            assert "1 connected, min-replicas-to-write 0: replication is asynchronous" in (await rows(redis.url))["replicas"].detail
            server.config_set("min-replicas-to-write", "1")
            bounded = (await rows(redis.url))["replicas"]
            assert bounded.ok
            assert "10 s at the worst" in bounded.detail
        (refused,) = await report(replica.url)
        assert not refused.ok
        assert "replica" in refused.detail
        assert "set store.url to the master" in refused.cure
    finally:
        replica.kill()


async def test_a_user_of_few_rights(redis: Redis) -> None:
    with client.Redis.from_url(redis.url) as server:
        server.acl_setuser("guest", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-config"])
    found = await report(f"redis://guest:pw@{redis.address}/0")
    assert all(row.ok for row in found)
    assert "appendfsync can't be read" in found[1].detail
    (wrong,) = await report(f"redis://guest:hunter2@{redis.address}/0")
    assert not wrong.ok
    assert "hunter2" not in str(wrong)
    assert wrong.cure


@pytest.mark.parametrize("url", [f"redis://127.0.0.1:{free_port()}/0", f"redis+cluster://127.0.0.1:{free_port()}", "redis://host:x"])
async def test_a_server_that_is_not_there(url: str) -> None:
    with trio.fail_after(20):
        (row,) = await report(url)
    assert not row.ok
    assert row.cure
    assert row.cure not in row.detail


@pytest.mark.parametrize(
    ("info", "row", "ok", "text"),
    [
        ({"role": "slave"}, 0, False, "it is a slave"),
        ({"aof_last_write_status": "err"}, 1, False, "append-only file"),
        ({"rdb_last_bgsave_status": "err"}, 1, False, "snapshot"),
        ({"maxmemory": str(64 << 20)}, 2, True, "64 MiB at most"),
    ],
)
def test_troubles(info: Mapping[str, str], row: int, ok: bool, text: str) -> None:
    healthy = {"redis_version": "7.2.0", "role": "master", "aof_enabled": "1", "maxmemory_policy": "noeviction"}
    found = list(judge("r", {**healthy, **info}, None))[row]
    assert found.ok is ok
    assert text in found.detail
    assert bool(found.cure) is not ok
