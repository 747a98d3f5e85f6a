"""Ordinary MQTT clients against the gateway as it comes: Paho, and mosquitto's command line clients (contract section 2)."""

from __future__ import annotations

import queue
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.kit.world import SECRETS, World, sign

PATIENCE = 20.0  # seconds
BODY = bytes(range(256))


class PahoDevice:
    """A Paho client with its network thread."""

    def __init__(self, world: World, client_id: str, protocol: MQTTProtocolVersion, clean: bool) -> None:
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.events: queue.Queue[Any] = queue.Queue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id, clean, protocol=protocol)
        self.client.username_pw_set("owner", sign(SECRETS["owner"], world.group).decode())
        self.client.on_message = lambda client, data, message: self.messages.put(message)
        self.client.on_connect = lambda client, data, flags, reason, properties: self.events.put((flags.session_present, reason))
        self.client.on_subscribe = lambda client, data, mid, reasons, properties: self.events.put([reason.value for reason in reasons])

    def subscribe(self, topic: str, qos: int) -> None:
        self.client.subscribe(topic, qos)
        assert self.events.get(timeout=PATIENCE) == [qos]

    def publish(self, topic: str, body: bytes, qos: int, retain: bool = False) -> None:
        sent = self.client.publish(topic, body, qos, retain)
        sent.wait_for_publish(PATIENCE)
        assert sent.is_published()

    def receive(self) -> paho.MQTTMessage:
        return self.messages.get(timeout=PATIENCE)


@contextmanager
def connected(
    world: World, client_id: str, protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311, clean: bool = True, present: bool = False
) -> Iterator[PahoDevice]:
    device = PahoDevice(world, client_id, protocol, clean)
    device.client.connect(world.gateway.host, world.gateway.port, keepalive=5)
    device.client.loop_start()
    try:
        found, reason = device.events.get(timeout=PATIENCE)
        assert (found, reason.is_failure) == (present, False)
        yield device
    finally:
        device.client.disconnect()
        device.client.loop_stop()


def new_id(world: World) -> str:
    return f"{world.group}@@@{uuid.uuid4().hex[:8]}"


@pytest.mark.parametrize("protocol", [MQTTProtocolVersion.MQTTv31, MQTTProtocolVersion.MQTTv311])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_paho_publishes_and_receives(world: World, protocol: MQTTProtocolVersion, qos: int) -> None:
    topic = f"{world.parent}/paho/{uuid.uuid4().hex[:8]}"
    with connected(world, new_id(world), protocol) as device:
        device.subscribe(topic + "/#", qos)
        for number in range(30):
            device.publish(f"{topic}/{number % 3}", BODY + b"%d" % number, qos)
        found = [device.receive() for _ in range(30)]
    assert sorted(message.payload for message in found) == sorted(BODY + b"%d" % number for number in range(30))
    assert {message.qos for message in found} == {qos}


def test_paho_persistent_session(world: World) -> None:
    topic, client_id = f"{world.parent}/paho/{uuid.uuid4().hex[:8]}", new_id(world)
    with connected(world, client_id, clean=False) as device:
        device.subscribe(topic, 2)
    with connected(world, new_id(world)) as sender:
        for number in range(10):
            sender.publish(topic, b"%d" % number, 1 + number % 2)
    with connected(world, client_id, clean=False, present=True) as device:
        assert {device.receive().payload for _ in range(10)} == {b"%d" % number for number in range(10)}


def test_paho_retained(world: World) -> None:
    topic = f"{world.parent}/paho/{uuid.uuid4().hex[:8]}"
    with connected(world, new_id(world)) as device:
        device.publish(topic, BODY, 1, retain=True)
        device.subscribe(topic, 1)
        message = device.receive()
        assert message.payload == BODY


def test_paho_is_told_why_it_is_refused(world: World) -> None:
    device = PahoDevice(world, new_id(world), MQTTProtocolVersion.MQTTv311, True)
    device.client.username_pw_set("owner", "wrong")
    device.client.connect(world.gateway.host, world.gateway.port)
    device.client.loop_start()
    try:
        _, reason = device.events.get(timeout=PATIENCE)
        assert reason.is_failure
        assert reason.getName() == "Bad user name or password"
    finally:
        device.client.disconnect()
        device.client.loop_stop()


@pytest.mark.parametrize("version", ["mqttv31", "mqttv311"])
def test_mosquitto_clients(world: World, version: str) -> None:
    topic = f"{world.parent}/mosq/{uuid.uuid4().hex[:8]}"

    def run(program: str, *arguments: str) -> bytes:
        found = shutil.which(program)
        assert found, f"{program} is missing: apt-get install mosquitto-clients"
        password = sign(SECRETS["owner"], world.group).decode()
        address = ["-h", world.gateway.host, "-p", str(world.gateway.port)]
        who = ["-i", new_id(world), "-u", "owner", "-P", password, "-V", version, "-t", topic, "-q", "1"]
        return subprocess.run([found, *address, *who, *arguments], check=True, capture_output=True, timeout=PATIENCE).stdout

    run("mosquitto_pub", "-r", "-m", "hello")
    assert run("mosquitto_sub", "-C", "1") == b"hello\n"
