#!/usr/bin/env python3
"""Real servers for a developer and for the tests: Redis, RocketMQ and mosquitto on 127.0.0.1 (standard library only).

    python3 deploy/services.py start|stop|status [--json] [--version 5.5.0] [--only redis,rocketmq]

Everything lies under the git-ignored `.services/`: programs, data, logs and one `*.pid.json` for each server process. Ports are free ones,
kept for the next start. `stop` ends only processes whose pid file and command line agree.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent / ".services"
ROCKETMQ_VERSION = "5.5.0"
HOST = "127.0.0.1"
PACKAGES = {
    "java": "default-jdk-headless",
    "javac": "default-jdk-headless",
    "mvn": "maven",
    "redis-server": "redis-server",
    "mosquitto": "mosquitto",
}
ROCKETMQ_PARTS = ("namesrv", "broker", "proxy", "tools")


class ServiceError(Exception):
    """A server could not be had. The text says which, why, and what to do."""


# ---------------------------------------------------------------- programs and ports


def program(name: str) -> str:
    """The path of `name`; installs its Debian package when root. Raises ServiceError with the command that installs it."""
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which(name, path=search)
    if found:
        return found
    package = PACKAGES[name]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _apt_install(package)
        found = shutil.which(name, path=search)
        if found:
            return found
    raise ServiceError(f"{name} is missing. Install it with: sudo apt-get install -y {package} (or your system's package of that name)")


def _apt_install(package: str) -> None:
    """Install without letting the package start its own system-wide server."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "-qq", "update"], ["apt-get", "-qq", "install", "-y", "--no-install-recommends", package]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ServiceError(f"`{' '.join(command)}` failed:\n{done.stderr.strip()[-2000:]}")
    finally:
        if ours:
            policy.unlink()


def free_port(beside: Sequence[int] = (0,)) -> int:
    """A port p below the ephemeral range such that p + d is free for every d of `beside`."""
    for _ in range(1000):
        port = random.randrange(10_000, 30_000)
        if all(_is_free(port + distance) for distance in beside):
            return port
    raise ServiceError("no free port between 10000 and 30000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def wait_until(ready: Callable[[], bool], what: str, deadline: float, alive: Callable[[], bool], log: Path) -> None:
    """Poll `ready` for `deadline` seconds. Raises ServiceError with the end of the log."""
    end = time.monotonic() + deadline
    while True:
        with contextlib.suppress(OSError, ValueError, struct.error):
            if ready():
                return
        over = time.monotonic() > end
        if over or not alive():
            text = log.read_text(errors="replace")[-3000:] if log.exists() else ""
            why = f"did not answer within {deadline:.0f} s" if over else "ended while starting"
            raise ServiceError(f"{what} {why}. Log: {log}\n{text}")
        time.sleep(0.1)


# ---------------------------------------------------------------- one server process


class Server:
    """One server process: command, pid file, log, and how to ask whether it answers.

    name: file names and messages. address: "127.0.0.1:port". marks: pieces of a command line, of which only this process has one.
    """

    def __init__(
        self,
        name: str,
        home: Path,
        address: str,
        command: Sequence[str],
        marks: Sequence[str],
        ready: Callable[[], bool],
        *,
        environment: Mapping[str, str] | None = None,
        deadline: float = 30,
    ) -> None:
        self.name = name
        self.home = home
        self.address = address
        self.command = list(command)
        self.marks = list(marks)
        self.ready = ready
        self.environment = {**os.environ, **(environment or {})}
        self.deadline = deadline
        self.log = home / f"{name}.log"
        self.pid_file = home / f"{name}.pid.json"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def pid(self) -> int | None:
        """The pid, if the process of the pid file lives and is ours."""
        if self._child is not None:
            return self._child.pid if self._child.poll() is None else None
        return living(self.pid_file)

    def spawn(self) -> bool:
        """Start the process if it isn't there; doesn't wait for it to answer. False: it was there."""
        if self.pid is not None:
            return False
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.home,
                start_new_session=True,
            )
        self.pid_file.write_text(json.dumps({"pid": self._child.pid, "marks": self.marks, "address": self.address}))
        return True

    def wait(self) -> None:
        """Until it answers a real request. Raises ServiceError."""
        wait_until(self.ready, f"{self.name} at {self.address}", self.deadline, lambda: self.pid is not None, self.log)

    def start(self) -> None:
        self.spawn()
        self.wait()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._end(signal.SIGKILL, 10)

    def pause(self) -> None:
        """SIGSTOP: its connections stay, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM, after 20 s SIGKILL."""
        self._signal(signal.SIGCONT)
        self._end(signal.SIGTERM, 20)

    def restart(self) -> None:
        """Start again on the same port and data (after `kill` or `stop`; a living one is stopped first), and wait until it answers."""
        self.stop()
        self.start()

    def _signal(self, number: int) -> None:
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _end(self, number: int, deadline: float) -> None:
        self._signal(number)
        end = time.monotonic() + deadline
        while self.pid is not None:
            if time.monotonic() > end:
                self._signal(signal.SIGKILL)
            time.sleep(0.05)
        self.pid_file.unlink(missing_ok=True)


