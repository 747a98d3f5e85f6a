"""The same walk over every server generation, through the proxy, with access control, and against brokers that are set up strictly."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import trio

from backend_adapters.rocketmq_remoting import RocketMQ
from deploy.services import RocketMQ as Servers
from gateway.ports import BackendError, Message, Properties, Receipt, Refusal, Start
from tests.backend_adapters.rocketmq_remoting.scripted import Listener
from tests.kit.services import StartRocketMQ

pytestmark = [pytest.mark.services, pytest.mark.slow]
TAG = frozenset({"T"})


@asynccontextmanager
async def running(address: str, access_key: str = "", secret_key: str = "") -> AsyncIterator[RocketMQ]:
    backend = RocketMQ.open(f"rocketmq://{address}", access_key, secret_key)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: backend.run(task_status=task_status))
        yield backend
        nursery.cancel_scope.cancel()


async def send(backend: RocketMQ, topic: str, bodies: list[bytes], tag: str = "T", key: str = "key") -> list[Receipt | BackendError]:
    outcomes: list[Receipt | BackendError] = []
    for body in bodies:
        backend.submit(Message(topic, body, tag, Properties(n="v\n"), key, backend.new_id()), outcomes.append)
    with trio.fail_after(60):
        await backend.drain()
    return outcomes


async def walk(backend: RocketMQ, topic: str, group: str) -> None:
    """Send, read with tags, change them, commit, read on, and begin at the end."""
    listener = Listener()
    consumer = await backend.consume(topic, TAG, group, listener)
    bodies = [b"", b"\0a\0", bytes(range(256)), b"x" * 60_000]
    outcomes = await send(backend, topic, bodies)
    assert all(isinstance(outcome, Receipt) for outcome in outcomes), outcomes
    await send(backend, topic, [b"other"], tag="OTHER")
    await listener.until(4, 30)
    assert listener.bodies == bodies
    assert [message.offset for message in listener.messages] == [outcome.offset for outcome in outcomes if isinstance(outcome, Receipt)]
    assert {tuple(message.properties.items()) for message in listener.messages} == {(("n", "v\n"),)}
    await consumer.retag(TAG | {"OTHER"})
    await send(backend, topic, [b"wide"], tag="OTHER")
    await listener.when(lambda: listener.bodies[-1] == b"wide", 30)
    assert listener.bodies[4:] in ([b"wide"], [b"other", b"wide"]), (
        "from the position on, which may be before what the old tags did not match"
    )
    await consumer.close()
    await send(backend, topic, [b"next"])
    again, end, skipped = Listener(), Listener(), Listener()
    await backend.consume(topic, TAG, group, again)
    await again.until(1, 30)
    assert again.bodies == [b"next"]
    assert again.messages[0].replayed
    await backend.consume(topic, TAG, f"{group}_end", end, start=Start.LAST)
    await backend.commit_end(topic, f"{group}_skipped")
    await backend.consume(topic, TAG, f"{group}_skipped", skipped)
    await send(backend, topic, [b"last"])
    for each in (end, skipped):
        await each.until(1, 30)
        assert each.bodies == [b"last"]
        assert not each.messages[0].replayed
    assert all(row.ok for row in await backend.health()), await backend.health()


@pytest.mark.parametrize("version", ["4.9.7", "5.1.4", "5.3.3", "5.5.0"])
async def test_every_generation(version: str, rocketmq_cluster: StartRocketMQ) -> None:
    cluster = await trio.to_thread.run_sync(lambda: rocketmq_cluster(version))
    async with running(cluster.namesrv) as backend:
        await backend.create_topic("walk", 4)
        await walk(backend, "walk", "GID_walk")


async def test_through_the_proxy(rocketmq: Servers) -> None:
    topic = f"proxy_{uuid4().hex[:8]}"
    async with running(rocketmq.namesrv) as backend:
        await backend.create_topic(topic, 4)
    assert rocketmq.proxy_remoting
    async with running(rocketmq.proxy_remoting) as backend:
        assert await backend.topic(f"none_{topic}") is None
        await walk(backend, topic, f"GID_{topic}")


async def test_bodies_of_64_kib_do_not_fail_each_other_and_one_too_large_fails_alone(rocketmq: Servers) -> None:
    topic = f"large_{uuid4().hex[:8]}"
    async with running(rocketmq.namesrv) as backend:
        await backend.create_topic(topic, 1)
        bodies = [number.to_bytes(2) + b"x" * 65_534 for number in range(200)]
        bodies[77] = bytes(5 * 1024 * 1024)
        outcomes = await send(backend, topic, bodies)
        errors = [at for at, outcome in enumerate(outcomes) if isinstance(outcome, BackendError)]
        assert errors == [77]
        error = outcomes[77]
        assert isinstance(error, BackendError)
        assert error.refusal is Refusal.TOO_LARGE
        listener = Listener()
        await backend.consume(topic, None, None, listener)
        await listener.until(199, 60)
        assert listener.bodies == bodies[:77] + bodies[78:]


async def test_access_control(rocketmq_cluster: StartRocketMQ) -> None:
    options = {
        "authenticationEnabled": "true",
        "authenticationProvider": "org.apache.rocketmq.auth.authentication.provider.DefaultAuthenticationProvider",
        "authenticationMetadataProvider": "org.apache.rocketmq.auth.authentication.provider.LocalAuthenticationMetadataProvider",
        "initAuthenticationUser": json.dumps({"username": "admin", "password": "right"}),
        "innerClientAuthenticationCredentials": json.dumps({"accessKey": "admin", "secretKey": "right"}),
        "authorizationEnabled": "true",
        "authenticationWhitelist": "28",  # the fixture asks so whether it is up
        "authorizationWhitelist": "28",
        "authorizationProvider": "org.apache.rocketmq.auth.authorization.provider.DefaultAuthorizationProvider",
        "authorizationMetadataProvider": "org.apache.rocketmq.auth.authorization.provider.LocalAuthorizationMetadataProvider",
    }
    cluster = await trio.to_thread.run_sync(lambda: rocketmq_cluster(options=options))
    async with running(cluster.namesrv, "admin", "right") as backend:
        await backend.create_topic("walk", 2)
        await walk(backend, "walk", "GID_walk")
    async with running(cluster.namesrv, "admin", "wrong") as backend:
        (outcome,) = await send(backend, "walk", [b"forged"])
        assert isinstance(outcome, BackendError)
        assert outcome.refusal is Refusal.NOT_PERMITTED
        assert "wrong" not in str(outcome)
        with pytest.raises(BackendError) as caught:
            await backend.create_topic("forged", 2)
        assert caught.value.refusal is Refusal.NOT_PERMITTED
        bad = [row for row in await backend.health() if not row.ok]
        assert any("secret_key" in row.cure for row in bad)


async def test_a_broker_that_creates_no_groups(rocketmq_cluster: StartRocketMQ) -> None:
    cluster = await trio.to_thread.run_sync(lambda: rocketmq_cluster(options={"autoCreateSubscriptionGroup": "false"}))
    async with running(cluster.namesrv) as backend:
        await backend.create_topic("strict", 1)
        await send(backend, "strict", [b"1"])
        reader, listener = Listener(), Listener()
        await backend.consume("strict", None, None, reader)
        await reader.until(1, 30)
        await backend.consume("strict", None, "GID_missing", listener)
        await trio.sleep(2)
        (row,) = [row for row in await backend.health() if not row.ok]
        assert "GID_missing" in row.name
        assert "-g GID_missing" in row.cure
        await trio.to_thread.run_sync(lambda: cluster.admin("updateSubGroup", "-c", "DefaultCluster", "-g", "GID_missing"))
        await listener.until(1, 30)


async def test_an_operator_sees_and_resets_the_group(rocketmq: Servers) -> None:
    topic = f"admin_{uuid4().hex[:8]}"
    group = f"GID_{topic}"
    async with running(rocketmq.namesrv) as backend:
        await backend.create_topic(topic, 1)
        await send(backend, topic, [b"1", b"2", b"3"])
        listener = Listener()
        consumer = await backend.consume(topic, TAG, group, listener)
        await listener.until(3, 30)
        with trio.fail_after(20):
            while consumer.committed(next(iter(listener.assigned_at))) != 3:
                await trio.sleep(0.1)
        shown = await trio.to_thread.run_sync(lambda: rocketmq.admin("consumerConnection", "-g", group))
        assert "PYTHON" in shown
        assert topic in shown
        await trio.to_thread.run_sync(lambda: rocketmq.admin("resetOffsetByTime", "-g", group, "-t", topic, "-s", "0"))
        await listener.until(6, 60)
        assert listener.bodies == [b"1", b"2", b"3"] * 2
