"""Wills (clauses 3.1.2.5 to 3.1.2.7) on every kind of ending."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kit.broker import Broker
from tests.kit.device import Device
from tests.kit.wire import DISCONNECT, Will, connect_bytes, frame, publish_bytes, subscribe_bytes


async def with_will(broker: Broker, will: Will, client_id: str | None = None, **fields: Any) -> Device:
    return await broker.connect(client_id, will=will, **fields)


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_mqtt_3_1_2_8_will_on_a_lost_connection(broker: Broker, qos: int, reset: bool) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 2))
    device = await with_will(broker, Will(topic, b"gone", qos))
    await device.drop(reset)
    will = await watcher.receive()
    assert (will.payload, will.qos, will.retain) == (b"gone", qos, False)


BAD = {
    "reserved_type": frame(0xF0),
    "qos_3": frame(0x36, b"\0\1a\0\1"),
    "wildcard": publish_bytes("a/#", b""),
    "subscribe_flags": frame(0x80, subscribe_bytes(1, [("a", 0)])[2:]),
    "remaining_length": b"\x30\xff\xff\xff\xff\xff\x01",
    "not_utf8": publish_bytes(b"\xff", b""),
}


@pytest.mark.parametrize("bad", BAD)
async def test_mqtt_3_1_2_8_will_after_a_protocol_error(broker: Broker, bad: str) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await with_will(broker, Will(topic, b"gone", 1))
    await device.send_raw(BAD[bad])
    await device.expect_closed()
    assert (await watcher.receive()).payload == b"gone"


@pytest.mark.targets("gateway")  # mosquitto 2.0 forgets the will then
async def test_mqtt_3_1_2_8_will_after_a_second_connect(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await with_will(broker, Will(topic, b"gone", 1))
    await device.send_raw(connect_bytes(broker.id(), will=Will(topic, b"never", 1)))
    await device.expect_closed()
    assert (await watcher.receive()).payload == b"gone"
    await watcher.deliver(topic, b"marker")
    assert await watcher.receive_until(b"marker") == []


async def test_mqtt_3_1_2_8_will_after_a_keep_alive_timeout(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await with_will(broker, Will(topic, b"gone", 1), keep_alive=1)
    assert (await watcher.receive()).payload == b"gone"
    await device.expect_closed()


async def test_mqtt_3_1_2_8_will_of_a_taken_over_connection(broker: Broker) -> None:
    topic, client_id = broker.topic(), broker.id()
    watcher = await broker.subscriber((topic, 1))
    await with_will(broker, Will(topic, b"old", 1), client_id)
    new = await with_will(broker, Will(topic, b"new", 1), client_id)
    assert (await watcher.receive()).payload == b"old"
    await new.drop(reset=True)
    assert (await watcher.receive()).payload == b"new"


async def test_mqtt_3_1_2_8_will_inside_a_half_packet(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await with_will(broker, Will(topic, b"gone", 1))
    await device.send_raw(b"\x30\x10\x00")
    await device.drop()
    assert (await watcher.receive()).payload == b"gone"


async def test_mqtt_3_1_2_10_no_will_after_disconnect(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await with_will(broker, Will(topic, b"never", 1))
    await device.disconnect()
    await watcher.deliver(topic, b"marker")
    assert await watcher.receive_until(b"marker") == []


async def test_mqtt_3_14_4_3_disconnect_then_reset_has_no_will(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await with_will(broker, Will(topic, b"never", 1))
    await device.send_raw(DISCONNECT)
    await device.expect_closed()
    await device.drop(reset=True)
    await watcher.deliver(topic, b"marker")
    assert await watcher.receive_until(b"marker") == []


async def test_mqtt_3_1_2_10_will_is_published_once_only(broker: Broker) -> None:
    """It is no part of the session: coming back without a will leaves none."""
    topic, client_id = broker.topic(), broker.id()
    watcher = await broker.subscriber((topic, 1))
    device = await with_will(broker, Will(topic, b"once", 1), client_id, clean=False)
    await device.drop(reset=True)
    assert (await watcher.receive()).payload == b"once"
    device = await broker.resume(client_id)
    await device.drop(reset=True)
    device = await broker.resume(client_id)
    await device.disconnect()
    await watcher.deliver(topic, b"marker")
    assert await watcher.receive_until(b"marker") == []


async def test_mqtt_3_1_2_12_no_will_flag_no_will(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await broker.connect()
    await device.drop(reset=True)
    await watcher.deliver(topic, b"marker")
    assert await watcher.receive_until(b"marker") == []


async def test_mqtt_3_1_2_16_will_that_is_not_retained(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await with_will(broker, Will(topic, b"gone", 1))
    await device.drop(reset=True)
    assert (await watcher.receive()).payload == b"gone"
    late = await broker.subscriber((topic, 1))
    await late.deliver(topic, b"marker")
    assert await late.receive_until(b"marker") == []


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_mqtt_3_1_2_17_retained_will(broker: Broker, qos: int) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 2))
    device = await with_will(broker, Will(topic, b"gone", qos, retain=True))
    await device.drop(reset=True)
    live = await watcher.receive()
    assert (live.payload, live.retain) == (b"gone", False)
    late = await broker.subscriber((topic, 2))
    kept = await late.receive()
    assert (kept.payload, kept.qos, kept.retain) == (b"gone", qos, True)


async def test_empty_retained_will_clears_the_retained_message(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    await watcher.deliver(topic, b"kept", 1, retain=True)
    assert (await watcher.receive()).payload == b"kept"
    device = await with_will(broker, Will(topic, b"", 1, retain=True))
    await device.drop(reset=True)
    assert (await watcher.receive()).payload == b""
    late = await broker.subscriber((topic, 1))
    await late.deliver(topic, b"marker")
    assert await late.receive_until(b"marker") == []


@pytest.mark.parametrize("payload", [b"", b"\0\xff\0", b"w" * 30000], ids=["empty", "binary", "long"])
async def test_mqtt_3_1_2_9_will_payload_is_any_bytes(broker: Broker, payload: bytes) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await with_will(broker, Will(topic, payload, 1))
    await device.drop(reset=True)
    assert (await watcher.receive()).payload == payload


async def test_will_reaches_the_own_persistent_session(broker: Broker) -> None:
    topic, client_id = broker.topic(), broker.id()
    device = await broker.subscriber((topic, 1), client_id=client_id, clean=False, will=Will(topic, b"mine", 1))
    await device.drop(reset=True)
    device = await broker.resume(client_id)
    assert (await device.receive()).payload == b"mine"


@pytest.mark.parametrize(
    "topic", ["a/#", "+", "a/+/b", b"a\0b", b"\xff", ""], ids=["hash", "plus", "plus_inside", "null", "not_utf8", "empty"]
)
async def test_mqtt_3_1_3_10_bad_will_topic_is_refused(broker: Broker, topic: str | bytes) -> None:
    device = await broker.open()
    await device.send_raw(connect_bytes(broker.id(), will=Will(topic, b"x")))
    assert not [packet for packet in await device.expect_closed() if packet.code == 0]


async def test_will_of_a_refused_connect_is_not_published(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device, ack = await broker.attempt("", clean=False, will=Will(topic, b"never", 1))
    assert ack.code == 2
    await device.expect_closed()
    await watcher.deliver(topic, b"marker")
    assert await watcher.receive_until(b"marker") == []
