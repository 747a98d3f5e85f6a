"""Gateways and clusters that belong to one test, which may kill them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from tests.kit.world import Scene, World


@pytest.fixture(params=["local", pytest.param("rocketmq", marks=pytest.mark.services)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway of this test, on the embedded backend and on the shared RocketMQ (which the test leaves alone)."""
    namesrv = None if request.param == "local" else request.getfixturevalue("rocketmq").namesrv
    quick = {"limits": {"offline_batch": 1000, "offline_interval_seconds": 0.05}}  # a backlog is not to take 30 messages a second
    world = World(tmp_path_factory.mktemp("faults"), namesrv, quick)
    trio.run(world.prepare)
    world.gateway.start()
    yield world
    world.gateway.kill()
    world.gateway.check_log()


@pytest.fixture
async def scene(world: World) -> AsyncIterator[Scene]:
    scene = Scene(world)
    yield scene
    await scene.close()
