"""What the conformance tests run against: the gateway (embedded, on RocketMQ, on Redis and RocketMQ), and with `--oracle` mosquitto.

A test that fails on mosquitto is wrong, or is marked `targets("gateway")` with the reason. Each server is started once, on a free port.
`pytest tests/conformance --oracle -k mosquitto` runs the oracle alone.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.kit.broker import Broker
from tests.kit.gateway import Gateway
from tests.kit.server import Server, mosquitto

GATEWAYS = (
    "gateway",
    pytest.param("gateway_on_rocketmq", marks=pytest.mark.services),
    pytest.param("gateway_on_redis", marks=pytest.mark.services),  # and RocketMQ
)
LIMITS = {"topic_length": 1024, "subscriptions_per_client": 1000}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("targets")
        oracle = metafunc.config.getoption("--oracle") and (marker is None or "mosquitto" in marker.args)
        metafunc.parametrize("target", [*GATEWAYS, *(["mosquitto"] if oracle else [])], indirect=True, scope="session")


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
    settings: dict[str, dict[str, object]] = {"limits": dict(LIMITS)}
    if request.param == "gateway_on_redis":
        settings["store"] = {"url": request.getfixturevalue("session_redis").url}
    if request.param != "gateway":
        run = uuid.uuid4().hex[:8]
        settings["backend"] = {"url": f"rocketmq://{request.getfixturevalue('rocketmq').namesrv}"}
        settings["bridge"] = {"topics": [f"any{run}"], "default_topic": f"any{run}"}
        settings["gateway"] = {"instance": f"c{run}"}
    gateway = Gateway(folder, settings)
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
async def broker(request: pytest.FixtureRequest, target: Server) -> AsyncIterator[Broker]:
    """The target as a test uses it."""
    broker = Broker(target.host, target.port, "gateway" if isinstance(target, Gateway) else "mosquitto")
    yield broker
    await broker.close()
