"""A receiver that does not read, beside one that does (design section 3.5): it slows nobody, and loses nothing that it was promised."""

from __future__ import annotations

import pytest
import trio

from tests.faults.account import connector
from tests.kit.load import Receiver
from tests.kit.wire import Kind
from tests.kit.world import Scene

COUNT, SIZE = 1500, 8192  # more than the mailbox and the socket buffers hold


def body(number: int) -> bytes:
    return b"%06d" % number + b"." * (SIZE - 6)


async def publish_all(scene: Scene, topic: str) -> None:
    """COUNT messages at QoS 1, 50 in flight."""
    sender = await scene.device()
    for number in range(COUNT):
        await sender.publish(topic, body(number), 1)
        if number >= 50:
            await sender.expect(Kind.PUBACK)
    for _ in range(50):
        await sender.expect(Kind.PUBACK)


@pytest.mark.slow
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_clean_session_that_does_not_read(scene: Scene, qos: int) -> None:
    """At QoS 0 messages are dropped; at QoS 1 and 2 the connection is closed. The other one gets everything, in order."""
    topic = scene.parent + scene.sub()
    stuck = await scene.subscriber((topic, qos), auto_ack=False)
    quick = await scene.subscriber((topic, 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish_all, scene, topic)
        for number in range(COUNT):
            assert (await quick.receive(60)).payload[:6] == b"%06d" % number
    if qos:
        left = await stuck.expect_closed(30)
        assert len(left) < COUNT
    else:
        await stuck.ping()
        seen = [packet.payload[:6] for packet in stuck.inbox if packet.kind is Kind.PUBLISH]
        assert seen == sorted(set(seen))
    await quick.ping()


@pytest.mark.slow
@pytest.mark.parametrize("qos", [1, 2])
async def test_persistent_session_that_does_not_read(scene: Scene, qos: int) -> None:
    """What it did not take waits for it."""
    topic, client_id = scene.parent + scene.sub(), scene.id()
    stuck = await scene.subscriber((topic, qos), client_id=client_id, clean=False, auto_ack=False)
    quick = await scene.subscriber((topic, 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish_all, scene, topic)
        for number in range(COUNT):
            assert (await quick.receive(60)).payload[:6] == b"%06d" % number
    await stuck.drop(reset=True)
    receiver = Receiver(connector(scene, client_id), [])
    receiver.subscribed.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.run)
        await receiver.until({body(number) for number in range(COUNT)}, 60)
        nursery.cancel_scope.cancel()
