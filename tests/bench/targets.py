"""What is measured: the gateway on both backends, mosquitto for the scale, and RocketMQ itself, each started as the run needs it."""

from __future__ import annotations

import resource
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy import services
from tests.bench import reference, stored
from tests.bench.crew import rss_bytes
from tests.bench.links import Address
from tests.bench.wire import Login
from tests.kit.gateway import Gateway
from tests.kit.server import HOST, Server, free_port

FOLDER = services.ROOT / "bench"
PARENTS = ("up", "fan", "dev", "app", "mem")  # one parent topic for each kind of load, so that none sees the subscriptions of another
GROUP = "GID_BENCH"


@dataclass
class Target:
    """A running server. address: of its MQTT port. pids: its processes by name, the one whose CPU time is reported first. run: what makes
    this run's topics new. broker: it is bare RocketMQ, and this its broker. producer: the broker to which a server app sends."""

    name: str
    address: Address
    pids: dict[str, int]
    run: str
    login: Login = field(default_factory=Login)
    broker: Address | None = None
    producer: Address | None = None
    stop: Callable[[], None] = lambda: None
    log: Callable[[], str] = lambda: ""

    def parent(self, kind: str) -> str:
        """The parent topic (RocketMQ topic) of one kind of load."""
        assert kind in PARENTS
        return f"bench-{self.run}-{kind}"

    def end(self) -> None:
        """Stop it; that it did not end well is printed."""
        try:
            self.stop()
        except AssertionError as fault:
            print(f"{self.name} did not end well: {fault}"[-6000:], file=sys.stderr, flush=True)

    def rss(self) -> int:
        """Bytes resident in the server's own process."""
        return rss_bytes(next(iter(self.pids.values())))


def raise_file_limit() -> int:
    """As many open files as the system allows, for us and for the servers that we start. The limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def remove_servers() -> None:
    """End RocketMQ and mosquitto of earlier runs, and drop all data (floods fill gigabytes)."""
    for file in sorted(FOLDER.glob("*/*.pid.json")):
        services.Server(file.name.removesuffix(".pid.json"), file.parent, "", [], [], lambda: True).stop()
    for home in FOLDER.glob("*"):
        if home.name != "profiles":
            shutil.rmtree(home, ignore_errors=True)


class Yard:
    """Starts targets when they are first asked for, and ends what it started. keep: take RocketMQ and mosquitto as earlier runs left them,
    and leave them running; otherwise they are new and go away. sampled: folder for the gateways' profiles."""

    def __init__(self, keep: bool, sampled: Path | None = None) -> None:
        if not keep:
            remove_servers()
        self.run = secrets.token_hex(3)
        self.keep = keep
        self.sampled = sampled
        self.folder = FOLDER / f"run-{self.run}"
        self.folder.mkdir(parents=True)
        self._targets: dict[str, Target] = {}
        self._rocketmq: services.RocketMQ | None = None
        self._redis: services.Redis | None = None

    def target(self, name: str) -> Target:
        """The running target of that name (see TARGETS). Raises ServiceError, AssertionError (it did not start)."""
        if name not in self._targets:
            self._targets[name] = self.start(name)
        return self._targets[name]

    def start(self, name: str) -> Target:
        """A new one, which the caller stops."""
        return _STARTERS[name](self)

    def close(self) -> None:
        """End everything, gateways first; each is tried."""
        for target in reversed(self._targets.values()):
            target.end()
        self._targets.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        if not self.keep:
            remove_servers()

    def sink(self) -> Target:
        port = free_port()
        server = Server([sys.executable, "-m", "tests.bench.sink", str(port)], port, self.folder / "sink.log")
        server.start()
        assert server.process is not None
        return Target("sink", (HOST, port), {"sink": server.process.pid}, self.run, stop=server.kill)

    # -- one starter for each kind

    def mosquitto(self, home: str = "mosquitto") -> Target:
        server = services.Mosquitto.started(FOLDER / home)
        assert server.pid is not None
        stop = (lambda: None) if self.keep and home == "mosquitto" else server.stop
        return Target("mosquitto", (HOST, server.port), {"mosquitto": server.pid}, self.run, stop=stop)

    def rocketmq(self) -> Target:
        if self._rocketmq is None:
            self._rocketmq = services.RocketMQ.start(FOLDER / "rocketmq", heap=1024)
            for kind in PARENTS:
                reference.create_topic(self._broker(), f"bench-{self.run}-{kind}")
            reference.create_topic(self._broker(), f"bench-{self.run}-bare")
        pid = self._rocketmq.brokers[0].pid
        assert pid is not None
        return Target("rocketmq", self._broker(), {"broker": pid}, self.run, broker=self._broker())

    def _broker(self) -> Address:
        assert self._rocketmq is not None
        return HOST, self._rocketmq.brokers[0].port

    def redis(self) -> str:
        """The url of a Redis that writes everything to disk before it answers."""
        if self._redis is None:
            self._redis = services.Redis.started(FOLDER / "redis")
        return self._redis.url

    def gateway(self, name: str, settings: Mapping[str, Any] | None = None, login: Login | None = None, bare: bool = True) -> Target:
        """A gateway process; bare: on RocketMQ, else on its embedded log."""
        pids: dict[str, int] = {}
        backend: dict[str, Any] = {"url": "local:"}
        if bare:
            pids = dict(self.target("rocketmq").pids)
            assert self._rocketmq is not None
            backend = {"url": f"rocketmq://{self._rocketmq.namesrv}"}
        folder = self.folder / f"{name}-{secrets.token_hex(2)}"
        folder.mkdir()
        server = Gateway(folder, _settings(f"bench{self.run}{name}", self.run, backend, settings or {}))
        if self.sampled is not None:
            server.command = [sys.executable, "-m", "tests.bench.sampler", str(self.sampled / f"{name}.txt"), *server.command[3:]]
        server.start()
        assert server.process is not None
        address, pids = (server.host, server.port), {"gateway": server.process.pid, **pids}
        producer = self._broker() if bare else None
        return Target(
            name, address, pids, self.run, login or Login(), producer=producer, stop=server.stop, log=lambda: server.log()[-6000:]
        )


