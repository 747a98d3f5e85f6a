"""gateway.tools.identity: as whom a device command connects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.rules.signing import password_for
from gateway.settings import Settings, load
from gateway.tools.identity import identify, reachable
from gateway.tools.running import ToolError


def settings(tmp_path: Path, **more: Any) -> Settings:
    accounts = [
        {"access_key": "one", "secret_key": "s1", "groups": ["GID_one", "GID_uno"]},
        {"access_key": "two", "secret_key": "s2", "groups": ["GID_two"]},
    ]
    return load(None, {"accounts": accounts, "gateway.data_dir": str(tmp_path), **more}, {})


def test_the_first_account_and_its_first_group(tmp_path: Path) -> None:
    found = identify(settings(tmp_path))
    assert (found.host, found.port) == ("127.0.0.1", 1883)
    assert found.client_id.startswith("GID_one@@@cli-")
    assert (found.username, found.password) == ("one", password_for("s1", "GID_one"))
    assert identify(settings(tmp_path)).client_id != found.client_id


def test_the_group_chooses_the_account(tmp_path: Path) -> None:
    found = identify(settings(tmp_path), group="GID_two")
    assert (found.username, found.password) == ("two", password_for("s2", "GID_two"))
    found = identify(settings(tmp_path), client_id="GID_two@@@x")
    assert (found.client_id, found.username, found.password) == ("GID_two@@@x", "two", password_for("s2", "GID_two"))


def test_a_named_account(tmp_path: Path) -> None:
    assert identify(settings(tmp_path), account="two").client_id.startswith("GID_two@@@")
    with pytest.raises(ToolError, match="the settings have: one, two"):
        identify(settings(tmp_path), account="three")


def test_the_account_of_the_first_run(tmp_path: Path) -> None:
    fresh = load(None, {"gateway.data_dir": str(tmp_path)}, {})
    found = identify(fresh)
    assert found.client_id.startswith("GID_demo@@@")
    assert identify(fresh).username == found.username
    assert found.password


def test_anonymous(tmp_path: Path) -> None:
    found = identify(load(None, {"auth.anonymous": "true", "gateway.data_dir": str(tmp_path)}, {}), role="sub")
    assert (found.username, found.password) == (None, None)
    assert found.client_id.startswith("sub-")


def test_servers(tmp_path: Path) -> None:
    assert reachable("0.0.0.0:5") == ("127.0.0.1", 5)
    assert reachable("[::]:5") == ("::1", 5)
    found = identify(settings(tmp_path), server="example.org:1884")
    assert (found.host, found.port) == ("example.org", 1884)
    with pytest.raises(ToolError, match="--server"):
        identify(settings(tmp_path), server="example.org")
