"""Whatever happens to the brokers, in any order: each message is answered once, none that is acknowledged is missing, and every key
keeps its order (design section 3, point 3)."""

from __future__ import annotations

from itertools import chain
from typing import Any
from zlib import crc32

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from backend_adapters.rocketmq_remoting import codes
from backend_adapters.rocketmq_remoting.frames import Frame
from gateway.ports import Queue, Receipt
from tests.backend_adapters.rocketmq_remoting.scripted import Answer, Broker, Cluster, Outcomes, Server

KEYS = [f"key{number}" for number in range(6)]
ORDERED = KEYS[:2]  # every message of these waits for its broker
BROKERS = st.integers(0, 1)
EVENTS = st.one_of(
    st.tuples(st.sampled_from(["freeze", "swap", "swap", "thaw", "kill", "start", "break_off"]), BROKERS),
    st.tuples(st.just("lose_answers"), st.tuples(BROKERS, st.integers(1, 3))),
    st.tuples(st.just("refuse"), st.tuples(BROKERS, st.sampled_from([codes.SYSTEM_BUSY, codes.SERVICE_NOT_AVAILABLE, codes.GO_AWAY]))),
    st.tuples(st.just("doubt"), st.tuples(BROKERS, st.sampled_from([codes.SYSTEM_ERROR, codes.FLUSH_DISK_TIMEOUT]))),
    st.tuples(st.just("names"), st.booleans()),
)
SENDS = st.tuples(st.just("send"), st.lists(st.sampled_from(KEYS), min_size=1, max_size=20))
WAITS = st.tuples(st.just("wait"), st.sampled_from([0.01, 0.3, 3.0, 7.0, 20.0, 60.0]))
ROUNDS = st.tuples(EVENTS, SENDS, WAITS, SENDS, WAITS)


class History:
    """Carries steps out on a cluster of two brokers with two queues each."""

    def __init__(self, cluster: Cluster, outcomes: Outcomes) -> None:
        self.cluster = cluster
        self.outcomes = outcomes
        self.sent: dict[str, list[bytes]] = {key: [] for key in KEYS}
        self.ids: set[str] = set()

    async def step(self, name: str, argument: Any) -> None:
        if name == "send":
            for key in argument:
                body = f"{key} {len(self.sent[key])}".encode()
                self.sent[key].append(body)
                self.ids.add(self.outcomes.send(body, key, ordered=key in ORDERED))
        elif name == "wait":
            await trio.sleep(argument)
        elif name == "names":
            self.cluster.namesrv.refusing = not argument
            if not argument:
                await self.cluster.namesrv.break_off()
        elif isinstance(argument, tuple):
            self._spoil(self.cluster.brokers[argument[0]], name, argument[1])
        else:
            await self._happen(self.cluster.brokers[argument], name)

    async def _happen(self, broker: Broker, name: str) -> None:
        registered = self.cluster.registered
        if name == "freeze":
            broker.freeze()
        elif name == "swap":  # this one is frozen, and the other one comes back
            broker.freeze()
            other = next(each for each in self.cluster.brokers if each is not broker)
            other.thaw()
            await self._happen(other, "start")
        elif name == "thaw":
            broker.thaw()
        elif name == "break_off":
            await broker.break_off()
        elif name == "kill":
            await broker.kill()
            if broker in registered:
                registered.remove(broker)
        else:
            broker.refusing = False
            if broker not in registered:
                registered.append(broker)

    def _spoil(self, broker: Broker, name: str, argument: int) -> None:
        """The next sends are stored but not answered, refused, or stored and answered doubtfully."""
        left = [argument if name == "lose_answers" else 2]
        usual = Broker.answer

        def hook(frame: Frame) -> Answer | None:
            if frame.code != codes.SEND_BATCH_MESSAGE or not left[0]:
                return None
            left[0] -= 1
            if name == "refuse":
                return argument, "not now", {}, b""
            store = usual(broker, frame)
            with pytest.raises(StopIteration):  # it stores without waiting for anything
                store.send(None)
            return Server.SILENCE if name == "lose_answers" else (argument, "not sure", {}, b"")

        broker.hook = hook

    async def heal(self) -> None:
        self.cluster.namesrv.refusing = False
        for at, broker in enumerate(self.cluster.brokers):
            broker.thaw()
            assert not broker.frozen
            broker.hook = lambda frame: None
            await self.step("start", at)

    def check(self) -> None:
        outcomes, brokers = self.outcomes.all, self.cluster.brokers
        assert all(isinstance(outcome, Receipt) for _, outcome in outcomes)
        stored = [
            (Queue("topic", broker.name, id), properties["UNIQ_KEY"], body)
            for broker in brokers
            for id, messages in broker.queues.items()
            for properties, body in messages
        ]
        assert {id for _, id, _ in stored} == self.ids
        assert len({(queue, id) for queue, id, _ in stored}) == len(self.ids), "repeats lie in the same queue"
        for key, sent in self.sent.items():
            mine = [body for body in self.outcomes.bodies if body.startswith(f"{key} ".encode())]
            assert mine == sent, "each `done` once, in the order of submission"
            queues = {queue for queue, _, body in stored if body in sent}
            for queue in queues:
                firsts = list(dict.fromkeys(body for where, _, body in stored if where == queue and body in sent))
                assert firsts == sorted(firsts, key=sent.index), "the order within a queue, repeats dropped"
            if key in ORDERED and sent:
                home = crc32(key.encode()) % 4
                assert queues == {Queue("topic", f"broker-{home // 2}", home % 2)}


@settings(max_examples=60, deadline=None)
@given(st.lists(ROUNDS, min_size=1, max_size=10))
def test_any_history(rounds: list[tuple[tuple[str, Any], ...]]) -> None:
    async def live() -> None:
        with pytest.MonkeyPatch.context() as patch:
            cluster = Cluster(brokers=2, queues=2)
            async with cluster.running(patch, batch_messages=5) as backend:
                await backend.topic("topic")  # the list of queues is complete
                history = History(cluster, Outcomes(backend))
                for step in chain.from_iterable(rounds):
                    await history.step(*step)
                await history.heal()
                await history.outcomes.until(len(history.ids), 600)
                history.check()
                assert backend.metrics()["backlog"] == 0
                assert backend.metrics()["backlog_bytes"] == 0
                assert not any(sender.detours for sender in backend._producer._senders.values())

    trio.run(live, clock=MockClock(autojump_threshold=0))
