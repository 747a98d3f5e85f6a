"""The fault harness on real servers, briefly: one kill of each part under load with the embedded store, all bounds hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.harness.__main__ import main

pytestmark = [pytest.mark.services, pytest.mark.slow]


def test_one_kill_of_each_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, and an account for each fault that says that something went through."""
    arguments = [
        "--store",
        "sqlite",
        "--only",
        "kill-gateway,kill-broker,kill-namesrv",
        "--seconds",
        "1",
        "--rate",
        "120",
        "--calm",
        "0.5",
        "--json",
    ]
    code = main([*arguments, "--folder", str(tmp_path)])
    printed = capsys.readouterr()
    accounts = [json.loads(line) for line in printed.out.splitlines()]
    assert code == 0, printed.err
    assert [account["fault"]["name"] for account in accounts] == ["kill-gateway", "kill-broker", "kill-namesrv"]
    for account in accounts:
        assert account["broken"] == []
        assert account["rows"]["due"]["value"] > 100
        assert account["rows"]["delivered"]["value"] >= account["rows"]["due"]["value"]
