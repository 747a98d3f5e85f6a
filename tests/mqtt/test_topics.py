"""Topic names and filters (clause 4.7)."""

from __future__ import annotations

import pytest
from hypothesis import given

from gateway.mqtt.errors import Fault, MqttError
from gateway.mqtt.topics import check_filter, check_name, matches, split_parent
from tests.mqtt import strategies

MATCHES = [
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
    ("sport/tennis/player1/#", "sport/tennis/player10", False),
    ("sport/#", "sport", True),
    ("sport/#", "sports", False),
    ("#", "a", True),
    ("#", "/", True),
    ("#", "a/b/c", True),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+", "a", True),
    ("+", "/a", False),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+", "/finance", False),
    ("+/tennis/#", "x/tennis", True),
    ("a/+/c", "a/b/c", True),
    ("a/+/c", "a/b/d", False),
    ("a/+/c", "a/b", False),
    ("a/+/#", "a", False),
    ("a/+/#", "a/b", True),
    # [MQTT-4.7.2-1]
    ("#", "$SYS/a", False),
    ("+/a", "$SYS/a", False),
    ("+", "$SYS", False),
    ("$SYS/#", "$SYS/a", True),
    ("$SYS/+", "$SYS/a", True),
    ("a/#", "a/$b", True),
    ("a/+", "a/$b", True),
    # [MQTT-4.7.3-1] [MQTT-4.7.3-4]: case, blanks and slashes count, nothing is normalised
    ("ACCOUNTS", "Accounts", False),
    ("a b", "a b", True),
    ("a", "/a", False),
    ("a", "a/", False),
    ("é", "e\u0301", False),
]


@pytest.mark.parametrize(("filter", "topic", "expected"), MATCHES)
def test_matches(filter: str, topic: str, expected: bool) -> None:
    check_filter(filter)
    check_name(topic)
    assert matches(filter, topic) is expected


@pytest.mark.parametrize(
    "filter", ["#", "+", "/", "//", "a", "a/b", "a/+", "+/a", "a/#", "+/+/#", "/#", "$SYS/#", "a b", " ", "\ufeff", "x" * 65535]
)
def test_good_filters(filter: str) -> None:
    check_filter(filter)


@pytest.mark.parametrize(
    ("filter", "clause"),
    [
        ("", "MQTT-4.7.3-1"),
        ("a#", "MQTT-4.7.1-2"),
        ("a/#/b", "MQTT-4.7.1-2"),
        ("##", "MQTT-4.7.1-2"),
        ("#/", "MQTT-4.7.1-2"),
        ("/a#", "MQTT-4.7.1-2"),
        ("#/#", "MQTT-4.7.1-2"),
        ("a+", "MQTT-4.7.1-3"),
        ("+a/b", "MQTT-4.7.1-3"),
        ("a/++", "MQTT-4.7.1-3"),
        ("+/b+/#", "MQTT-4.7.1-3"),
        ("a\0", "MQTT-1.5.3-2"),
        ("a\x01", "MQTT-1.5.3-2"),
        ("\x7f", "MQTT-1.5.3-2"),
        ("\x9f/a", "MQTT-1.5.3-2"),
        ("\ud800", "MQTT-1.5.3-1"),
        ("é" * 32768, "MQTT-4.7.3-3"),
    ],
)
def test_bad_filters(filter: str, clause: str) -> None:
    with pytest.raises(MqttError, match=clause) as caught:
        check_filter(filter)
    assert caught.value.fault is Fault.MALFORMED


@pytest.mark.parametrize(
    ("topic", "clause"),
    [
        ("", "MQTT-4.7.3-1"),
        ("a/#", "MQTT-3.3.2-2"),
        ("a+b", "MQTT-3.3.2-2"),
        ("a\0b", "MQTT-1.5.3-2"),
        ("a\nb", "MQTT-1.5.3-2"),
        ("a\x80", "MQTT-1.5.3-2"),
        ("\udfff", "MQTT-1.5.3-1"),
        ("x" * 65536, "MQTT-4.7.3-3"),
    ],
)
def test_bad_names(topic: str, clause: str) -> None:
    with pytest.raises(MqttError, match=clause):
        check_name(topic)


@given(strategies.names)
def test_a_name_is_a_filter_that_matches_itself(topic: str) -> None:
    check_name(topic)
    check_filter(topic)
    assert matches(topic, topic)


@given(strategies.filters())
def test_made_up_filters_are_well_formed(filter: str) -> None:
    check_filter(filter)


@pytest.mark.parametrize(
    ("topic", "parts"),
    [("a", ("a", "")), ("a/b/c", ("a", "/b/c")), ("a/", ("a", "/")), ("/a", ("", "/a")), ("a//b", ("a", "//b"))],
)
def test_split_parent(topic: str, parts: tuple[str, str]) -> None:
    assert split_parent(topic) == parts
    assert "".join(parts) == topic
