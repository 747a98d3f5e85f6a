"""Group IDs and Client IDs (contract section 1)."""

from __future__ import annotations

import re
from enum import Enum
from typing import Literal, NamedTuple

SEPARATOR = "@@@"
_GROUP = re.compile(r"GID_[A-Za-z0-9_-]{3,28}")  # 7 to 32 characters in all


class NameFault(Enum):
    """Why a Client ID is refused; all are CONNACK 0x02."""

    EMPTY = "client_id_empty"
    TOO_LONG = "client_id_too_long"
    INVISIBLE = "client_id_invisible_character"
    NO_GROUP = "client_id_without_group"
    BAD_GROUP = "client_id_malformed_group"
    NO_DEVICE = "client_id_without_device"


class ClientId(NamedTuple):
    """text: the whole Client ID. device: what follows the separator, or the whole text of one without a group."""

    group: str
    device: str
    text: str


def is_group(text: str) -> bool:
    """Whether `text` is a well formed Group ID."""
    return _GROUP.fullmatch(text) is not None


def parse_client_id(text: str, *, mode: Literal["strict", "any"], default_group: str, max_length: int) -> ClientId | NameFault:
    """Take a Client ID apart. mode: "strict" wants `<GroupID>@@@<DeviceID>`; "any" takes every text and gives those without a Group ID
    the `default_group`. max_length: characters. Whether the group was ever created is not asked here."""
    if not text:
        return NameFault.EMPTY
    if len(text) > max_length:
        return NameFault.TOO_LONG
    group, separator, device = text.partition(SEPARATOR)
    if mode == "any":
        return ClientId(group, device, text) if separator and device and is_group(group) else ClientId(default_group, text, text)
    if not text.isprintable():
        return NameFault.INVISIBLE
    if not separator:
        return NameFault.NO_GROUP
    if not is_group(group):
        return NameFault.BAD_GROUP
    if not device:
        return NameFault.NO_DEVICE
    return ClientId(group, device, text)


def group_of(client_id: str, default_group: str) -> str:
    """The group of a Client ID that was accepted once; `default_group` for one without a Group ID."""
    group, separator, device = client_id.partition(SEPARATOR)
    return group if separator and device and is_group(group) else default_group