def living(pid_file: Path) -> int | None:
    """The pid in `pid_file` if that process lives and its command line holds one of the marks; else None."""
    try:
        noted = json.loads(pid_file.read_text())
        pid, marks = int(noted["pid"]), list(noted["marks"])
    except (OSError, ValueError, KeyError):
        return None
    line = _command_line(pid)
    return pid if any(mark in line for mark in marks) else None


def _command_line(pid: int) -> str:
    """What the process was started with; "" when there is none (a zombie has none either)."""
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self").exists():
        try:
            return proc.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    done = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """One starter or stopper of `home` at a time."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ports(home: Path, wanted: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The ports of `home` by name, kept between starts so that clients find them again. wanted: name -> distances (`free_port`)."""
    file = home / "ports.json"
    kept: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    for name, beside in wanted.items():
        used = living(home / f"{name.partition('_')[0]}.pid.json") is not None  # proxy_remoting belongs to proxy
        if not used and not (name in kept and all(_is_free(kept[name] + distance) for distance in beside)):
            kept[name] = free_port(beside)
    file.write_text(json.dumps(kept))
    return kept


# ---------------------------------------------------------------- Redis and mosquitto


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


# ---------------------------------------------------------------- RocketMQ: the programs


def rocketmq_jars(version: str) -> Path:
    """The directory of RocketMQ's jars, fetched through Maven once. Raises ServiceError."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+){1,3}", version):
        raise ServiceError(f"{version!r} is no version of RocketMQ; write one such as {ROCKETMQ_VERSION}")
    home = ROOT / f"rocketmq-{version}"
    jars = home / "lib"
    with locked(home):
        if not (home / "complete").exists():
            shutil.rmtree(jars, ignore_errors=True)
            _fetch_jars(home, jars, version)
            (home / "complete").touch()
        _compile_loopback(home)
    return jars


def _fetch_jars(home: Path, jars: Path, version: str) -> None:
    parts = [part for part in ROCKETMQ_PARTS if part != "proxy" or int(version.split(".")[0]) >= 5]
    group = "org.apache.rocketmq"
    each = "<dependency><groupId>{}</groupId><artifactId>rocketmq-{}</artifactId><version>{}</version></dependency>"
    project = '<?xml version="1.0" encoding="UTF-8"?>\n<project xmlns="http://maven.apache.org/POM/4.0.0">\n'
    project += "<modelVersion>4.0.0</modelVersion><groupId>services</groupId><artifactId>rocketmq</artifactId><version>1</version>\n"
    project += "<packaging>pom</packaging>\n<dependencies>\n" + "\n".join(each.format(group, part, version) for part in parts)
    (home / "pom.xml").write_text(project + "\n</dependencies>\n</project>\n")
    program("java")
    command = [program("mvn"), "-B", "-q", "-f", str(home / "pom.xml"), "dependency:copy-dependencies"]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
    print(f"RocketMQ {version}: fetching its jars (about 100 MB, once)", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        text = f"`{' '.join(command)}` failed (is the Maven repository reachable?):\n{(done.stdout + done.stderr).strip()[-3000:]}"
        raise ServiceError(text)


def _compile_loopback(home: Path) -> None:
    source, classes = Path(__file__).resolve().parent / "Loopback.java", home / "loopback"
    made = classes / "Loopback.class"
    if made.exists() and made.stat().st_mtime > source.stat().st_mtime:
        return
    command = [program("javac"), "--release", "11", "-d", str(classes), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(f"`{' '.join(command)}` failed (it wants a JDK of 11 or later):\n{(done.stdout + done.stderr).strip()[-3000:]}")


# ---------------------------------------------------------------- RocketMQ: asking it


def remoting_call(port: int, code: int, fields: Mapping[str, str] | None = None, timeout: float = 3) -> tuple[dict[str, Any], bytes]:
    """One request of the remoting protocol with a JSON header. Returns (header, body) of the answer. Raises OSError, ValueError."""
    header = {"code": code, "language": "OTHER", "version": 0, "opaque": 1, "flag": 0, "serializeTypeCurrentRPC": "JSON"}
    encoded = json.dumps({**header, "extFields": dict(fields or {})}).encode()
    with socket.create_connection((HOST, port), timeout=timeout) as connection:
        connection.sendall(struct.pack(">II", 4 + len(encoded), len(encoded)) + encoded)
        (total,) = struct.unpack(">I", _exactly(connection, 4))
        frame = _exactly(connection, total)
    (size,) = struct.unpack(">I", frame[:4])
    size &= 0xFFFFFF
    return json.loads(frame[4 : 4 + size]), frame[4 + size :]


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise ConnectionError("closed within an answer")
        data += chunk
    return bytes(data)


def registered_brokers(namesrv_port: int) -> dict[str, str]:
    """Broker name -> address of its master, as the name server knows them (GET_BROKER_CLUSTER_INFO, 106)."""
    header, body = remoting_call(namesrv_port, 106)
    if header["code"]:
        raise ValueError(f"code {header['code']}: {header.get('remark')}")
    # RocketMQ writes numeric keys without quotes
    table = json.loads(re.sub(rb"([{,])(\d+):", rb'\1"\2":', body)).get("brokerAddrTable", {})
    return {name: broker["brokerAddrs"]["0"] for name, broker in table.items() if "0" in broker["brokerAddrs"]}


def grpc_answers(port: int) -> bool:
    """An HTTP/2 preface is answered with a SETTINGS frame."""
    with socket.create_connection((HOST, port), timeout=2) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
        return _exactly(connection, 9)[3] == 4


# ---------------------------------------------------------------- RocketMQ: a cluster


class RocketMQ:
    """A real RocketMQ: one name server, one or more brokers, a proxy if wanted.

    namesrv, proxy (gRPC), proxy_remoting: "127.0.0.1:port". brokers: `Server`s, named broker-0, broker-1, ...
    """

    def __init__(self, home: Path, version: str, servers: list[Server], proxy_remoting: str | None) -> None:
        self.home = home
        self.version = version
        self.servers = servers
        self.brokers = [server for server in servers if server.name.startswith("broker-")]
        self.stages = [servers[:1], self.brokers, [server for server in servers if server.name == "proxy"]]
        self.namesrv = servers[0].address
        self.proxy = next((server.address for server in servers if server.name == "proxy"), None)
        self.proxy_remoting = proxy_remoting

    @classmethod
    def start(
        cls,
        home: Path,
        version: str = ROCKETMQ_VERSION,
        brokers: int = 1,
        proxy: bool = False,
        options: Mapping[str, str] | None = None,
        heap: int = 512,
    ) -> RocketMQ:
        """The running cluster of `home`; what runs already stays. options: lines of every broker.conf. heap: MiB for each broker.
        Raises ServiceError."""
        home = home.resolve()
        jars = rocketmq_jars(version)
        if proxy and not any(jars.glob("rocketmq-proxy-*.jar")):
            raise ServiceError(f"RocketMQ {version} has no proxy; take 5.0 or later, or start it without one")
        with locked(home):
            cluster = _cluster(home, version, jars, brokers, proxy, options or {}, heap)
            begun: list[Server] = []
            try:
                # each stage needs the one before: a broker that finds no name server tries again only after 30 s, a proxy ends
                for stage in cluster.stages:
                    begun += [server for server in stage if server.spawn()]
                    for server in stage:
                        server.wait()
            except ServiceError:
                for server in reversed(begun):
                    server.kill()
                raise
        return cluster

    def stop(self) -> None:
        """Proxy, brokers, name server, in that order."""
        for server in reversed(self.servers):
            server.stop()

    def kill(self) -> None:
        """SIGKILL for all of them: quick, for clusters that nobody needs any more."""
        for server in reversed(self.servers):
            server.kill()

    def admin(self, *arguments: str) -> str:
        """`mqadmin` of RocketMQ, e.g. admin("updateTopic", "-c", "DefaultCluster", "-t", "orders"). Its output; raises ServiceError."""
        main = "org.apache.rocketmq.tools.command.MQAdminStartup"
        command = [*_java(self.home, rocketmq_jars(self.version), "admin", 128), main, *arguments, "-n", self.namesrv]
        environment = {**os.environ, "ROCKETMQ_HOME": str(self.home)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)
        if done.returncode or "Exception" in done.stdout + done.stderr:
            raise ServiceError(f"mqadmin {' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout


def _java(home: Path, jars: Path, name: str, heap: int) -> list[str]:
    opened = ("java.nio", "java.lang", "java.util", "java.net", "sun.nio.ch")
    exported = ("jdk.internal.ref", "sun.nio.ch")
    command = [program("java"), f"-Xms{heap // 2}m", f"-Xmx{heap}m", "-XX:-UsePerfData", "-Djava.net.preferIPv4Stack=true"]
    command += [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in opened]
    command += [f"--add-exports=java.base/{package}=ALL-UNNAMED" for package in exported]
    # logs go under user.home; 0.98 is cut to what the broker allows at most (0.90)
    command += [f"-Duser.home={home}", f"-Dservice={home}/{name}", "-Drocketmq.broker.diskSpaceWarningLevelRatio=0.98"]
    return [*command, "-cp", f"{jars}/*{os.pathsep}{jars.parent}/loopback", "Loopback"]


def _cluster(home: Path, version: str, jars: Path, brokers: int, proxy: bool, options: Mapping[str, str], heap: int) -> RocketMQ:
    """Write the settings of all servers of `home`, and name them; nothing is started."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "conf").mkdir(exist_ok=True)
    for log in ("namesrv", "broker", "tools"):  # 4.x insists on these files
        (home / "conf" / f"logback_{log}.xml").write_text("<configuration/>\n")
    names = [f"broker-{index}" for index in range(brokers)]
    wanted: dict[str, Sequence[int]] = {"namesrv": (0,), **dict.fromkeys(names, (-2, 0, 1))}
    if proxy:
        wanted |= {"proxy": (0,), "proxy_remoting": (0,)}
    port = ports(home, wanted)
    environment = {"ROCKETMQ_HOME": str(home)}

    def server(name: str, main: str, memory: int, arguments: Sequence[str], ready: Callable[[], bool]) -> Server:
        command = [*_java(home, jars, name, memory), main, *arguments]
        address, marks = f"{HOST}:{port[name]}", [f"-Dservice={home}/{name} "]
        return Server(name, home, address, command, marks, ready, environment=environment, deadline=90)

    conf = home / "conf" / "namesrv.conf"
    conf.write_text(f"bindAddress={HOST}\nlistenPort={port['namesrv']}\n")
    main = "org.apache.rocketmq.namesrv.NamesrvStartup"
    servers = [server("namesrv", main, 256, ["-c", str(conf)], lambda: registered_brokers(port["namesrv"]) is not None)]
    for name in names:
        servers.append(_broker(home, name, port, options, heap, server))
    if proxy:
        servers.append(_proxy(home, port, server))
    remoting = f"{HOST}:{port['proxy_remoting']}" if proxy else None
    return RocketMQ(home, version, servers, remoting)


