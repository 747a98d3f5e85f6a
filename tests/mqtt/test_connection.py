"""The server's connection: which packet may come when, and how it ends."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mqtt import codec
from gateway.mqtt.connection import Close, Connection
from gateway.mqtt.encode import encode
from gateway.mqtt.errors import Fault
from gateway.mqtt.packets import (
    ConnAck,
    Connect,
    Disconnect,
    Level,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    Publish,
    SubAck,
    Subscribe,
    UnsubAck,
)
from tests.mqtt import strategies
from tests.mqtt.strategies import LEVELS, pieces


def a_connect(level: Level = Level.V311, keep_alive: int = 10) -> Connect:
    return Connect(level, "c", True, keep_alive, None, None, None)


def connected(keep_alive: int = 10) -> Connection:
    connection = Connection()
    assert connection.feed(encode(a_connect(keep_alive=keep_alive))) == [a_connect(keep_alive=keep_alive)]
    return connection


def closed(connection: Connection, data: bytes, fault: Fault, text: str, answer: bytes = b"") -> None:
    """`data` ends the connection, and nothing comes after."""
    (close,) = connection.feed(data)
    assert isinstance(close, Close)
    assert close.fault is fault
    assert text in close.text
    assert close.answer == answer
    assert connection.feed(codec.PINGREQ) == []
    assert connection.feed(encode(a_connect())) == []


@pytest.mark.parametrize("packet", [Publish("a", b""), PingReq(), Disconnect(), PubAck(1), Subscribe(1, [("a", 0)]), ConnAck(False, 0)])
def test_first_packet_is_connect(packet: Packet) -> None:
    closed(Connection(), encode(packet), Fault.PROTOCOL, "MQTT-3.1.0-1")


def test_other_first_packet_fails_with_its_first_byte() -> None:
    closed(Connection(), b"\x30", Fault.PROTOCOL, "MQTT-3.1.0-1")


def test_second_connect() -> None:
    closed(connected(), encode(a_connect()), Fault.PROTOCOL, "MQTT-3.1.0-2")


def test_second_connect_in_one_read() -> None:
    found = Connection().feed(codec.PINGREQ.join((encode(a_connect()), encode(a_connect()))) + codec.PINGREQ)
    assert found[:2] == [a_connect(), PingReq()]
    assert isinstance(found[2], Close)
    assert len(found) == 3


@pytest.mark.parametrize("packet", [ConnAck(False, 0), SubAck(1, [0]), UnsubAck(1), PingResp()])
def test_packets_that_only_servers_send(packet: Packet) -> None:
    closed(connected(), encode(packet), Fault.PROTOCOL, type(packet).__name__.upper())


@pytest.mark.parametrize(
    ("data", "fault", "text"),
    [
        (b"\x82\x02\x00\x01", Fault.PROTOCOL, "MQTT-3.8.3-3"),
        (b"\xa2\x02\x00\x01", Fault.PROTOCOL, "MQTT-3.10.3-2"),
        (b"\x82\x06\x00\x01\x00\x01a\x04", Fault.MALFORMED, "MQTT-3-8.3-4"),
        (b"\xff", Fault.MALFORMED, "MQTT-2.2.2-2"),
        (b"\x30\xff\xff\xff\x7f", Fault.TOO_LARGE, "limit"),
    ],
)
def test_faults_of_a_connected_client(data: bytes, fault: Fault, text: str) -> None:
    closed(connected(), data, fault, text)


def test_nothing_is_processed_after_disconnect() -> None:
    connection = connected()
    assert connection.feed(codec.puback(1) + codec.DISCONNECT + codec.PINGREQ + b"\xff\xff") == [PubAck(1), Disconnect()]
    assert connection.feed(codec.PINGREQ) == []


def test_packets_before_a_fault_are_given() -> None:
    found = connected().feed(codec.puback(1) + b"\x00\x00")
    assert found[0] == PubAck(1)
    assert isinstance(found[1], Close)


def test_unacceptable_level_is_answered() -> None:
    data = encode(a_connect()).replace(b"MQTT\x04", b"MQTT\x05")
    closed(Connection(), data, Fault.BAD_LEVEL, "MQTT-3.1.2-2", b"\x20\x02\x00\x01")


def test_rejected_identifier_is_answered() -> None:
    data = encode(Connect(Level.V311, "", False, 10, None, None, None))
    closed(Connection(), data, Fault.BAD_IDENTIFIER, "MQTT-3.1.3-8", b"\x20\x02\x00\x02")


def test_unknown_protocol_is_not_answered() -> None:
    closed(Connection(), encode(a_connect()).replace(b"MQTT", b"HTTP"), Fault.PROTOCOL, "MQTT-3.1.2-1")


def test_a_second_connect_with_a_bad_level_gets_no_answer() -> None:
    closed(connected(), encode(a_connect()).replace(b"MQTT\x04", b"MQTT\x05"), Fault.BAD_LEVEL, "MQTT-3.1.2-2")


def test_level_and_keep_alive_are_those_of_the_connect() -> None:
    connection = Connection()
    assert not connection.connected
    connection.feed(encode(a_connect(Level.V31, 77)))
    assert connection.connected
    assert connection.level is Level.V31
    assert connection.keep_alive == 77
    assert connection.feed(b"\x6a\x02\x00\x01") != []  # DUP on a PUBREL is a 3.1 habit


def test_keep_alive_ends_after_one_and_a_half_times() -> None:
    connection = connected(keep_alive=10)
    assert not connection.expired(now=115.0, last=100.0)
    assert connection.expired(now=115.1, last=100.0)


def test_keep_alive_zero_never_ends() -> None:
    assert not connected(keep_alive=0).expired(now=1e9, last=0.0)


def test_oversize_payload_does_not_end_the_connection() -> None:
    connection = Connection(max_payload=10)
    connection.feed(encode(a_connect()))
    assert connection.feed(encode(Publish("a", b"x" * 11, 1, packet_id=3))) == [Publish("a", b"", 1, packet_id=3, oversize=11)]


@given(st.sampled_from(LEVELS), st.data())
def test_a_conversation_in_any_pieces(level: Level, data: st.DataObject) -> None:
    packets: list[Packet] = [
        data.draw(strategies.connects(level)),
        *data.draw(st.lists(strategies.midway(level), max_size=5)),
        Disconnect(),
    ]
    stream = b"".join(encode(packet, level) for packet in packets)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    connection = Connection()
    assert [found for piece in pieces(stream, cuts) for found in connection.feed(piece)] == packets


@given(st.booleans(), st.lists(st.binary(max_size=40), max_size=5), st.lists(strategies.packets(Level.V311), max_size=3), st.data())
def test_garbage_ends_with_one_close_at_most(ready: bool, garbage: list[bytes], packets: list[Packet], data: st.DataObject) -> None:
    reads = data.draw(st.permutations([*garbage, *(encode(packet) for packet in packets)]))
    connection = connected() if ready else Connection()
    found = [value for read in reads for value in connection.feed(read)]
    assert not any(isinstance(value, Close | Disconnect) for value in found[:-1])


def test_memory_when_idle() -> None:
    connection = connected()
    decoder = connection._decoder
    assert not hasattr(connection, "__dict__")
    assert not hasattr(decoder, "__dict__")
    assert sys.getsizeof(connection) + sys.getsizeof(decoder) < 700
    assert decoder._pending is None
