#!/usr/bin/env python3
"""Real servers for a developer and for the tests: Redis, RocketMQ and mosquitto on 127.0.0.1 (standard library only).

    python3 deploy/services.py start|stop|status [--json] [--version 5.5.0] [--only redis,rocketmq]

Everything lies under the git-ignored `.services/`: programs, data, logs and one `*.pid.json` for each server process. Ports are free ones,
kept for the next start. `stop` ends only processes whose pid file and command line agree.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from deploy.rocketmq import VERSION as ROCKETMQ_VERSION
from deploy.rocketmq import RocketMQ, grpc_answers, has_proxy, registered_brokers, remoting_call, rocketmq_jars
from deploy.server import HOST, ROOT, Server, ServiceError, free_port, living, locked, ports, program, started_by_another, wait_until

__all__ = [
    "HOST",
    "ROCKETMQ_VERSION",
    "ROOT",
    "Mosquitto",
    "Redis",
    "RocketMQ",
    "Server",
    "ServiceError",
    "free_port",
    "grpc_answers",
    "mqtt_answers",
    "ports",
    "program",
    "redis_answers",
    "registered_brokers",
    "remoting_call",
    "rocketmq_jars",
    "shared_rocketmq",
    "start",
    "status",
    "stop",
    "wait_until",
]


def redis_answers(port: int) -> bool:
    """PING is answered with PONG."""
    with socket.create_connection((HOST, port), timeout=2) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith(b"+PONG")


def mqtt_answers(port: int) -> bool:
    """A CONNECT is answered with CONNACK."""
    with socket.create_connection((HOST, port), timeout=2) as connection:
        connection.sendall(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00")
        return connection.recv(4)[:1] == b"\x20"


class Redis(Server):
    """A real Redis with `appendfsync always`: what it acknowledged survives `kill`."""

    @classmethod
    def at(cls, home: Path, options: Mapping[str, str] | None = None) -> Redis:
        """The server of `home`, not started. options: lines of redis.conf."""
        home = home.resolve()
        home.mkdir(parents=True, exist_ok=True)
        port = ports(home, {"redis": (0,)})["redis"]
        settings = {"bind": HOST, "port": str(port), "dir": str(home), "appendonly": "yes", "appendfsync": "always", "save": '""'}
        settings |= {"daemonize": "no", "enable-debug-command": "local", **(options or {})}
        conf = home / "redis.conf"
        conf.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        marks = [str(conf), f"redis-server {HOST}:{port}"]  # it rewrites its command line
        return cls("redis", home, f"{HOST}:{port}", [program("redis-server"), str(conf)], marks, lambda: redis_answers(port))

    @classmethod
    def started(cls, home: Path, options: Mapping[str, str] | None = None) -> Redis:
        """The running server of `home`. Raises ServiceError."""
        with locked(home):
            server = cls.at(home, options)
            server.start()
            return server

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"


class Mosquitto(Server):
    """mosquitto as a yardstick: anonymous, in memory, no persistence."""

    @classmethod
    def started(cls, home: Path, *, max_queued_messages: int = 0, max_inflight_messages: int = 0) -> Mosquitto:
        """The running server of `home`. 0: unlimited. Raises ServiceError."""
        home = home.resolve()
        with locked(home):
            port = ports(home, {"mosquitto": (0,)})["mosquitto"]
            conf = home / "mosquitto.conf"
            lines = [f"listener {port} {HOST}", "allow_anonymous true", "persistence false", "log_type error", "set_tcp_nodelay true"]
            lines += [f"max_queued_messages {max_queued_messages}", f"max_inflight_messages {max_inflight_messages}"]
            conf.write_text("\n".join(lines) + "\n")
            command = [program("mosquitto"), "-c", str(conf)]
            server = cls("mosquitto", home, f"{HOST}:{port}", command, [str(conf)], lambda: mqtt_answers(port))
            server.start()
            return server


def start(version: str = ROCKETMQ_VERSION, only: Sequence[str] = ("redis", "rocketmq")) -> dict[str, Any]:
    """Start (or find) the shared servers. What runs where, by name. Raises ServiceError."""
    if "redis" in only:
        Redis.started(ROOT / "redis")
    if "rocketmq" in only:
        shared_rocketmq(version)
    if "mosquitto" in only:
        Mosquitto.started(ROOT / "mosquitto")
    return status()


def shared_rocketmq(version: str = ROCKETMQ_VERSION) -> RocketMQ:
    """The cluster that `make services` runs: one broker, and a proxy where the version has one."""
    return RocketMQ.start(ROOT / f"shared-{version}", version, proxy=has_proxy(rocketmq_jars(version)))


def status() -> dict[str, Any]:
    """Every server under `.services/` that lives: path -> pid and address."""
    found: dict[str, Any] = {}
    for file in sorted(ROOT.glob("**/*.pid.json")):
        pid = living(file)
        if pid is not None:
            name = str(file.relative_to(ROOT)).removesuffix(".pid.json")
            found[name] = {"pid": pid, "address": json.loads(file.read_text())["address"]}
    return found


def stop(only: Sequence[str] | None = None) -> list[str]:
    """End the servers that have a pid file under `.services/` (`only`: by kind), but for those of a test run or bench that still goes on.
    Their names."""
    ended = []
    order = {"proxy": 0, "namesrv": 2}  # others between: brokers take leave from their name server
    files = sorted(ROOT.glob("**/*.pid.json"), key=lambda file: order.get(file.name.split(".")[0], 1))
    for file in files:
        name = str(file.relative_to(ROOT)).removesuffix(".pid.json")
        kind = "rocketmq" if name.startswith("shared-") else file.name.split(".")[0]
        if (only is not None and kind not in only) or started_by_another(file):
            continue
        if living(file) is not None:
            Server(file.name.removesuffix(".pid.json"), file.parent, "", [], [], lambda: True).stop()
            ended.append(name)
        file.unlink(missing_ok=True)
    return ended


def _hints(found: Mapping[str, Any]) -> list[str]:
    """How the gateway is told of the servers."""
    named = [(name, server["address"]) for name, server in found.items() if name.startswith("shared-")]
    lines = [f'RocketMQ: mqtt-gateway serve --set backend.url="rocketmq://{at}"' for name, at in named if name.endswith("/namesrv")]
    return [*lines, f"logs and data: {ROOT}; the end of it: make services-stop"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("start", "stop", "status"))
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--version", default=ROCKETMQ_VERSION, help="of RocketMQ")
    parser.add_argument("--only", help="a comma-separated choice of redis, rocketmq, mosquitto")
    chosen = parser.parse_args(arguments)
    only = chosen.only.split(",") if chosen.only else None
    unknown = set(only or ()) - {"redis", "rocketmq", "mosquitto"}
    if unknown:
        parser.error(f"--only: no such service: {', '.join(sorted(unknown))}")
    try:
        if chosen.action == "stop":
            ended = stop(only)
            print(json.dumps(ended) if chosen.json else f"ended: {', '.join(ended) or 'nothing was running'}")
            return 0
        found = start(chosen.version, only or ("redis", "rocketmq")) if chosen.action == "start" else status()
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps(found, indent=2))
    elif found:
        width = max(map(len, found))
        print("\n".join(f"{name:{width}}  {server['address']:21}  pid {server['pid']}" for name, server in found.items()))
        if chosen.action == "start":
            print("\n".join(_hints(found)))
    else:
        print("nothing is running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
