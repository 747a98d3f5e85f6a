"""A gateway as a child process, from settings to a checked end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kit.server import HOST, Server, free_port

Settings = Mapping[str, Any]


def to_toml(settings: Settings) -> str:
    """Sections of plain values; a list of mappings becomes an array of tables."""
    lines: list[str] = []
    for section, values in settings.items():
        tables = values if isinstance(values, list) else [values]
        for table in tables:
            lines.append(f"[[{section}]]" if isinstance(values, list) else f"[{section}]")
            lines += [f"{key} = {_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class Gateway(Server):
    """`serve` with a generated settings file: embedded and open to any client, unless `settings` (by section, merged) say otherwise."""

    def __init__(self, folder: Path, settings: Settings | None = None) -> None:
        port, self.http_port = free_port(), free_port()
        self.folder = folder
        sections: dict[str, Any] = {
            "gateway": {"data_dir": str(folder / "data"), "node_id": "test"},
            "mqtt": {"tcp": f"{HOST}:{port}"},
            "http": {"listen": f"{HOST}:{self.http_port}"},
            "backend": {"url": "local:"},
            "store": {"url": f"sqlite:{folder / 'data' / 'store.db'}"},
            "bridge": {"topics": ["any"], "default_topic": "any"},
            "naming": {"mode": "any"},
            "auth": {"anonymous": True},
        }
        for section, values in (settings or {}).items():
            sections[section] = {**sections.get(section, {}), **values} if isinstance(values, Mapping) else values
        self.settings = sections
        self.config = folder / "gateway.toml"
        self.config.write_text(to_toml(sections))
        super().__init__([sys.executable, "-m", "gateway.cli", "serve", "--config", str(self.config)], port, folder / "gateway.log")

    def stop(self) -> None:
        """SIGTERM; it must end with exit code 0 and have logged no traceback since it was made."""
        code = self.terminate()
        log = self.log()
        assert code == 0, f"exit code {code}; the log:\n{log}"
        self.check_log()

    def check_log(self) -> None:
        """No traceback and no internal error so far."""
        log = self.log()
        assert "Traceback" not in log, log
        assert "internal_error" not in log, log

    def restart(self) -> None:
        """A clean end, or after `kill` none, and a new start on the same data."""
        if self.process is not None:
            self.stop()
        self.start()
