"""gateway.rules.names: contract section 1."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from gateway.rules.names import ClientId, NameFault, group_of, is_group, parse_client_id
from gateway.settings.values import check_group


def parse(text: str, mode: Literal["strict", "any"] = "strict", max_length: int = 64) -> ClientId | NameFault:
    return parse_client_id(text, mode=mode, default_group="GID_default", max_length=max_length)


@pytest.mark.parametrize("text", ["GID_abc", "GID_" + "x" * 28, "GID_a-b_C9", "GID____"])
def test_groups(text: str) -> None:
    assert is_group(text)


@pytest.mark.parametrize(
    "text", ["", "GID_", "GID_ab", "GID_" + "x" * 29, "gid_abc", "CID_abc", "GID_ab c", "GID_äöü", "GID_abc\n", "xGID_abc", "GID_a@b"]
)
def test_no_groups(text: str) -> None:
    assert not is_group(text)


@given(st.text(alphabet="GID_ab-9 é", max_size=34) | st.from_regex(r"\AGID_[A-Za-z0-9_-]{2,30}\Z"))
def test_settings_and_rules_agree_on_groups(text: str) -> None:
    try:
        check_group(text)
    except PydanticCustomError:
        assert not is_group(text)
    else:
        assert is_group(text)


@pytest.mark.parametrize(
    ("text", "device"),
    [("GID_abc@@@1", "1"), ("GID_abc@@@a@@@b", "a@@@b"), ("GID_abc@@@@", "@"), ("GID_abc@@@a/b", "a/b"), ("GID_abc@@@灯 1", "灯 1")],
)
def test_strict(text: str, device: str) -> None:
    assert parse(text) == ClientId("GID_abc", device, text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", NameFault.EMPTY),
        ("x" * 65, NameFault.TOO_LONG),
        ("GID_abc@@@" + "x" * 55, NameFault.TOO_LONG),
        ("GID_abc@@@a\x7f", NameFault.INVISIBLE),
        ("GID_abc@@@a\u200b", NameFault.INVISIBLE),
        ("GID_abc", NameFault.NO_GROUP),
        ("GID_abc@@1", NameFault.NO_GROUP),
        ("@@@1", NameFault.BAD_GROUP),
        ("GID_ab@@@1", NameFault.BAD_GROUP),
        ("GID_abc@@@", NameFault.NO_DEVICE),
    ],
)
def test_refused(text: str, fault: NameFault) -> None:
    assert parse(text) is fault


def test_the_longest_is_accepted() -> None:
    assert isinstance(parse("GID_abc@@@" + "ü" * 54), ClientId)
    assert isinstance(parse("x" * 10, "any", 10), ClientId)
    assert parse("x" * 11, "any", 10) is NameFault.TOO_LONG


@pytest.mark.parametrize("text", ["x", "mosq-abc", "GID_abc@@@", "gid@@@1", "a\u200b"])
def test_any_gives_the_default_group(text: str) -> None:
    assert parse(text, "any") == ClientId("GID_default", text, text)
    assert group_of(text, "GID_default") == "GID_default"


def test_any_still_knows_groups() -> None:
    assert parse("GID_abc@@@1", "any") == ClientId("GID_abc", "1", "GID_abc@@@1")
    assert parse("", "any") is NameFault.EMPTY


@given(st.text(max_size=70), st.sampled_from(["strict", "any"]))
def test_what_is_accepted_keeps_its_group(text: str, mode: Literal["strict", "any"]) -> None:
    parsed = parse(text, mode)
    if isinstance(parsed, ClientId):
        assert parsed.text == text
        assert parsed.device
        assert is_group(parsed.group)
        assert group_of(text, "GID_default") == parsed.group