def _broker(home: Path, name: str, port: Mapping[str, int], options: Mapping[str, str], heap: int, server: Callable[..., Server]) -> Server:
    settings = {
        "brokerClusterName": "DefaultCluster",
        "brokerName": name,
        "brokerId": "0",
        "brokerIP1": HOST,
        "bindAddress": HOST,
        "listenPort": str(port[name]),
        "namesrvAddr": f"{HOST}:{port['namesrv']}",
        "storePathRootDir": str(home / name),
        "storePathCommitLog": str(home / name / "commitlog"),
        "autoCreateTopicEnable": "true",
        "autoCreateSubscriptionGroup": "true",
        "mapedFileSizeCommitLog": str(64 << 20),
        "mappedFileSizeCommitLog": str(64 << 20),
        "diskMaxUsedSpaceRatio": "95",
        "diskSpaceWarningLevelRatio": "98",
        **options,
    }
    conf = home / "conf" / f"{name}.conf"
    conf.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))

    def ready() -> bool:
        answered = remoting_call(port[name], 28)[0]["code"] == 0  # GET_BROKER_RUNTIME_INFO
        return answered and registered_brokers(port["namesrv"]).get(name) == f"{HOST}:{port[name]}"

    return server(name, "org.apache.rocketmq.broker.BrokerStartup", heap, ["-c", str(conf)], ready)


