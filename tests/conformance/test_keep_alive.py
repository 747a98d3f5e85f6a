"""Keep-alive, PINGREQ and DISCONNECT (clauses 3.1.2.10, 3.12 to 3.14). Only these tests wait by the clock: keep-alive has whole seconds."""

from __future__ import annotations

import pytest
import trio

from tests.kit.broker import Broker
from tests.kit.wire import DISCONNECT, PINGREQ, Kind, ack_bytes, frame, publish_bytes, subscribe_bytes


async def test_mqtt_3_1_2_24_silence_of_one_and_a_half_keep_alives_closes(broker: Broker) -> None:
    device = await broker.connect(keep_alive=1)
    start = trio.current_time()
    assert await device.expect_closed() == []
    late = 5 if broker.name == "gateway" else 9  # mosquitto looks every few seconds
    assert 1.4 < trio.current_time() - start < late


async def test_mqtt_3_1_2_24_every_packet_counts_as_life(broker: Broker) -> None:
    topic = broker.topic()
    packets = {
        "pingreq": PINGREQ,
        "publish": publish_bytes(topic, b"x"),
        "subscribe": subscribe_bytes(1, [(topic, 0)]),
        "pubrel": ack_bytes(Kind.PUBREL, 1),
    }
    devices = {kind: await broker.connect(keep_alive=1, auto_ack=False) for kind in packets}
    for _ in range(4):
        for kind, device in devices.items():
            await device.send_raw(packets[kind])
        await trio.sleep(0.6)
    for device in devices.values():
        await device.ping()


async def test_mqtt_3_1_2_24_what_the_server_sends_does_not_count(broker: Broker) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 0), keep_alive=1)
    sender = await broker.connect()
    start = trio.current_time()
    with trio.move_on_after(6):
        while not device.eof:
            await sender.publish(topic, b"x")
            with trio.move_on_after(0.2):
                await device.expect_closed()
    assert device.eof, "the device was silent and stayed connected"
    assert trio.current_time() - start > 1.2


async def test_mqtt_3_1_2_24_keep_alive_0_is_no_limit(broker: Broker) -> None:
    device = await broker.connect(keep_alive=0)
    await trio.sleep(2)
    await device.ping()


async def test_mqtt_3_1_2_24_half_a_packet_is_no_life(broker: Broker) -> None:
    device = await broker.connect(keep_alive=1)
    await device.send_raw(b"\x30\x05\x00")
    await device.expect_closed(6)


async def test_mqtt_3_12_4_1_pingresp(broker: Broker) -> None:
    device = await broker.connect()
    for _ in range(5):
        await device.send_raw(PINGREQ)
        assert (await device.next()).kind is Kind.PINGRESP


async def test_mqtt_3_12_4_1_as_many_pingresps_as_pingreqs(broker: Broker) -> None:
    device = await broker.connect()
    await device.send_raw(PINGREQ * 50)
    for _ in range(50):
        assert (await device.next()).kind is Kind.PINGRESP


async def test_mqtt_3_14_4_2_server_closes_after_disconnect(broker: Broker) -> None:
    device = await broker.connect()
    await device.send_raw(DISCONNECT)
    assert await device.expect_closed() == []


async def test_mqtt_3_14_4_1_packets_behind_disconnect_are_ignored(broker: Broker) -> None:
    topic = broker.topic()
    watcher = await broker.subscriber((topic, 1))
    device = await broker.connect()
    await device.send_raw(publish_bytes(topic, b"before") + DISCONNECT + publish_bytes(topic, b"after"))
    await device.expect_closed()
    assert (await watcher.receive()).payload == b"before"
    await watcher.deliver(topic, b"marker")
    assert await watcher.receive_until(b"marker") == []


@pytest.mark.parametrize("flags", range(1, 16))
async def test_mqtt_3_14_1_1_disconnect_flags_close(broker: Broker, flags: int) -> None:
    device = await broker.connect()
    await device.send_raw(frame(0xE0 | flags))
    await device.expect_closed()


@pytest.mark.targets("gateway")  # mosquitto 2.0 does not look at them
@pytest.mark.parametrize("flags", range(1, 16))
async def test_mqtt_2_2_2_2_pingreq_flags_close(broker: Broker, flags: int) -> None:
    device = await broker.connect()
    await device.send_raw(frame(0xC0 | flags))
    assert await device.expect_closed() == []
