"""`store.url` for Redis, and the servers behind it: TLS, Sentinels that name another master, a cluster whose slots move and nodes die."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis as client
import trio
from redis.exceptions import RedisError

from deploy.server import program
from deploy.services import Redis
from gateway.ports import Claimed, Store, StoreError, Subscription
from gateway.store.redis import wire
from gateway.store.redis.keys import SHARDS, Keys, shard_of
from gateway.store.redis.servers import parse, shown
from gateway.store.redis.slots import SLOTS, Sharded, slot_of
from gateway.store.redis.store import RedisStore
from tests.kit.server import Server, free_port
from tests.ports.stores import Place, connect, done, drain, kinds, new_id, outbox, release_of, waiting

# ---------------------------------------------------------------- what a URL says


@pytest.mark.parametrize(
    ("url", "plain", "rest"),
    [
        ("redis://host", "redis://host:6379/0", ("", "")),
        ("redis://host:1/5", "redis://host:1/5", ("", "")),
        ("redis://:p%40ss%2F@host/", "redis://host:6379/0", ("", "p@ss/")),
        ("rediss://me:pa:ss@[::1]:2/1?ca=/etc/ca.pem", "rediss://[::1]:2/1", ("me", "pa:ss")),
        ("redis+sentinel://a,b:2/mymaster", "redis+sentinel://a:26379,b:2/mymaster/0", ("", "")),
        ("rediss+sentinel://:x@a/mymaster/3", "rediss+sentinel://a:26379/mymaster/3", ("", "x")),
        ("redis+cluster://a:1,b,[::1]:3", "redis+cluster://a:1,b:6379,[::1]:3/0", ("", "")),
        ("redis+cluster://me:x@a/0", "redis+cluster://a:6379/0", ("me", "x")),
    ],
)
def test_urls(url: str, plain: str, rest: tuple[str, str]) -> None:
    address = parse(url)
    assert address.shown() == shown(url) == plain
    assert (address.user, address.password) == rest
    assert not address.password or address.password not in repr(address)


def test_options_of_tls() -> None:
    assert "ssl_cert_reqs" not in parse("redis://h").options()
    strict = parse("rediss://h?ca=/etc/ca.pem").options()
    assert (strict["ssl_cert_reqs"], strict["ssl_check_hostname"], strict["ssl_ca_certs"]) == ("required", True, "/etc/ca.pem")
    loose = parse("rediss://h?verify=0").options()
    assert (loose["ssl_cert_reqs"], loose["ssl_check_hostname"], "ssl_ca_certs" in loose) == ("none", False, False)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:6379",
        "mysql://:hunter2@host",
        "redis+://:hunter2@host",
        "redis+other://:hunter2@host",
        "redis://:hunter2@",
        "redis://:hunter2@host:x",
        "redis://:hunter2@host:0",
        "redis://:hunter2@host:70000",
        "redis://:hunter2@host/db",
        "redis://:hunter2@host/1/2",
        "redis://:hunter2@host/١",
        "redis://:hunter2@a,b",
        "redis://hunter2@host",
        "redis://:x@host?password=hunter2",
        "redis://:hunter2@host?verify=0",
        "rediss://:hunter2@host?verify=2",
        "redis+sentinel://:hunter2@a,b",
        "redis+sentinel://:hunter2@a/m/x",
        "redis+cluster://:hunter2@a/1",
        "hunter2",
    ],
)
def test_wrong_urls_name_the_setting_and_no_password(url: str) -> None:
    with pytest.raises(StoreError, match=r"^store\.url: .*; write it as redis://") as refusal:
        RedisStore(url)
    assert "hunter2" not in str(refusal.value)
    assert shown(url) == "redis"


def test_shards_and_slots_are_those_of_redis() -> None:
    assert (slot_of("123456789"), slot_of("foo{bar}{zap}"), slot_of("foo{}{bar}")) == (12739, slot_of("bar"), 8363)
    assert shard_of("123456789") == 12739 % SHARDS
    keys = Keys("default")
    for name in ("GID_a@@@1", "ünï", "{x}", "a:b"):
        assert len({slot_of(key) for key in keys.session(name)}) == 1
        assert slot_of(keys.client(name)) == slot_of(f"{{{shard_of(name)}}}") == slot_of(keys.outbox(shard_of(name)))
    assert len({slot_of(keys.counts(shard)) for shard in range(SHARDS)}) > 250


# ---------------------------------------------------------------- the servers


def place_of(url: str) -> Place:
    return Place(lambda limits: RedisStore(url, instance="t", **limits))


async def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    with trio.fail_after(seconds):
        while True:
            try:
                if answer := condition():
                    return answer
            except RedisError:
                pass
            await trio.sleep(0.02)


async def eventually(store: Store, client_id: str) -> Claimed:
    with trio.fail_after(30):
        while True:
            try:
                return await connect(store, client_id)
            except StoreError:
                await trio.sleep(0.05)


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """(certificate, key) of 127.0.0.1, signed by itself."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command, "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return cert, key