def _proxy(home: Path, port: Mapping[str, int], server: Callable[..., Server]) -> Server:
    settings = {
        "rocketMQClusterName": "DefaultCluster",
        "proxyMode": "CLUSTER",
        "namesrvAddr": f"{HOST}:{port['namesrv']}",
        "grpcServerPort": port["proxy"],
        "remotingListenPort": port["proxy_remoting"],
        "localServeAddr": HOST,
    }
    conf = home / "conf" / "rmq-proxy.json"
    conf.write_text(json.dumps(settings, indent=2))

    def ready() -> bool:
        asked = remoting_call(port["proxy_remoting"], 105, {"topic": "TBW102"})  # GET_ROUTEINFO_BY_TOPIC; any answer will do
        return bool(asked) and grpc_answers(port["proxy"])

    return server("proxy", "org.apache.rocketmq.proxy.ProxyStartup", 512, ["-pc", str(conf)], ready)


# ---------------------------------------------------------------- what `make services` does


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
    return RocketMQ.start(ROOT / f"shared-{version}", version, proxy=int(version.split(".")[0]) >= 5)


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
    """End every server that has a pid file under `.services/` (`only`: by the first part of its path). Their names."""
    ended = []
    order = {"proxy": 0, "namesrv": 2}  # others between: brokers take leave from their name server
    files = sorted(ROOT.glob("**/*.pid.json"), key=lambda file: order.get(file.name.split(".")[0], 1))
    for file in files:
        name = str(file.relative_to(ROOT)).removesuffix(".pid.json")
        kind = "rocketmq" if name.startswith("shared-") else name.split("/")[0]
        if only is not None and kind not in only:
            continue
        if living(file) is not None:
            Server(file.name.removesuffix(".pid.json"), file.parent, "", [], [], lambda: True).stop()
            ended.append(name)
        file.unlink(missing_ok=True)
    return ended


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
    else:
        print("nothing is running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
