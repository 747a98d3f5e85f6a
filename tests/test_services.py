"""`deploy/services.py`: real servers start, answer, survive `kill` and end; nothing else is touched."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import server, services
from deploy.services import Mosquitto, Redis, RocketMQ, Server, ServiceError
from tests.kit.services import StartRocketMQ


def redis_says(server: Redis, command: str) -> str:
    with socket.create_connection((services.HOST, server.port), timeout=5) as connection:
        connection.sendall(command.encode() + b"\r\n")
        return connection.recv(200).decode()


def test_a_missing_program_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.shutil, "which", lambda *_, **__: None)
    with pytest.raises(ServiceError, match=r"mvn is missing.*apt-get install -y maven"):
        services.program("mvn")


def test_a_version_that_is_none_is_refused() -> None:
    with pytest.raises(ServiceError, match=r"no version of RocketMQ; write one such as"):
        services.rocketmq_jars("../5.5.0")


def test_a_free_port_leaves_room_for_its_neighbours() -> None:
    port = services.free_port((-2, 0, 1))
    for distance in (-2, 0, 1):
        with socket.socket() as probe:
            probe.bind((services.HOST, port + distance))


def test_ports_are_kept_until_another_takes_them(tmp_path: Path) -> None:
    first = services.ports(tmp_path, {"one": (0,)})
    assert services.ports(tmp_path, {"one": (0,)}) == first
    with socket.socket() as other:
        other.bind((services.HOST, first["one"]))
        other.listen()
        assert services.ports(tmp_path, {"one": (0,)}) != first


def test_stop_leaves_a_process_alone_that_only_shares_the_pid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "ROOT", tmp_path)
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (tmp_path / "redis.pid.json").write_text(json.dumps({"pid": stranger.pid, "marks": ["redis-server"], "address": "127.0.0.1:1"}))
    assert services.stop() == []
    assert stranger.poll() is None
    stranger.communicate(b"\n", timeout=10)


def test_stop_ends_what_an_earlier_command_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "ROOT", tmp_path)
    home = tmp_path / "mosquitto"
    code = f"from pathlib import Path; from deploy.services import Mosquitto; Mosquitto.started(Path({str(home)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert list(services.status()) == ["mosquitto/mosquitto"]
    assert services.stop(["redis"]) == []
    assert services.stop(["mosquitto"]) == ["mosquitto/mosquitto"]
    assert services.status() == {}


def test_stop_leaves_the_servers_of_a_running_test_to_it(mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "ROOT", mosquitto.home)
    assert services.stop() == []
    assert services.mqtt_answers(mosquitto.port)


def test_a_server_that_ends_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such disk')"]
    with pytest.raises(ServiceError, match=r"(?s)ended while starting.*no such disk"):
        Server("broken", tmp_path, "127.0.0.1:1", command, ["SystemExit"], lambda: False).start()


def test_redis_keeps_what_it_acknowledged_through_a_kill(redis: Redis) -> None:
    assert redis_says(redis, "SET colour blue") == "+OK\r\n"
    redis.kill()
    assert redis.pid is None
    with pytest.raises(OSError, match="refused"):
        redis_says(redis, "PING")
    redis.restart()
    assert redis_says(redis, "GET colour").endswith("blue\r\n")


def test_a_second_start_finds_the_running_server(redis: Redis) -> None:
    again = Redis.started(redis.home)
    assert (again.pid, again.address) == (redis.pid, redis.address)


def test_mosquitto_answers_until_it_is_paused(mosquitto: Mosquitto) -> None:
    assert services.mqtt_answers(mosquitto.port)
    mosquitto.pause()
    with pytest.raises(TimeoutError):
        services.mqtt_answers(mosquitto.port)
    mosquitto.resume()
    assert services.mqtt_answers(mosquitto.port)


@pytest.mark.services
def test_the_shared_rocketmq_answers(rocketmq: RocketMQ) -> None:
    names = services.registered_brokers(int(rocketmq.namesrv.rpartition(":")[2]))
    assert names == {"broker-0": rocketmq.brokers[0].address}
    assert rocketmq.proxy is not None
    assert services.grpc_answers(int(rocketmq.proxy.rpartition(":")[2]))


@pytest.mark.services
@pytest.mark.slow
def test_a_broker_can_be_killed_paused_and_restarted(rocketmq_cluster: StartRocketMQ) -> None:
    cluster = rocketmq_cluster(brokers=2)
    namesrv = cluster.servers[0].port
    first, second = cluster.brokers
    first.kill()
    services.wait_until(lambda: list(services.registered_brokers(namesrv)) == ["broker-1"], "deregistration", 10, lambda: True, first.log)
    first.restart()
    assert set(services.registered_brokers(namesrv)) == {"broker-0", "broker-1"}
    second.pause()
    with pytest.raises(TimeoutError):
        services.remoting_call(second.port, 28, timeout=0.5)
    second.resume()
    assert services.remoting_call(second.port, 28)[0]["code"] == 0


@pytest.mark.services
def test_every_port_is_open_on_the_loopback_interface_alone(rocketmq: RocketMQ) -> None:
    proc = Path("/proc/net/tcp")
    if not proc.exists():
        pytest.fail("this test reads /proc/net/tcp; run it on Linux")
    own = {inode for server in rocketmq.servers for inode in _socket_inodes(server.pid)}
    assert own
    listening = [line.split() for table in (proc, Path("/proc/net/tcp6")) for line in table.read_text().splitlines()[1:]]
    addresses = {fields[1].split(":")[0] for fields in listening if fields[3] == "0A" and fields[9] in own}
    assert addresses == {"0100007F"}  # 127.0.0.1


def _socket_inodes(pid: int | None) -> set[str]:
    links = [file.readlink().name for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()]
    return {name[8:-1] for name in links if name.startswith("socket:[")}
