"""`serve --workers 2` as it is: whole nodes on a real Redis and a real RocketMQ, behind one port."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from deploy.services import RocketMQ
from tests.kit.device import Closed, Device
from tests.kit.gateway import Gateway
from tests.kit.server import HOST
from tests.kit.services import shared_redis
from tests.ports.stores import erase
from tests.workers.test_crew import alive, row_of_ports, wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]
PATIENCE = 60.0


class Workers(Gateway):
    """Two workers, with names and topics of their own."""

    def __init__(self, folder: Path, namesrv: str, **gateway: Any) -> None:
        self.instance, topic = f"w{uuid.uuid4().hex[:8]}", f"w{uuid.uuid4().hex[:8]}"
        self.topic, self.first_http = topic, row_of_ports(2)
        sections = {
            "gateway": {"workers": 2, "instance": self.instance, **gateway},
            "http": {"listen": f"{HOST}:{self.first_http}"},
            "backend": {"url": f"rocketmq://{namesrv}"},
            "store": {"url": shared_redis().url},
            "bridge": {"topics": [topic], "default_topic": ""},
        }
        super().__init__(folder, sections)

    def started(self) -> Workers:
        self.start()
        wait_until(lambda: all(self.ready(number) for number in (1, 2)), PATIENCE)
        return self

    def ready(self, number: int) -> bool:
        try:
            return httpx.get(f"http://{HOST}:{self.first_http + number - 1}/readyz", trust_env=False, timeout=10).status_code == 200
        except httpx.HTTPError:
            return False

    def connections(self, number: int) -> int:
        text = httpx.get(f"http://{HOST}:{self.first_http + number - 1}/metrics", trust_env=False, timeout=10).text
        found = re.search(r"(?m)^mqtt_gateway_connections (\S+)", text)
        assert found
        return int(float(found[1]))

    def lines(self, event: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in found if line["event"] == event]

    def pid(self, number: int) -> int:
        return [int(line["pid"]) for line in self.lines("worker_started") if line["worker"] == number][-1]

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)


@pytest.fixture
def workers(tmp_path: Path, rocketmq: RocketMQ) -> Iterator[Callable[..., Workers]]:
    made: list[Workers] = []

    def make(**gateway: Any) -> Workers:
        made.append(Workers(tmp_path, rocketmq.namesrv, **gateway))
        return made[-1]

    yield make
    for one in made:
        one.kill()
        wait_until(lambda one=one: not any(alive(int(line["pid"])) for line in one.lines("worker_started")), PATIENCE)
        erase(shared_redis().url, one.instance)
        one.check_log()


async def crowd(one: Workers, number: int) -> list[Device]:
    return [await device(one, f"d{index}") for index in range(number)]


async def device(one: Workers, client_id: str) -> Device:
    found = await Device.open(one.host, one.port)
    assert (await found.connect(client_id)).code == 0
    return found


async def test_each_worker_is_a_whole_node(workers: Callable[..., Workers]) -> None:
    one = await trio.to_thread.run_sync(workers().started)
    command = [sys.executable, "-m", "gateway.cli", "check", "--config", str(one.config), "--json"]
    told = (await trio.run_process(command, capture_stdout=True)).stdout.decode().splitlines()
    names = [json.loads(line)["name"] for line in told]
    assert {"gateway", "worker 1: cluster", "worker 2: cluster"} <= set(names)
    devices = await crowd(one, 40)
    assert {line["node_id"] for line in one.lines("connected")} == {"test-1", "test-2"}
    assert (one.folder / "data" / "worker-1" / "control.sock").is_socket()
    assert (one.folder / "data" / "worker-2" / "control.sock").is_socket()
    with trio.fail_after(PATIENCE):
        for each in devices:
            await each.subscribe((f"{one.topic}/all", 1))
        await devices[0].deliver(f"{one.topic}/all", b"to everybody, wherever it is")
        for each in devices:
            assert (await each.receive()).payload == b"to everybody, wherever it is"
        for each in devices:
            await each.disconnect()
    await trio.to_thread.run_sync(one.stop)
    assert not list((one.folder / "data").glob("worker-*/control.sock"))


async def test_a_burst_is_for_both(workers: Callable[..., Workers]) -> None:
    one = await trio.to_thread.run_sync(workers().started)
    streams = []

    async def connect() -> None:
        streams.append(await trio.open_tcp_stream(one.host, one.port))

    async with trio.open_nursery() as nursery:
        for _ in range(400):
            nursery.start_soon(connect)
    counts: list[int] = []
    with trio.fail_after(PATIENCE):
        while sum(counts) < 400:
            counts = [await trio.to_thread.run_sync(one.connections, number) for number in (1, 2)]
    assert min(counts) >= 80, counts
    for stream in streams:
        await stream.aclose()


async def test_a_worker_that_is_killed_comes_back_and_its_devices_on_the_other_one(workers: Callable[..., Workers]) -> None:
    one = await trio.to_thread.run_sync(workers().started)
    os.kill(one.pid(1), signal.SIGKILL)
    await trio.to_thread.run_sync(wait_until, lambda: one.lines("worker_died"), PATIENCE)
    with trio.fail_after(PATIENCE):
        one_more = await device(one, "d")
        await one_more.deliver(f"{one.topic}/x", b"x")
        await one_more.disconnect()
    await trio.to_thread.run_sync(wait_until, lambda: one.ready(1), PATIENCE)
    assert one.pid(1) != one.lines("worker_died")[0].get("pid")


def test_wrong_servers_are_told_once(workers: Callable[..., Workers]) -> None:
    one = workers()
    text = one.config.read_text().replace(f'instance = "{one.instance}"', f'instance = "{one.instance}"\nshutdown_grace_seconds = 0')
    one.config.write_text(re.sub(r'url = "redis://', 'url = "redis://:wrong-password@', text))
    with pytest.raises(AssertionError, match="exit code 1"):
        one.start(PATIENCE)
    errors = [line for line in one.log().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "password" in errors[0]
    assert "wrong-password" not in one.log()


async def test_a_rolling_restart_keeps_the_port_open(workers: Callable[..., Workers]) -> None:
    one = await trio.to_thread.run_sync(workers(shutdown_grace_seconds=1.0).started)
    before = {one.pid(1), one.pid(2)}
    one.signal(signal.SIGHUP)
    served = 0
    with trio.fail_after(2 * PATIENCE):
        while not one.lines("rolling_restart_done"):
            try:
                await (await device(one, f"d{served}")).disconnect()
                served += 1
            except Closed:
                pass  # accepted by the worker that was told to end just then: a device connects again
            await trio.sleep(0.05)
    assert served > 0
    assert not before & {one.pid(1), one.pid(2)}
    assert one.lines("worker_died") == []


async def test_connections_are_drained_at_the_rate_and_a_second_signal_ends_that(workers: Callable[..., Workers]) -> None:
    one = await trio.to_thread.run_sync(workers(drain_per_second=5, drain_seconds=60).started)
    devices = await crowd(one, 60)
    ends: list[float] = []

    async def watch(each: Device) -> None:
        await each.expect_closed(PATIENCE)
        ends.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for each in devices:
            nursery.start_soon(watch, each)
        one.signal(signal.SIGTERM)
        with trio.fail_after(PATIENCE):
            while not ends:
                await trio.sleep(0.01)
        await trio.sleep(2.0)
        assert 8 <= len(ends) <= 30  # two workers, five a second each
        hurried = trio.current_time()
        one.signal(signal.SIGTERM)
    assert len(ends) == 60
    assert max(ends) - hurried < 3.0
    assert one.process is not None
    assert await trio.to_thread.run_sync(one.process.wait, 30) == 0
    one.process = None
