"""One gateway for each backend, embedded and RocketMQ, for all tests of the mapping."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from tests.kit.world import Scene, World


@pytest.fixture(scope="session", params=["local", pytest.param("rocketmq", marks=pytest.mark.services)])
def namesrv(request: pytest.FixtureRequest) -> str | None:
    """The address of RocketMQ's name server, or None for the embedded backend."""
    return None if request.param == "local" else request.getfixturevalue("rocketmq").namesrv


@pytest.fixture(scope="session")
def world(namesrv: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The running gateway; it must end well and must have logged no traceback."""
    world = World(tmp_path_factory.mktemp("world"), namesrv)
    trio.run(world.prepare)
    world.gateway.start()
    yield world
    world.gateway.stop()


@pytest.fixture
async def scene(world: World) -> AsyncIterator[Scene]:
    """Devices and a server app of this test."""
    scene = Scene(world)
    yield scene
    await scene.close()
