"""A server app that sends downlink messages at a rate, whatever happens to the servers: what has no answer is given up, not sent twice."""

from __future__ import annotations

import time
import uuid
from itertools import count
from typing import Any, NamedTuple

import trio

from tests.faults.harness.events import Acknowledged, Published, payload
from tests.faults.harness.line import Note
from tests.faults.harness.senders import LATE_SECONDS, Orders
from tests.kit.remoting import Remoting, RemotingError
from tests.kit.server_app import RocketMQApp

ANSWER_SECONDS = 3.0
RETRY_SECONDS = 0.3


class Manner(NamedTuple):
    """topic: the parent. seconds: subtopics, taken in turn. rate: messages a second. size: bytes."""

    topic: str
    seconds: list[str]
    rate: float
    size: int


class _Steady(Remoting):
    """Routes are asked for once, as SDKs do it: a dead name server stops nobody who knows the way."""

    def __init__(self, namesrv: str) -> None:
        super().__init__(namesrv)
        self._known: dict[str, dict[str, Any]] = {}

    async def _route(self, topic: str) -> dict[str, Any]:
        if topic not in self._known:
            found = await super()._route(topic)
            if not found:
                return found
            self._known[topic] = found
        return self._known[topic]


class App(RocketMQApp):
    """Keeps its routes over new connections."""

    def __init__(self, namesrv: str) -> None:
        super().__init__(namesrv)
        self._remoting: _Steady = _Steady(namesrv)

    async def reopen(self) -> None:
        """Close the connections; new ones are made when they are needed."""
        await self.close()
        self._remoting._connections.clear()


class Talker:
    """One connection of the server app."""

    def __init__(self, name: str, namesrv: str, manner: Manner, orders: Orders, note: Note) -> None:
        self._name = name
        self._app = App(namesrv)
        self._manner = manner
        self._orders = orders
        self._note = note
        self._numbers = count()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Between `go` and `quiet`."""
        await self._app.send(self._manner.topic, b"", "harness")  # learns the route; no tag of a downlink message
        task_status.started()
        await self._orders.go.wait()
        due = trio.current_time()
        while not self._orders.quiet.is_set():
            due = max(due + 1 / self._manner.rate, trio.current_time() - LATE_SECONDS)
            await trio.sleep_until(due)
            await self._send()
        await self._app.close()

    async def _send(self) -> None:
        number = next(self._numbers)
        id, qos = f"{self._name}-{number}", 1 + number % 2
        second = self._manner.seconds[number // 2 % len(self._manner.seconds)]
        properties = {"mqttSecondTopic": second, "qoslevel": str(qos), "UNIQ_KEY": uuid.uuid4().hex.upper()}
        self._note(Published(time.time(), id, self._name, self._manner.topic + second, qos, 0, 0, False))
        try:
            with trio.fail_after(ANSWER_SECONDS):
                await self._app.send(self._manner.topic, payload(id, self._manner.size), properties=properties)
        except (OSError, RemotingError, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
            await self._app.reopen()
            await trio.sleep(RETRY_SECONDS)
        else:
            self._note(Acknowledged(time.time(), id, self._name))
