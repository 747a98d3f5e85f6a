"""gateway.tools.output: harmless lines, and the times that people write."""

from __future__ import annotations

import base64
import time

import pytest

from gateway.tools.output import clock, harmless, payload_fields, readable, start_time
from gateway.tools.running import ToolError


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"hello", "hello"),
        ("grüß 灯".encode(), "grüß 灯"),
        (b"two\nlines", "two\nlines"),
        (b"", "<0 bytes>"),
        (b"a\0b", "<3 bytes: 61 00 62>"),
        (b"\xff", "<1 bytes: ff>"),
        (b"\x1b[31m", "<5 bytes: 1b 5b 33 31 6d>"),
    ],
)
def test_payloads(data: bytes, shown: str) -> None:
    assert readable(data) == shown


def test_a_long_binary_payload_is_cut() -> None:
    assert readable(bytes(1000)) == f"<1000 bytes: {bytes(64).hex(' ')}...>"


def test_names_can_not_write_to_the_terminal() -> None:
    assert harmless("a/b ü") == "a/b ü"
    assert harmless("a\x1b[31m\n") == r"a\x1b[31m\n"


def test_json_fields() -> None:
    assert payload_fields(b"hi") == {"body": "aGk=", "text": "hi"}
    assert payload_fields(b"\xff") == {"body": base64.b64encode(b"\xff").decode()}


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("begin", "begin"),
        ("now", "now"),
        ("1700000000123", "1700000000123"),
        ("1700000000", "1700000000000"),
        ("2026-01-31T08:00:00+00:00", "1769846400000"),
        ("2026-01-31T08:00:00Z", "1769846400000"),
    ],
)
def test_times(text: str, start: str) -> None:
    assert start_time(text) == start


def test_so_long_ago() -> None:
    for text, seconds in (("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400)):
        assert abs(int(start_time(text)) / 1000 - (time.time() - seconds)) < 60


@pytest.mark.parametrize("text", ["", "yesterday", "10x", "-5m", "2026-13-01"])
def test_no_times(text: str) -> None:
    with pytest.raises(ToolError, match="--from"):
        start_time(text)


def test_the_clock_shows_milliseconds() -> None:
    assert clock(1769846400123).endswith(".123")
