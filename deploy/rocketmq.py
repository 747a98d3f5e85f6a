"""A real RocketMQ from Maven Central: name server, brokers and proxy, on 127.0.0.1 alone (standard library only)."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.server import HOST, ROOT, Server, ServiceError, locked, ports, program, wait_until

VERSION = "5.5.0"
PARTS = ("namesrv", "broker", "proxy", "tools")


def rocketmq_jars(version: str) -> Path:
    """The directory of RocketMQ's jars, fetched through Maven once. Raises ServiceError."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+){1,3}", version):
        raise ServiceError(f"{version!r} is no version of RocketMQ; write one such as {VERSION}")
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
    program("java")
    print(f"RocketMQ {version}: fetching its jars (about 100 MB, once)", file=sys.stderr, flush=True)
    failure = _maven(home, jars, version, PARTS)
    if failure and "rocketmq-proxy" in failure:  # 4.x has none, some 5.x have none in Maven Central
        failure = _maven(home, jars, version, [part for part in PARTS if part != "proxy"])
    if failure:
        raise ServiceError(failure)


def _maven(home: Path, jars: Path, version: str, parts: Sequence[str]) -> str:
    """Copy the parts and what they need to `jars`. What went wrong, or ""."""
    group = "org.apache.rocketmq"
    each = "<dependency><groupId>{}</groupId><artifactId>rocketmq-{}</artifactId><version>{}</version></dependency>"
    project = '<?xml version="1.0" encoding="UTF-8"?>\n<project>\n'
    project += "<modelVersion>4.0.0</modelVersion><groupId>services</groupId><artifactId>rocketmq</artifactId><version>1</version>\n"
    project += "<packaging>pom</packaging>\n<dependencies>\n" + "\n".join(each.format(group, part, version) for part in parts)
    (home / "pom.xml").write_text(project + "\n</dependencies>\n</project>\n")
    command = [program("mvn"), "-B", "-q", "-f", str(home / "pom.xml"), "dependency:copy-dependencies"]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    output = (done.stdout + done.stderr).strip()[-3000:]
    return f"`{' '.join(command)}` failed (is the Maven repository reachable?):\n{output}" if done.returncode else ""


def has_proxy(jars: Path) -> bool:
    """Whether a proxy came with the version in `jars`."""
    return any(jars.glob("rocketmq-proxy-*.jar"))


def _compile_loopback(home: Path) -> None:
    source, classes = Path(__file__).resolve().parent / "Loopback.java", home / "loopback"
    made = classes / "Loopback.class"
    if made.exists() and made.stat().st_mtime > source.stat().st_mtime:
        return
    command = [program("javac"), "--release", "11", "-d", str(classes), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(f"`{' '.join(command)}` failed (it wants a JDK of 11 or later):\n{(done.stdout + done.stderr).strip()[-3000:]}")


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


def has_route(namesrv_port: int, topic: str) -> bool:
    """Whether the name server knows a broker for `topic` (GET_ROUTEINFO_BY_TOPIC, 105)."""
    return bool(remoting_call(namesrv_port, 105, {"topic": topic})[0]["code"] == 0)


def create_topic(broker_port: int, topic: str, queues: int) -> None:
    """Create or change a topic on one broker (UPDATE_AND_CREATE_TOPIC, 17). Raises ServiceError."""
    fields = {"topic": topic, "defaultTopic": "TBW102", "readQueueNums": str(queues), "writeQueueNums": str(queues), "perm": "6"}
    fields |= {"topicFilterType": "SINGLE_TAG", "topicSysFlag": "0", "order": "false"}
    header, _ = remoting_call(broker_port, 17, fields, timeout=20)
    if header["code"]:
        raise ServiceError(f"the broker made no topic {topic}: {header.get('remark')}")


def grpc_answers(port: int) -> bool:
    """An HTTP/2 preface is answered with a SETTINGS frame."""
    with socket.create_connection((HOST, port), timeout=2) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
        return _exactly(connection, 9)[3] == 4


class RocketMQ:
    """A real RocketMQ: one name server, one or more brokers, a proxy if wanted.

    namesrv, proxy (gRPC), proxy_remoting: "127.0.0.1:port". brokers: `Server`s, named broker-0, broker-1, ...
    """

    def __init__(self, home: Path, version: str, servers: list[Server], proxy_remoting: str | None) -> None:
        self.home = home
        self.version = version
        self.servers = servers
        self.brokers = [server for server in servers if server.name.startswith("broker-")]
        self.stages = [servers[:1], self.brokers]
        self.namesrv = servers[0].address
        self.proxy = next((server.address for server in servers if server.name == "proxy"), None)
        self.proxy_remoting = proxy_remoting

    @classmethod
    def start(
        cls,
        home: Path,
        version: str = VERSION,
        brokers: int = 1,
        proxy: bool = False,
        options: Mapping[str, str] | None = None,
        heap: int = 512,
    ) -> RocketMQ:
        """The running cluster of `home`; what runs already stays. options: lines of every broker.conf. heap: MiB for each broker.
        Raises ServiceError."""
        home = home.resolve()
        jars = rocketmq_jars(version)
        if proxy and not has_proxy(jars):
            raise ServiceError(f"Maven has no proxy for RocketMQ {version}; take {VERSION}, or start it without one")
        with locked(home):
            cluster = _cluster(home, version, jars, brokers, proxy, options or {}, heap)
            begun: list[Server] = []
            try:
                # a broker that finds no name server tries again only after 30 s
                for stage in cluster.stages:
                    begun += [server for server in stage if server.spawn()]
                    for server in stage:
                        server.wait()
                if proxy:
                    begun += cluster.start_proxy()
            except ServiceError:
                for server in reversed(begun):
                    server.kill()
                raise
        return cluster

    def start_proxy(self) -> list[Server]:
        """The proxy, in a list when it was not there. It gives up after 3 s without its own topic, which it makes: so that is made before,
        and on a busy machine it is asked more than once."""
        server = self.servers[-1]
        if server.pid is not None:
            server.wait()
            return []
        for broker in self.brokers:
            create_topic(broker.port, "DefaultHeartBeatSyncerTopic", 1)
        namesrv = self.servers[0]
        wait_until(lambda: has_route(namesrv.port, "DefaultHeartBeatSyncerTopic"), "the proxy's topic", 60, lambda: True, namesrv.log)
        for attempt in range(3):
            server.spawn()
            try:
                server.wait()
                break
            except ServiceError:
                if attempt == 2 or server.pid is not None:
                    raise
        return [server]

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
        return Server(name, home, address, command, marks, ready, environment=environment, deadline=120)

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
