"""What the tests of reading share: a cluster with one queue, opened, filled and watched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from backend_adapters.rocketmq_remoting import RocketMQ, codes
from backend_adapters.rocketmq_remoting.frames import Frame
from gateway.ports import Queue
from tests.backend_adapters.rocketmq_remoting.scripted import Answer, Broker, Cluster, Outcomes

QUEUE = Queue("topic", "broker-0", 0)
ALL = frozenset({"T"})


@asynccontextmanager
async def opened(cluster: Cluster) -> AsyncIterator[tuple[RocketMQ, Broker, Outcomes]]:
    with pytest.MonkeyPatch.context() as patch:
        async with cluster.running(patch) as backend:
            yield backend, cluster.brokers[0], Outcomes(backend)


def fill(broker: Broker, *bodies: bytes, tag: str = "T", queue: int = 0) -> None:
    for body in bodies:
        broker.queues[queue].append(({"UNIQ_KEY": f"ID{len(broker.queues[queue])}", "TAGS": tag}, body))


def of_pulls(answer: Callable[[int, Frame], Answer | None]) -> Callable[[Frame], Answer | None]:
    pulls = iter(range(1_000_000))
    return lambda frame: answer(next(pulls), frame) if frame.code == codes.PULL_MESSAGE else None


def pulled(broker: Broker) -> list[tuple[int, str]]:
    return [(int(frame.fields["queueOffset"]), frame.fields["subscription"]) for frame in broker.asked if frame.code == codes.PULL_MESSAGE]
