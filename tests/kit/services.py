"""Real servers as fixtures: Redis, RocketMQ and mosquitto. A server that can't be had is an error, never a skip.

    def test_something(rocketmq: RocketMQ) -> None: ...            # shared: use topics of your own, break nothing
    def test_a_crash(rocketmq_cluster: StartRocketMQ) -> None:     # your own: kill, pause and restart what you like
        cluster = rocketmq_cluster(brokers=2)
        cluster.brokers[0].kill()

Registered as a plugin by `tests/conftest.py`. Starting takes seconds: inside a running trio test call it in a worker thread.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from deploy import services
from deploy.services import Mosquitto, Redis, RocketMQ

_numbers = itertools.count(1)


class StartRocketMQ(Protocol):
    """Starts a cluster that belongs to the test. heap: MiB for each broker; options: lines of every broker.conf."""

    def __call__(
        self,
        version: str = services.ROCKETMQ_VERSION,
        brokers: int = 1,
        proxy: bool = False,
        options: Mapping[str, str] | None = None,
        heap: int = 256,
    ) -> RocketMQ: ...


@contextmanager
def _own_home(kind: str) -> Iterator[Path]:
    """A directory of this test process under `.services/`, where `make services-stop` finds what a killed test run leaves."""
    home = services.ROOT / "tests" / f"{kind}-{os.getpid()}-{next(_numbers)}"
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _clusters() -> Iterator[StartRocketMQ]:
    with ExitStack() as stack:

        def start(
            version: str = services.ROCKETMQ_VERSION,
            brokers: int = 1,
            proxy: bool = False,
            options: Mapping[str, str] | None = None,
            heap: int = 256,
        ) -> RocketMQ:
            home = stack.enter_context(_own_home("rocketmq"))
            cluster = RocketMQ.start(home, version, brokers, proxy, options, heap)
            stack.callback(cluster.kill)
            return cluster

        yield start


def _ensure(kind: str) -> None:
    # by a process of its own: servers that outlive this one are not its children
    command = [sys.executable, services.__file__, "start", "--only", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise services.ServiceError(done.stderr)


@pytest.fixture(scope="session")
def rocketmq() -> RocketMQ:
    """The RocketMQ that `make services` runs, started when it doesn't run. It stays for the next run; `make services-stop` ends it."""
    _ensure("rocketmq")
    return services.shared_rocketmq()


@functools.cache
def shared_redis() -> Redis:
    """The Redis that `make services` runs, started when it doesn't run. Use a key prefix of your own; it stays for the next run."""
    _ensure("redis")
    return Redis.at(services.ROOT / "redis")


@pytest.fixture
def rocketmq_cluster() -> Iterator[StartRocketMQ]:
    """Starts clusters that end with the test."""
    with _clusters() as start:
        yield start


@pytest.fixture(scope="module")
def rocketmq_cluster_of_module() -> Iterator[StartRocketMQ]:
    """Starts clusters that end with the module."""
    with _clusters() as start:
        yield start


@contextmanager
def own_redis() -> Iterator[Redis]:
    """An empty Redis with `appendfsync always`."""
    with _own_home("redis") as home:
        server = Redis.started(home)
        yield server
        server.kill()


@pytest.fixture(scope="session")
def session_redis() -> Iterator[Redis]:
    """A Redis for all tests of this run: use an instance of your own, break nothing."""
    with own_redis() as server:
        yield server


@pytest.fixture
def redis() -> Iterator[Redis]:
    """An empty Redis of this test, with `appendfsync always`: kill it, restart it."""
    with own_redis() as server:
        yield server


@pytest.fixture
def mosquitto() -> Iterator[Mosquitto]:
    """A mosquitto of this test: anonymous, in memory, unlimited queues."""
    with _own_home("mosquitto") as home:
        server = Mosquitto.started(home)
        yield server
        server.kill()
