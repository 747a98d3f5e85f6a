"""Clean and persistent sessions and the session-present flag (clauses 3.1.2.4, 3.2.2.2 and 4.1)."""

from __future__ import annotations

import pytest

from tests.kit.broker import Broker
from tests.kit.device import Device
from tests.kit.wire import Kind, Packet


def payloads(packets: list[Packet]) -> list[bytes]:
    return [packet.payload for packet in packets]


async def only_marker(device: Device, topic: str) -> None:
    """Nothing was waiting for this device: the first PUBLISH that comes is one that it asks for now."""
    await device.subscribe((topic, 1))
    await device.deliver(topic, b"marker")
    assert await device.receive_until(b"marker") == []


async def test_mqtt_3_2_2_1_clean_session_has_session_present_0(broker: Broker) -> None:
    client_id = broker.id()
    await (await broker.connect(client_id, clean=False)).disconnect()
    _, ack = await broker.attempt(client_id, clean=True)
    assert (ack.code, ack.session_present) == (0, False)


async def test_mqtt_3_2_2_2_stored_session_has_session_present_1(broker: Broker) -> None:
    client_id = broker.id()
    for end in (Device.disconnect, Device.drop):
        device, _ = await broker.attempt(client_id, clean=False)
        await end(device)
        _, ack = await broker.attempt(client_id, clean=False)
        assert (ack.code, ack.session_present) == (0, True)


async def test_mqtt_3_2_2_3_new_session_has_session_present_0(broker: Broker) -> None:
    _, ack = await broker.attempt(clean=False)
    assert (ack.code, ack.session_present) == (0, False)


async def test_level_3_connack_has_no_session_present(broker: Broker) -> None:
    client_id = broker.id()
    await (await broker.connect(client_id, clean=False, level=3)).disconnect()
    _, ack = await broker.attempt(client_id, clean=False, level=3)
    assert (ack.code, ack.session_present) == (0, False)


async def test_mqtt_3_1_2_4_session_is_resumed(broker: Broker) -> None:
    client_id, topic = broker.id(), broker.topic()
    await (await broker.subscriber((topic, 1), client_id=client_id, clean=False)).disconnect()
    device = await broker.resume(client_id)
    await device.deliver(topic, b"still subscribed")
    assert (await device.receive()).payload == b"still subscribed"


@pytest.mark.parametrize("qos", [1, 2])
async def test_mqtt_3_1_2_5_messages_are_kept_while_offline(broker: Broker, qos: int) -> None:
    client_id, topic = broker.id(), broker.topic()
    await (await broker.subscriber((topic, qos), client_id=client_id, clean=False)).disconnect()
    sender = await broker.connect()
    sent = [b"%d" % number for number in range(25)]
    for payload in sent:
        await sender.deliver(topic, payload, qos)
    device = await broker.resume(client_id)
    received = [await device.receive() for _ in sent]
    assert payloads(received) == sent
    assert {(packet.qos, packet.retain, packet.dup) for packet in received} == {(qos, False, False)}


async def test_mqtt_3_1_2_5_messages_are_kept_after_a_drop(broker: Broker) -> None:
    client_id, topic = broker.id(), broker.topic()
    device = await broker.subscriber((topic, 1), client_id=client_id, clean=False)
    await device.drop(reset=True)
    sender = await broker.connect()
    await sender.deliver(topic, b"kept")
    device = await broker.resume(client_id)
    assert (await device.receive()).payload == b"kept"


@pytest.mark.parametrize("qos", [1, 2])
async def test_messages_are_delivered_once_over_many_sessions(broker: Broker, qos: int) -> None:
    client_id, topic = broker.id(), broker.topic()
    device = await broker.subscriber((topic, qos), client_id=client_id, clean=False)
    sender = await broker.connect()
    for number in range(20):
        await device.disconnect()
        await sender.deliver(topic, b"%d" % number, qos)
        device = await broker.resume(client_id)
        assert (await device.receive()).payload == b"%d" % number
        await device.ping()
        await sender.deliver(topic, b"marker", qos)
        assert await device.receive_until(b"marker") == []


async def test_qos_0_messages_are_not_kept_while_offline(broker: Broker) -> None:
    """The contract's table in section 5; the standard leaves it open."""
    client_id, topic = broker.id(), broker.topic()
    await (await broker.subscriber((topic, 1), client_id=client_id, clean=False)).disconnect()
    sender = await broker.subscriber((topic, 1))
    await sender.deliver(topic, b"lost", 0)
    await sender.deliver(topic, b"marker", 1)
    await sender.receive_until(b"marker")
    device = await broker.resume(client_id)
    assert await device.receive_until(b"marker") == []


async def test_qos_0_subscription_keeps_nothing_while_offline(broker: Broker) -> None:
    client_id, topic, other = broker.id(), broker.topic(), broker.topic()
    await (await broker.subscriber((topic, 0), client_id=client_id, clean=False)).disconnect()
    sender = await broker.subscriber((topic, 1))
    await sender.deliver(topic, b"lost", 1)
    await sender.receive()
    await only_marker(await broker.resume(client_id), other)


