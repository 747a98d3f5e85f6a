"""The servers of one run, on free ports of 127.0.0.1: Redis if the store is Redis, RocketMQ, and the gateway nodes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from deploy.services import Redis, RocketMQ
from tests.faults.harness.parts import Node, Part
from tests.kit.server_app import RocketMQApp

EVENTS = "GID_default_MQTT"  # of mode "any": so that lifecycle events are made too
QUEUES = 8
BROKER = {"registerNameServerPeriod": "10000"}  # ms, its least: until a new name server knows the topic, nobody new can read it


class Stage:
    """folder: logs and data of everything. parent: the bridged topic. nodes, rocketmq, redis: what can be killed."""

    def __init__(self, folder: Path, store: str, nodes: int, version: str, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.store = store
        self.parent = f"faults{uuid.uuid4().hex[:8]}"
        self.instance = self.parent
        self._version = version
        self._say = say
        self._count = nodes
        self.redis: Redis | None = None
        self.rocketmq: RocketMQ | None = None
        self.nodes: list[Node] = []
        self._read: dict[str, int] = {}  # how far each gateway log was looked through

    def start(self) -> None:
        """Everything up, topics made. Raises ServiceError, AssertionError."""
        began = time.monotonic()
        if self.store == "redis":
            self._say("starting Redis (appendfsync always)")
            self.redis = Redis.started(self.folder / "redis")
        self._say(f"starting RocketMQ {self._version}")
        self.rocketmq = RocketMQ.start(self.folder / "rocketmq", self._version, options=BROKER, heap=512)
        trio.run(self._make_topics)
        for number in range(self._count):
            self._say(f"starting gateway {number}")
            self.nodes.append(Node(self.folder / f"gateway-{number}", number, self._settings(number)))
            self.nodes[-1].start()
        self._say(f"everything runs after {time.monotonic() - began:.0f} s")

    async def _make_topics(self) -> None:
        app = RocketMQApp(self.namesrv)
        await app.create_topic(self.parent, QUEUES)
        await app.create_topic(EVENTS, 4)
        await app.close()

    def _settings(self, number: int) -> dict[str, Any]:
        store = self.redis.url if self.redis is not None else f"sqlite:{self.folder / f'gateway-{number}' / 'data' / 'store.db'}"
        return {
            "gateway": {"instance": self.instance},
            "backend": {"url": f"rocketmq://{self.namesrv}"},
            "store": {"url": store},
            "bridge": {"topics": [self.parent], "default_topic": "", "create_topics": False},
            "limits": {"offline_batch": 1000, "offline_interval_seconds": 0.05},  # a backlog is not to take 30 messages a second
        }

    @property
    def namesrv(self) -> str:
        assert self.rocketmq is not None
        return self.rocketmq.namesrv

    @property
    def ports(self) -> list[int]:
        return [node.port for node in self.nodes]

    def part(self, kind: str, number: int) -> Part:
        """The victim. number: of the gateway."""
        assert self.rocketmq is not None
        if kind == "gateway":
            return self.nodes[number]
        if kind == "redis":
            assert self.redis is not None
            return self.redis
        return self.rocketmq.brokers[0] if kind == "broker" else self.rocketmq.servers[0]

    def complaints(self) -> list[str]:
        """Tracebacks and faults of their own that the gateways logged since the last call, and nodes that died by themselves."""
        found: list[str] = []
        for node in self.nodes:
            text = node.log()
            fresh = text[self._read.get(node.name, 0) :]
            self._read[node.name] = len(text)
            lines = [line for line in fresh.splitlines() if '"internal_error"' in line or "Traceback" in line]
            found += [f"{node.name}: {line[:2000]}" for line in lines]
            if node.process is not None and node.process.poll() is not None:
                found.append(f"{node.name} ended by itself with exit code {node.process.poll()}: {node.log_path}")
        return found

    def end(self) -> list[str]:
        """Stop the gateways in order (what is wrong with that), and kill the rest."""
        wrong: list[str] = []
        for node in self.nodes:
            try:
                if node.process is not None:
                    code = node.terminate()
                    wrong += [f"{node.name}: exit code {code} after SIGTERM"] if code else []
            except AssertionError as problem:
                wrong.append(str(problem)[:300])
        self.kill()
        return wrong

    def kill(self) -> None:
        """Everything, at once; frozen ones too."""
        for node in self.nodes:
            node.kill()
        for cluster in (self.rocketmq, self.redis):
            if cluster is not None:
                cluster.kill()
