"""The whole table of QoS and cleanSession (contract section 5): who gets what while it is online, away, and back on another node."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import trio

from tests.kit.nodes import Nodes

pytestmark = pytest.mark.services


class Row(NamedTuple):
    """qos: of the subscription. sent: QoS of the PUBLISH. kept: what is sent while the device is away comes when it is back."""

    clean: bool
    qos: int
    sent: int
    kept: bool


# A message is delivered at the smaller of the two; only QoS 1 and 2 of a persistent session wait for it.
TABLE = [Row(clean, qos, sent, not clean and min(qos, sent) > 0) for clean in (True, False) for qos in (0, 1, 2) for sent in (0, 1, 2)]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{'clean' if row.clean else 'persistent'}-sub{row.qos}-pub{row.sent}")
@pytest.mark.parametrize("back", [0, 1], ids=["same_node", "other_node"])
async def test_what_a_session_gets(nodes: Nodes, row: Row, back: int) -> None:
    topic, client_id = nodes.topic(), nodes.id()
    device, ack = await nodes.attempt(0, client_id, clean=row.clean)
    assert not ack.session_present
    assert await device.subscribe((topic, row.qos)) == [row.qos]
    publisher = await nodes.device(1)
    await publisher.deliver(topic, b"online", row.sent)
    found = await device.receive()
    assert (found.payload, found.qos) == (b"online", min(row.qos, row.sent))
    await device.disconnect()

    for number in range(3):
        await publisher.deliver(topic, b"away %d" % number, row.sent)
    await trio.sleep(0.3)  # at QoS 0 nothing tells when the last one is on its way
    device, ack = await nodes.attempt(back, client_id, clean=row.clean)
    assert ack.session_present is not row.clean
    if row.kept:
        assert [(await device.receive()).payload for _ in range(3)] == [b"away 0", b"away 1", b"away 2"]
    if row.clean:
        await device.subscribe((topic, row.qos))
    await publisher.deliver(topic, b"back", row.sent)
    assert [each.payload for each in await device.receive_until(b"back")] == []
    await device.expect_nothing(0.1)