async def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path, "ours")
    stranger, _ = certificate(tmp_path, "stranger")
    port = free_port()
    options = {"tls-port": str(port), "tls-cert-file": str(cert), "tls-key-file": str(key), "tls-auth-clients": "no"}
    server = Redis.started(tmp_path / "redis", options)
    try:
        for query in (f"?ca={cert}", "?verify=0"):
            async with place_of(f"rediss://127.0.0.1:{port}/0{query}").open() as store:
                claimed = await connect(store, "a")
                await drain(store)
                with client.Redis.from_url(server.url) as plain:
                    ours = {one["id"] for one in plain.client_list() if one["name"] == "mqtt-gateway"}
                    for _ in range(5):
                        assert await store.present(["a"]) == {"a"}
                    again = {one["id"] for one in plain.client_list() if one["name"] == "mqtt-gateway"}
                assert again == ours  # one handshake serves all batches
                assert claimed.epoch
        monkeypatch.setattr(wire, "CONNECT_SECONDS", 0.3)
        distrusted, mute = "TLS failed .*certificate", "does not answer"  # a server without TLS waits for the rest of a command
        for query, address, text in ((f"?ca={stranger}", port, distrusted), ("", port, distrusted), ("?verify=0", server.port, mute)):
            store = RedisStore(f"rediss://127.0.0.1:{address}/0{query}")
            with trio.move_on_after(1):
                await store.run()
            (health,) = await store.health()
            assert not health.ok
            assert re.search(text, health.detail)
    finally:
        server.kill()


async def test_sentinels_name_the_master(tmp_path: Path, redis: Redis) -> None:
    """A master that dies: the Sentinels promote its replica, and the store goes on there by itself."""
    replica = Redis.started(tmp_path / "replica", {"replicaof": redis.address.replace(":", " ")})
    port = free_port()
    conf = tmp_path / "sentinel.conf"
    lines = [f"port {port}", "bind 127.0.0.1", f"dir {tmp_path}", f"sentinel monitor mine {redis.address.replace(':', ' ')} 1"]
    lines += ["sentinel down-after-milliseconds mine 500", "sentinel failover-timeout mine 3000"]
    conf.write_text("\n".join(lines) + "\n")
    sentinel = Server([program("redis-server"), str(conf), "--sentinel"], port, tmp_path / "sentinel.log")
    try:
        sentinel.start()
        with client.Redis(port=port) as asked, client.Redis.from_url(redis.url) as master:
            await until(lambda: asked.sentinel_slaves("mine"))
            url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/mine"  # the first one is away
            async with place_of(url).open() as store:
                first = await connect(store, "a")
                await until(lambda: master.wait(1, 1000))
                redis.kill()
                second = await eventually(store, "a")
                assert second.epoch > first.epoch
                assert asked.sentinel_get_master_addr_by_name("mine") == (b"127.0.0.1", replica.port)
        for wrong, text in (
            (f"redis+sentinel://127.0.0.1:{port}/other", "know no master 'other'"),
            ("redis+sentinel://127.0.0.1:1/mine", "no Sentinel"),
        ):
            store = RedisStore(wrong)
            with trio.move_on_after(0.5):
                await store.run()
            assert text in (await store.health())[0].detail
    finally:
        sentinel.kill()
        replica.kill()