async def test_mqtt_3_1_2_6_clean_session_discards_the_stored_one(broker: Broker) -> None:
    client_id, topic, other = broker.id(), broker.topic(), broker.topic()
    await (await broker.subscriber((topic, 1), client_id=client_id, clean=False)).disconnect()
    sender = await broker.connect()
    await sender.deliver(topic, b"for the old session")
    clean, ack = await broker.attempt(client_id, clean=True)
    assert not ack.session_present
    await sender.deliver(topic, b"not subscribed any more")
    await only_marker(clean, other)
    await clean.disconnect()
    again, ack = await broker.attempt(client_id, clean=False)
    assert not ack.session_present
    await sender.deliver(topic, b"still not subscribed")
    await only_marker(again, other)


async def test_mqtt_3_1_2_6_clean_session_ends_with_its_connection(broker: Broker) -> None:
    client_id, topic, other = broker.id(), broker.topic(), broker.topic()
    await (await broker.subscriber((topic, 1), client_id=client_id, clean=True)).disconnect()
    sender = await broker.connect()
    await sender.deliver(topic, b"nobody's")
    device, ack = await broker.attempt(client_id, clean=False)
    assert not ack.session_present
    await sender.deliver(topic, b"nobody's either")
    await only_marker(device, other)


async def test_mqtt_3_1_2_7_retained_messages_are_not_part_of_the_session(broker: Broker) -> None:
    client_id, topic = broker.id(), broker.topic()
    device = await broker.connect(client_id, clean=False)
    await device.deliver(topic, b"kept", 1, retain=True)
    await device.disconnect()
    await (await broker.connect(client_id, clean=True)).disconnect()
    reader = await broker.subscriber((topic, 1))
    assert (await reader.receive()).payload == b"kept"


async def test_mqtt_3_1_2_6_take_over_by_a_clean_session_discards(broker: Broker) -> None:
    client_id, topic, other = broker.id(), broker.topic(), broker.topic()
    old = await broker.subscriber((topic, 1), client_id=client_id, clean=False)
    new, ack = await broker.attempt(client_id, clean=True)
    assert not ack.session_present
    await old.expect_closed()
    await new.deliver(topic, b"nobody's")
    await only_marker(new, other)


async def test_take_over_of_a_clean_session_by_a_persistent_one_starts_anew(broker: Broker) -> None:
    client_id, topic, other = broker.id(), broker.topic(), broker.topic()
    old = await broker.subscriber((topic, 1), client_id=client_id, clean=True)
    new, ack = await broker.attempt(client_id, clean=False)
    assert not ack.session_present
    await old.expect_closed()
    await new.deliver(topic, b"nobody's")
    await only_marker(new, other)


@pytest.mark.parametrize("clean", [True, False])
async def test_mqtt_4_1_0_1_session_lives_as_long_as_its_connection(broker: Broker, clean: bool) -> None:
    topic = broker.topic()
    device = await broker.subscriber((topic, 2), clean=clean)
    for qos in (0, 1, 2):
        await device.deliver(topic, b"%d" % qos, qos)
        assert (await device.receive()).qos == qos


async def test_sessions_of_two_clients_are_apart(broker: Broker) -> None:
    first, second, topic, other = broker.id(), broker.id(), broker.topic(), broker.topic()
    await (await broker.subscriber((topic, 1), client_id=first, clean=False)).disconnect()
    await (await broker.subscriber((other, 1), client_id=second, clean=False)).disconnect()
    sender = await broker.connect()
    await sender.deliver(topic, b"one")
    await sender.deliver(other, b"two")
    device = await broker.resume(second)
    assert (await device.receive()).payload == b"two"
    device = await broker.resume(first)
    assert (await device.receive()).payload == b"one"


async def test_disconnect_while_messages_flow_keeps_the_rest(broker: Broker) -> None:
    client_id, topic = broker.id(), broker.topic()
    device = await broker.subscriber((topic, 1), client_id=client_id, clean=False)
    sender = await broker.connect()
    sent = [b"%d" % number for number in range(40)]
    for payload in sent[:20]:
        await sender.deliver(topic, payload)
    received = [(await device.receive()).payload for _ in range(7)]
    received += payloads(await device.disconnect())
    for payload in sent[20:]:
        await sender.deliver(topic, payload)
    device = await broker.resume(client_id)
    while set(received) != set(sent):
        packet = await device.expect(Kind.PUBLISH)
        assert packet.dup or packet.payload not in received, f"{packet} came twice and not as a repeat"
        received.append(packet.payload)
    assert sorted(dict.fromkeys(received), key=int) == sent
    assert list(dict.fromkeys(received)) == sent


async def test_message_that_meets_a_connect_is_not_lost(broker: Broker) -> None:
    """It is published in the moment in which the session comes back: live or kept, it must arrive, and once."""
    client_id, topic = broker.id(), broker.topic()
    device = await broker.subscriber((topic, 1), client_id=client_id, clean=False)
    sender = await broker.connect()
    for number in range(60):
        await device.disconnect()
        waiting = await broker.open()
        await sender.publish(topic, b"%d" % number, 1)
        if number % 2:
            await sender.expect(Kind.PUBACK)
        device, ack = waiting, await waiting.connect(client_id, clean=False)
        assert ack.session_present
        packet = await device.receive()
        assert (packet.payload, packet.dup) == (b"%d" % number, False)
