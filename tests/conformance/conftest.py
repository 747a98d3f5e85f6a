"""What the conformance tests run against: the gateway, and with `--oracle` mosquitto as well.

A test that fails on mosquitto is wrong, or is marked `targets("gateway")` with the reason. Each server is started once, on a free port.
`pytest tests/conformance --oracle -k mosquitto` runs the oracle alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.kit.broker import Broker
from tests.kit.gateway import Gateway
from tests.kit.server import Server, mosquitto


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("targets")
        wanted = marker.args if marker else ("gateway", "mosquitto")
        names = [name for name in wanted if name == "gateway" or metafunc.config.getoption("--oracle")]
        metafunc.parametrize("target", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The running server; a gateway must also end well and must have logged no traceback."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "mosquitto":
        server = mosquitto(folder)
        server.start()
        yield server
        server.terminate()
        return
    gateway = Gateway(folder, {"limits": {"topic_length": 1024, "subscriptions_per_client": 1000}})
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
async def broker(request: pytest.FixtureRequest, target: Server) -> AsyncIterator[Broker]:
    """The target as a test uses it."""
    broker = Broker(target.host, target.port, "gateway" if isinstance(target, Gateway) else "mosquitto")
    yield broker
    await broker.close()