class Trio:
    """A Redis Cluster of three masters."""

    def __init__(self, servers: list[Redis]) -> None:
        self.servers = servers
        self.clients: list[Any] = [client.Redis.from_url(server.url) for server in servers]
        self.names = [one.cluster("MYID").decode() for one in self.clients]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(server.address for server in self.servers)

    def settled(self) -> bool:
        return all(
            b"cluster_state:ok" in one.execute_command("CLUSTER", "INFO") and len(one.execute_command("CLUSTER", "SLOTS")) >= 3
            for one in self.clients
        )

    def owner_of(self, slot: int) -> int:
        """Which of the three."""
        for first, last, (_, port, *_), *_ in self.clients[0].execute_command("CLUSTER", "SLOTS", NEVER_DECODE=True):
            if first <= slot <= last:
                return [server.port for server in self.servers].index(port)
        raise AssertionError

    def begin_to_move(self, slot: int, source: int, target: int) -> None:
        self.clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.names[source])
        self.clients[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.names[target])

    def move_keys(self, slot: int, source: int, target: int) -> None:
        server = self.servers[target]
        while keys := self.clients[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.clients[source].execute_command("MIGRATE", "127.0.0.1", server.port, "", 0, 5000, "KEYS", *keys)

    def end_move(self, slot: int, target: int) -> None:
        for one in [self.clients[target], *self.clients]:
            one.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.names[target])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Trio]:
    with ExitStack() as stack:
        servers = []
        for n in range(3):
            options = {"cluster-enabled": "yes", "cluster-node-timeout": "2000", "appendfsync": "no", "cluster-require-full-coverage": "no"}
            server = Redis.started(tmp_path / str(n), options)
            stack.callback(server.kill)
            servers.append(server)
        three = Trio(servers)
        for n, one in enumerate(three.clients):
            stack.callback(one.close)
            one.execute_command("CLUSTER", "ADDSLOTSRANGE", n * SLOTS // 3, (n + 1) * SLOTS // 3 - 1)
            one.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            if n:
                one.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        yield three


async def test_all_shards_of_a_cluster(cluster: Trio) -> None:
    await until(cluster.settled)
    async with place_of(cluster.url).open() as store:
        names = [f"client{n}" for n in range(600)]
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(connect, store, name)
        assert store.stats().sessions == 600
        assert await store.present(names) == set(names)
        assert {item.client_id for item in await outbox(store)} == set(names)
        await store.set_mark("m", "1")
        assert await store.mark("m") == "1"
        assert await store.abandoned("n1", 5000, new_id) == 600
        rows = await store.health()
        assert [row.ok for row in rows] == [True] * 3
        assert len({row.name for row in rows}) == 3
    assert all(one.dbsize() > 100 for one in cluster.clients)  # it is spread


async def test_a_slot_that_moves(cluster: Trio) -> None:
    """Each step of a resharding by hand: asked elsewhere, moved for good."""
    await until(cluster.settled)
    slot = slot_of(Keys("t").client("a"))
    source = cluster.owner_of(slot)
    target = (source + 1) % 3
    async with place_of(cluster.url).open() as store:
        epoch = (await connect(store, "a")).epoch
        assert epoch
        cluster.begin_to_move(slot, source, target)
        for _ in ("all keys are still here", "and now there"):
            assert await store.present(["a"]) == {"a"}  # a single key is found where it is
            assert kinds(await outbox(store)) == ["connect"]
            with pytest.raises(StoreError, match="its slots are being moved; wait until"):
                await connect(store, "a")
            with pytest.raises(StoreError, match="its slots are being moved"):
                await store.release(release_of("a", epoch))
            with pytest.raises(StoreError, match="its slots are being moved"):
                await done(store.offline_put, [waiting("a", "M1")])
            cluster.move_keys(slot, source, target)
        assert (await connect(store, "b")).epoch  # of another slot
        cluster.end_move(slot, target)
        claimed = await eventually(store, "a")
        assert claimed.present
        results: list[Any] = []
        for n in range(50):
            store.subscribe("a", claimed.epoch, [Subscription(f"p/{n}", 1, 1)], results.append)
        assert len((await connect(store, "a")).subscriptions) == 50
        assert results == [True] * 50
        events = [item.event for item in await outbox(store) if item.event and item.client_id == "a"]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert cluster.owner_of(slot) == target


async def test_a_node_of_a_cluster_that_dies_takes_its_shards_only(cluster: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "ANSWER_SECONDS", 1.0)
    await until(cluster.settled)
    names = [f"client{n}" for n in range(60)]
    lost = cluster.owner_of(slot_of(Keys("t").client(names[0])))
    dead = [name for name in names if cluster.owner_of(slot_of(Keys("t").client(name))) == lost]
    async with place_of(cluster.url).open() as store:
        for name in names:
            await connect(store, name)
        await trio.to_thread.run_sync(cluster.servers[lost].kill)
        failed: list[str] = []

        async def claim(name: str) -> None:
            try:
                await connect(store, name)
            except StoreError:
                failed.append(name)

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(claim, name)
        assert sorted(failed) == sorted(dead)
        await trio.to_thread.run_sync(cluster.servers[lost].start)
        for name in dead:
            assert (await eventually(store, name)).present


async def test_a_single_server_is_no_cluster(redis: Redis) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(StoreError, match="is no part of a Redis Cluster.*or use redis://")):
        async with place_of(f"redis+cluster://{redis.address}").open():
            pass


async def test_a_sample_of_each_server(cluster: Trio) -> None:
    await until(cluster.settled)
    servers = Sharded("x", [(cluster.servers[0].address.split(":")[0], cluster.servers[0].port)], parse("redis://h").options())
    try:
        servers.connect()
        samples = servers.samples()
        assert len(samples) == 3
        assert {cluster.owner_of(slot_of(key)) for key in samples if key} == {0, 1, 2}
    finally:
        servers.close()