def _settings(instance: str, run: str, backend: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a measured gateway: anyone may connect, only this run's topics are bridged."""
    return {
        "gateway": {"instance": instance.replace("-", "")},
        "backend": backend,
        "bridge": {"topics": [f"bench-{run}-{kind}" for kind in PARENTS], "default_topic": ""},
        **more,
    }


def _strict(yard: Yard) -> Target:
    """With names, signatures and permissions checked as in production."""
    secret = secrets.token_hex(16)
    account = {"access_key": "bench", "secret_key": secret, "groups": [GROUP]}
    settings = {"naming": {"mode": "strict"}, "auth": {"anonymous": False}, "accounts": [account]}
    return yard.gateway("gateway-strict", settings, Login(f"{GROUP}@@@", "bench", secret))


def _with_subscriptions(many: int) -> Callable[[Yard], Target]:
    def start(yard: Yard) -> Target:
        name = f"stored{secrets.token_hex(3)}"
        url = yard.redis()
        stored.fill_index(url, f"bench{yard.run}{name}", f"bench-{yard.run}-dev", many)
        return yard.gateway(name, {"store": {"url": url}})

    return start


def _with_messages(yard: Yard) -> Target:
    """Sessions for which messages wait, to be pushed without pauses."""
    name = f"waiting{secrets.token_hex(3)}"
    url = yard.redis()
    stored.fill_queues(url, f"bench{yard.run}{name}")
    return yard.gateway(name, {"store": {"url": url}, "limits": {"offline_batch": 1000, "offline_interval_seconds": 0.001}})


_STARTERS: dict[str, Callable[[Yard], Target]] = {
    "mosquitto": Yard.mosquitto,
    "rocketmq": Yard.rocketmq,
    "gateway-rocketmq": lambda yard: yard.gateway("gateway-rocketmq"),
    "gateway-local": lambda yard: yard.gateway("gateway-local", bare=False),
    "gateway-redis": lambda yard: yard.gateway("gateway-redis", {"store": {"url": yard.redis()}}),
    "gateway-strict": _strict,
    "sink": Yard.sink,
    "fresh-thousand": _with_subscriptions(1000),
    "fresh-million": _with_subscriptions(1_000_000),
    "fresh-waiting": _with_messages,
    "fresh-gateway": lambda yard: yard.gateway("fresh-gateway", bare=False),
    "fresh-mosquitto": lambda yard: yard.mosquitto("mosquitto-memory"),
}
TARGETS = tuple(_STARTERS)
