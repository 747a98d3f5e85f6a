"""The engine of the Redis store on a real Redis: rounds, order, faults of one job, scripts that were flushed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
import trio
from redis.exceptions import ResponseError

from gateway.ports import StoreError
from gateway.store.pump import Pump
from gateway.store.redis import scripts, wire
from gateway.store.redis.engine import Call, Command, Line, Lockstep, Steps, checked
from gateway.store.redis.servers import parse, servers_of
from tests.kit.services import shared_redis
from tests.ports.clusters import new_instance
from tests.ports.stores import erase

pytestmark = pytest.mark.services


class Bench:
    """A line, its engine, and keys of its own."""

    def __init__(self, line: Line, engine: Lockstep, prefix: str) -> None:
        self.line = line
        self.engine = engine
        self.prefix = prefix

    def key(self, name: str) -> str:
        return f"{self.prefix}{{t}}:{name}"

    def push(self, key: str, *values: str) -> Any:
        """A job that appends one value in each round; its result: the length of the list after each."""

        def job() -> Steps[list[int]]:
            lengths = []
            for value in values:
                (length,) = checked((yield [Command(("RPUSH", self.key(key), value))]))
                lengths.append(length)
            return lengths

        return job

    async def all(self, *jobs: tuple[Any, dict[str, Any]]) -> list[Any]:
        """Their results; all in one batch, behind one that is under way."""
        results: list[Any] = [None] * (len(jobs) + 1)
        over = trio.Event()

        def done(n: int, result: Any) -> None:
            results[n] = result
            if n == len(jobs):
                over.set()

        self.line.submit(self.push("first", "x"), lambda result: None)
        for n, (job, options) in enumerate(jobs):
            self.line.submit(job, lambda result, n=n: done(n, result), **options)  # type: ignore[misc]
        self.line.submit(self.push("last", "x"), lambda result: done(len(jobs), result))
        with trio.fail_after(20):
            await over.wait()
        return results[:-1]

    async def read(self, key: str) -> list[bytes]:
        def job() -> Steps[list[bytes]]:
            (values,) = checked((yield [Command(("LRANGE", self.key(key), 0, -1))]))
            return values  # type: ignore[no-any-return]

        return await self.line.ask(job)


@asynccontextmanager
async def benched(url: str) -> AsyncIterator[Bench]:
    prefix = new_instance()
    engine = Lockstep(servers_of(parse(url)))
    pump: Pump[Any] = Pump("bench", engine, after=lambda: None, died=lambda error: None)
    try:
        await pump.start()
        yield Bench(Line(pump), engine, prefix)
    finally:
        await pump.stop()
        erase(url, prefix)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with benched(shared_redis().url) as bench:
        yield bench


async def test_the_jobs_of_a_batch_share_their_round_trips(bench: Bench) -> None:
    await bench.read("warm")
    before = bench.engine.round_trips
    results = await bench.all(*((bench.push(f"l{n}", *"abc"[: 1 + n % 3]), {}) for n in range(300)))
    assert results == [[1, 2, 3][: 1 + n % 3] for n in range(300)]
    assert bench.engine.round_trips - before == 1 + 3  # the one that was under way, and three for all the others
    assert bench.engine.commands >= 600


async def test_in_one_batch_short_jobs_of_a_name_go_in_their_order(bench: Bench) -> None:
    before = bench.engine.round_trips
    await bench.all(*((bench.push("list", str(n)), {"order": ("a",)}) for n in range(200)))
    assert await bench.read("list") == [str(n).encode() for n in range(200)]
    assert bench.engine.round_trips - before <= 3


async def test_what_comes_after_a_long_job_of_its_name_waits_for_its_end(bench: Bench) -> None:
    order = {"order": ("a",)}
    long = {"order": ("a", "b"), "long": True}
    await bench.all(
        (bench.push("list", "1"), order),
        (bench.push("list", "2", "3", "4"), long),
        (bench.push("other", "free"), {"order": ("c",)}),
        (bench.push("list", "5"), {"order": ("b",)}),
        (bench.push("list", "6", "7"), {"order": ("b", "d"), "long": True}),
        (bench.push("list", "8"), {"order": ("d",)}),  # behind one that is behind
    )
    assert await bench.read("list") == [b"%d" % n for n in range(1, 9)]


async def test_a_refused_call_is_a_value_until_it_is_checked(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(check: bool) -> Any:
        def job() -> Steps[Any]:
            replies = yield [Command(("SET", bench.key("text"), "x")), Command(("LPUSH", bench.key("text"), "y"))]
            return checked(replies) if check else replies

        return job

    unchecked, failed, fine = await bench.all((wrong(False), {}), (wrong(True), {}), (bench.push("list", "1"), {}))
    assert unchecked[0] == b"OK"
    assert isinstance(unchecked[1], ResponseError)
    assert isinstance(failed, StoreError)
    assert "WRONGTYPE" in str(failed)
    assert "Traceback" in capsys.readouterr().err
    assert fine == [1]


async def test_a_fault_of_one_job_reaches_no_other(bench: Bench) -> None:
    closed = []

    def broken(rounds: int) -> Any:
        def job() -> Steps[None]:
            try:
                for _ in range(rounds):
                    yield [Command(("PING",))]
                raise ZeroDivisionError("ours")
            finally:
                closed.append(rounds)

        return job

    def refused() -> Steps[None]:
        yield [Command(("PING",))]
        raise StoreError("said so")

    def at_once() -> Steps[int]:
        return 7
        yield []

    def nothing() -> Steps[list[Any]]:
        first = yield []
        return first

    results = await bench.all(
        (broken(0), {"order": ("a",), "long": True}),
        (bench.push("list", "1"), {"order": ("a",)}),
        (broken(2), {}),
        (refused, {}),
        (at_once, {}),
        (nothing, {}),
        (bench.push("list", "2", "3"), {"order": ("a",)}),
    )
    assert [type(result) for result in results[:1] + results[2:4]] == [type(results[0]), type(results[0]), StoreError]
    assert "ZeroDivisionError" in str(results[0])
    assert str(results[3]) == "said so"
    assert (results[1], results[4], results[5], results[6]) == ([1], 7, [], [2, 3])
    assert sorted(closed) == [0, 2]
    assert bench.engine.failures == 3


async def test_flushed_scripts_are_loaded_again_and_keep_their_order(bench: Bench) -> None:
    def put(n: int) -> Any:
        def job() -> Steps[Any]:
            (reply,) = checked((yield [Call("inbound_put", (bench.key("client"), bench.key("inbound")), (7, n, f"K{n}"))]))
            return reply

        return job

    with redis.Redis.from_url(shared_redis().url) as client:
        client.hset(bench.key("client"), mapping={"epoch": 7, "kind": 2})
        assert await bench.all((put(0), {})) == [1]
        client.script_flush()
        assert await bench.all(*((put(1), {}) for _ in range(50)), (put(2), {})) == [1] * 51
        assert client.hgetall(bench.key("inbound")) == {b"0": b"0K0", b"1": b"0K1", b"2": b"0K2"}


async def test_a_connection_that_was_closed_while_idle_costs_nothing(bench: Bench) -> None:
    """A firewall, `timeout` in redis.conf, a restart: the next batch finds out before it sends."""
    await bench.read("list")
    with redis.Redis.from_url(shared_redis().url) as client:
        named = [one["id"] for one in client.client_list() if one["name"] == "mqtt-gateway"]
        assert named
        sock = bench.engine.servers._wire._connection._sock  # type: ignore[attr-defined]
        host, port = sock.getsockname()
        (mine,) = [one["id"] for one in client.client_list() if one["addr"] == f"{host}:{port}"]
        client.client_kill_filter(_id=mine)
    assert await bench.all((bench.push("list", "1"), {})) == [[1]]
    assert bench.engine.failures == 0


async def test_one_connection_serves_all_batches(bench: Bench) -> None:
    ports = set()
    for n in range(20):
        await bench.all((bench.push("list", str(n)), {}))
        ports.add(bench.engine.servers._wire._connection._sock.getsockname())  # type: ignore[attr-defined]
    assert len(ports) == 1


async def test_a_server_that_is_too_old_is_refused_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "OLDEST", (99, 0))
    async with benched(shared_redis().url) as bench:
        with pytest.raises(StoreError, match=r"Redis \d+\.\d+.* is too old; use Redis 7.0 or later") as refusal:
            await bench.read("list")
    assert refusal.value.fatal  # type: ignore[attr-defined]


def test_every_script_includes_what_it_needs_once() -> None:
    found = scripts.all_scripts()
    assert {"claim", "release", "abandon"} <= set(found)
    for name, script in found.items():
        assert "-- include" not in script.text, name
        assert not name.startswith("lib")
        defined = re.findall(r"^local function (\w+)", script.text, re.MULTILINE)
        assert len(defined) == len(set(defined)), name
    assert found["claim"].text.count("local function counts_of") == 1
