"""One suite, every implementation of a port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.kit.services import shared_redis
from tests.ports.backends import Site, local_site, rocketmq_site
from tests.ports.clusters import Nodes, new_instance, opened, sharded
from tests.ports.stores import PLACES, STORES, Place, erase


@pytest.fixture(params=["local", pytest.param("rocketmq", marks=pytest.mark.services)])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """A backend under test."""
    if request.param == "local":
        return local_site(tmp_path)
    return rocketmq_site(request.getfixturevalue("rocketmq").namesrv)


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where the store under test keeps its data."""
    place = PLACES[request.param](tmp_path)
    yield place
    place.erase()


@pytest.fixture(scope="module", params=["server", "sharded"])
def cluster_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """One Redis, and a Redis Cluster."""
    if request.param == "server":
        yield shared_redis().url
        return
    with sharded() as url:
        yield url


@pytest.fixture
async def nodes(cluster_url: str) -> AsyncIterator[Nodes]:
    """The port `Cluster` as two nodes of an instance have it; they have not joined."""
    instance = new_instance()
    async with opened(cluster_url, instance) as one, opened(cluster_url, instance) as other:
        yield one, other
    if "cluster" not in cluster_url:
        erase(cluster_url, instance)
