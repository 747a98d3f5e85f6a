"""What the README and the first run tell a stranger is true: their commands and snippets run as they are, but for the port."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from deploy import services
from gateway.settings import load
from tests.kit.server import HOST, Server, free_port

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


class FirstRun(NamedTuple):
    """A gateway that was started without any account. printed: what it has shown."""

    port: int
    access_key: str
    secret_key: str
    printed: str


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirstRun]:
    folder = tmp_path_factory.mktemp("first-run")
    port = free_port()
    chosen = [f"mqtt.tcp={HOST}:{port}", "http.listen=", f"gateway.data_dir={folder / 'data'}"]
    command = [sys.executable, "-m", "gateway.cli", "serve", *(word for one in chosen for word in ("--set", one))]
    server = Server(command, port, folder / "gateway.log")
    server.start()
    account = tomllib.loads((folder / "data" / "first-run.toml").read_text())
    deadline = time.monotonic() + 10
    while "app send" not in server.log() and time.monotonic() < deadline:  # shown once it listens
        time.sleep(0.05)
    yield FirstRun(port, account["access_key"], account["secret_key"], server.log())
    assert server.terminate() == 0
    assert "Traceback" not in server.log()


def heard(subscribe: str, publish: str) -> str:
    """What the subscriber prints. Both are shell scripts; the publisher is repeated until the subscriber, which is slower, hears it."""
    services.program("mosquitto_sub")
    services.program("mosquitto_pub")
    with subprocess.Popen(["sh", "-c", subscribe], stdout=subprocess.PIPE, text=True) as subscriber:
        deadline = time.monotonic() + 30
        while subscriber.poll() is None and time.monotonic() < deadline:
            subprocess.run(["sh", "-c", publish], check=True, timeout=30)
        assert subscriber.poll() == 0
        assert subscriber.stdout is not None
        return subscriber.stdout.read()


def test_the_first_run_shows_commands_that_work(first_run: FirstRun) -> None:
    subscribe, publish = re.findall(r"^ +(mosquitto_.*)$", first_run.printed, flags=re.MULTILINE)
    assert heard(f"{subscribe} -C 1 -W 20", publish) == "demo/hello hello from a device\n"


def test_the_shell_commands_of_the_readme_work(first_run: FirstRun) -> None:
    services.program("openssl")
    script = next(block for block in blocks("sh") if "mosquitto_sub" in block).replace(" &\n", "\n")
    for name, value in (("ACCESS_KEY", first_run.access_key), ("SECRET_KEY", first_run.secret_key)):
        script = script.replace(f"{name}=...", f"{name}={value}")
    before = script[: script.index("mosquitto_sub")]
    subscribe, publish = re.findall(r"^mosquitto_.*$", script, flags=re.MULTILINE)
    printed = heard(f"{before}{subscribe} -p {first_run.port} -C 1 -W 20", f"{before}{publish} -p {first_run.port}")
    assert printed == "demo/room/1 21.5\n"


def test_the_python_snippet_of_the_readme_works(first_run: FirstRun, tmp_path: Path) -> None:
    (snippet,) = blocks("python")
    snippet = snippet.replace('"...", "...",', f'"{first_run.access_key}", "{first_run.secret_key}",').replace("1883", str(first_run.port))
    assert first_run.secret_key in snippet
    file = tmp_path / "device.py"
    file.write_text(snippet)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_settings_of_the_readme_are_valid(tmp_path: Path) -> None:
    (example,) = blocks("toml")
    file = tmp_path / "gateway.toml"
    file.write_text(example)
    settings = load(file)
    assert settings.backend.url == "rocketmq://127.0.0.1:9876"
    assert settings.bridge.topics == ["demo"]


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    file = ROOT / name
    targets = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", file.read_text()) if "://" not in link]
    assert [target for target in targets if not (file.parent / target).exists()] == []


def test_make_knows_every_target_that_the_readme_names() -> None:
    listed = set(re.findall(r"^  make ([a-z-]+)", subprocess.check_output(["make", "-s", "help"], cwd=ROOT, text=True), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE))
    assert named <= listed
    assert {"help", "setup", "run", "test", "check", "format", "services", "services-stop", "bench"} <= listed


@pytest.mark.parametrize("name", sorted(set(re.findall(r"^mqtt-gateway (\w+)", README, flags=re.MULTILINE))))
def test_commands_of_the_readme_exist(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "gateway.cli", name, "--help"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
