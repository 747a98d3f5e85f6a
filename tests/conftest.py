"""Command line options and markers of the whole suite."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# On a busy machine an example may take any time; the clock decides no test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

pytest_plugins = ["tests.kit.services"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--oracle", action="store_true", help="run the conformance tests against mosquitto as well")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "targets(*names): the servers a conformance test is for, when they may differ")
