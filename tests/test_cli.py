"""gateway.cli: arguments, exit codes, and mistakes told in one line; `serve` as a process, from its first run to its end."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from tests.kit.server import HOST, Server, free_port


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", ["", "serve", "check", "device pub", "device sub", "app send", "app tail", "app create-topic", "tail"])
def test_help(command: str) -> None:
    result = invoke(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize(
    "command", ["serve", "check", "device pub demo x", "device sub demo", "app send demo x", "app tail demo", "tail GID_demo"]
)
def test_a_typo_in_the_settings(tmp_path: Path, command: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("[limits]\ntopic_lenght = 5\n", encoding="utf-8")
    result = invoke(*command.split(), "--config", str(path))
    assert result.exit_code == 1
    assert result.output == (f"error: limits.topic_lenght: there is no such setting (from {path}). Did you mean limits.topic_length?\n")


def test_mistakes_as_json() -> None:
    result = invoke("check", "--set", "limits.tps=many", "--json")
    assert result.exit_code == 1
    assert "limits.tps" in json.loads(result.output)["error"]


def test_set_without_a_value() -> None:
    result = invoke("check", "--set", "limits.tps")
    assert (result.exit_code, result.output) == (2, "error: --set limits.tps: write section.key=value.\n")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("device pub demo/x hello", "no gateway answers on"),
        ("device sub demo/#", "no gateway answers on"),
        ("device sub demo/# --keep", "--keep"),
        ("device pub demo/x hello --account nobody", "there is no account 'nobody'"),
        ("device pub demo/x hello --server nowhere", "--server"),
        ("app send demo hello", "no gateway runs with the data directory"),
        ("app send demo/x hello", "--subtopic /x"),
        ("app send demo hello --subtopic /x --p2p y", "exclude each other"),
        ("app tail demo", "no gateway runs with the data directory"),
        ("app tail demo --from yesterday", "--from"),
        ("app create-topic demo", "no gateway runs with the data directory"),
        ("tail GID_demo", "no gateway runs with the data directory"),
        ("tail demo", "is no Group ID"),
        ("tail GID_demo --type died", "connect, disconnect, tcpclean"),
    ],
)
def test_mistakes_in_one_line(tmp_path: Path, command: str, text: str) -> None:
    place = ["--set", f"gateway.data_dir={tmp_path}", "--set", f"mqtt.tcp={HOST}:{free_port()}"]
    result = invoke(*shlex.split(command), *place)
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1
    assert text in result.output


@pytest.mark.parametrize("command", ["device pub demo", "device sub", "device pub demo x --qos 3", "app send", "tail", "nonsense"])
def test_wrong_usage(command: str) -> None:
    assert invoke(*command.split()).exit_code == 2


class TestCheck:
    def test_nothing_is_made_and_nothing_is_wrong(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        result = invoke(
            "check", "--set", f"gateway.data_dir={data}", "--set", f"mqtt.tcp={HOST}:{free_port()}", "--set", "http.listen=", "--json"
        )
        assert result.exit_code == 0
        found = [json.loads(line) for line in result.stdout.splitlines()]
        assert [one["name"] for one in found] == ["mqtt.tcp", "store", "backend"]
        assert all(one["ok"] for one in found)
        assert not data.exists()

    def test_a_port_in_use(self, tmp_path: Path) -> None:
        import socket

        with socket.socket() as other:
            other.bind((HOST, 0))
            other.listen()
            listen = f"{HOST}:{other.getsockname()[1]}"
            result = invoke("check", "--set", f"gateway.data_dir={tmp_path}", "--set", f"mqtt.tcp={listen}", "--set", "http.listen=")
        assert result.exit_code == 1
        assert re.search(rf"FAILED mqtt.tcp: {listen}: Address already in use. stop what uses it", result.stdout)

    def test_name_servers_that_do_not_answer(self, tmp_path: Path) -> None:
        url = f"rocketmq://{HOST}:{free_port()}"
        place = ["--set", f"gateway.data_dir={tmp_path}", "--set", f"mqtt.tcp={HOST}:{free_port()}", "--set", "http.listen="]
        result = invoke("check", *place, "--set", f"backend.url={url}", "--json")
        assert result.exit_code == 1
        found = [json.loads(line) for line in result.stdout.splitlines()]
        bad = [one for one in found if not one["ok"]]
        assert bad
        assert url.removeprefix("rocketmq://") in json.dumps(bad)
        assert all(one["cure"] for one in bad)


class Serving:
    """`serve` as a child process with stdout and stderr apart."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.settings = ["--set", f"gateway.data_dir={folder / 'data'}", "--set", f"mqtt.tcp={HOST}:{self.port}", "--set", "http.listen="]
        self.out, self.err = folder / "out", folder / "err"
        self.command = [sys.executable, "-m", "gateway.cli", "serve", *self.settings, *more]

    def start(self) -> None:
        server = Server(self.command, self.port, self.out)
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        for _ in range(600):
            if server._accepts() or self.process.poll() is not None:
                break
            try:
                self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        assert self.process.poll() is None, self.err.read_text()

    def stop(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        try:
            assert self.process.wait(30) == 0, self.err.read_text()
        finally:
            self.process.kill()
            self.process.wait()
        assert "Traceback" not in self.err.read_text() + self.out.read_text()

    def call(self, *arguments: str, example: str = "") -> subprocess.CompletedProcess[str]:
        command = shlex.split(example) if example else [sys.executable, "-m", "gateway.cli", *arguments]
        return subprocess.run([*command, *self.settings], capture_output=True, text=True, timeout=60, check=False)


def test_the_first_run_shows_what_works_and_hides_it_from_the_log(tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    serving.start()
    try:
        shown = serving.out.read_text()
        sample = re.search(r"mosquitto_pub -h (\S+) -p (\d+) -i (\S+) -u (\S+) -P (\S+) ", shown)
        assert sample, shown
        secret = re.search(r"secret key: (\S+)\)", shown)
        assert secret, shown
        for hidden in (secret[1], shlex.split(sample[5])[0]):
            assert hidden not in serving.err.read_text()
        assert (sample[1], int(sample[2])) == (HOST, serving.port)
        (send,) = re.findall(r"(?m)^ +(\S.* app send .*)$", shown)
        sent = serving.call(example=send)
        assert sent.returncode == 0, sent.stderr
        assert sent.stdout.startswith("stored ")
        published = serving.call("device", "pub", "demo/hello", "hi", "--json")
        assert json.loads(published.stdout)["acknowledged"] is True
        running = serving.call("check")
        assert running.returncode == 0
        assert "runs, with data in" in running.stdout
    finally:
        serving.stop(signal.SIGTERM)
    assert not (tmp_path / "data" / "control.sock").exists()
    serving.start()
    try:
        assert serving.out.read_text() == ""  # a secret goes to a file once at most
    finally:
        serving.stop(signal.SIGINT)


@pytest.mark.parametrize("anonymous", ["true", "false"])
def test_a_data_directory_that_can_not_be_made(tmp_path: Path, anonymous: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    place = ["--set", f"gateway.data_dir={tmp_path / 'file' / 'data'}", "--set", f"mqtt.tcp={HOST}:{free_port()}"]
    result = invoke("serve", *place, "--set", f"auth.anonymous={anonymous}", "--set", "naming.mode=any")
    assert result.exit_code == 1
    assert result.output.startswith("error: gateway.data_dir: ")
    assert result.output.count("\n") == 1


def test_a_second_gateway_on_the_port_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    first, second = Serving(tmp_path / "1"), Serving(tmp_path / "2")
    first.start()
    try:
        result = subprocess.run(
            [*second.command, "--set", f"mqtt.tcp={HOST}:{first.port}"], capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 1
        assert result.stderr.startswith("error: ")
        assert str(first.port) in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
    finally:
        first.stop(signal.SIGTERM)


def test_the_end_of_the_terminal_ends_it_in_order(tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    serving.start()
    serving.stop(signal.SIGHUP)
    assert not (tmp_path / "data" / "control.sock").exists()
