"""Nodes that tests of the cluster share, on a Redis of their own and the shared RocketMQ."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from deploy.services import Redis, RocketMQ
from tests.kit.nodes import Nodes

QUICK = {"limits": {"offline_batch": 1000, "offline_interval_seconds": 0.05}}  # a backlog is not to take 30 messages a second


@pytest.fixture(scope="session")
def two_nodes(session_redis: Redis, rocketmq: RocketMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes that no test harms."""
    nodes = Nodes(tmp_path_factory.mktemp("nodes"), rocketmq.namesrv, session_redis.url, 2, QUICK)
    trio.run(nodes.start)
    yield nodes
    nodes.kill()


@pytest.fixture
async def nodes(two_nodes: Nodes) -> AsyncIterator[Nodes]:
    yield two_nodes
    await two_nodes.close()
