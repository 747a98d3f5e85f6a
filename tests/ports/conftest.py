"""One suite, every implementation of a port."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ports.backends import Site, local_site, rocketmq_site


@pytest.fixture(params=["local", pytest.param("rocketmq", marks=pytest.mark.services)])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """A backend under test."""
    if request.param == "local":
        return local_site(tmp_path)
    return rocketmq_site(request.getfixturevalue("rocketmq").namesrv)
