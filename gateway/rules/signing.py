"""Signature mode: user name and password of a CONNECT (contract section 3)."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable

from gateway.rules.names import ClientId

MODE = "Signature"  # the first part of the newer user name `Signature|AccessKey|InstanceId`
_NOBODY = "an unknown access key is checked against this, so that it costs what a known one does"


def password_for(secret: str, text: str) -> str:
    """Base64(HMAC-SHA1(key = SecretKey, text)). text: the Group ID, or the whole Client ID for the newer form of user name."""
    return base64.b64encode(hmac.digest(secret.encode(), text.encode(), hashlib.sha1)).decode("ascii")


def access_key_of(username: str) -> tuple[str, bool]:
    """(AccessKey, the whole Client ID is signed) of either form of user name."""
    parts = username.split("|")
    if len(parts) in (2, 3) and parts[0] == MODE:
        return parts[1], True
    return username, False


def check_password(username: str, password: bytes, client_id: ClientId, lookup: Callable[[str], str | None]) -> str | None:
    """The AccessKey whose secret made the password, or None. lookup: AccessKey -> SecretKey, None for an unknown one.

    Takes the same time for an unknown AccessKey as for a wrong password.
    """
    access_key, whole = access_key_of(username)
    secret = lookup(access_key)
    expected = password_for(_NOBODY if secret is None else secret, client_id.text if whole else client_id.group)
    matches = hmac.compare_digest(expected.encode("ascii"), password)
    return access_key if matches and secret is not None else None
