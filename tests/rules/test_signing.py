"""gateway.rules.signing: contract section 3."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules import signing
from gateway.rules.names import ClientId

CLIENT = ClientId("GID_test", "0001", "GID_test@@@0001")
SECRETS = {"ak": "sk", "other": "other secret"}


def check(username: str, password: str | bytes, client: ClientId = CLIENT) -> str | None:
    data = password.encode() if isinstance(password, str) else password
    return signing.check_password(username, data, client, SECRETS.get)


def test_known_answers() -> None:
    # made with: printf %s TEXT | openssl dgst -sha1 -hmac KEY -binary | base64
    assert signing.password_for("key", "The quick brown fox jumps over the lazy dog") == "3nybhbi3iqa8ino29wqQcBydtNk="
    assert signing.password_for("", "") == "+9sdGxiqbAgyS31ktx+3Y3BpDh0="


def test_plain_access_key_signs_the_group() -> None:
    password = signing.password_for("sk", "GID_test")
    assert check("ak", password) == "ak"
    assert check("other", password) is None
    assert check("ak", password, CLIENT._replace(group="GID_tesu")) is None
    assert check("ak", signing.password_for("sk", CLIENT.text)) is None


@pytest.mark.parametrize("username", ["Signature|ak|instance", "Signature|ak|", "Signature|ak"])
def test_newer_form_signs_the_whole_client_id(username: str) -> None:
    password = signing.password_for("sk", CLIENT.text)
    assert check(username, password) == "ak"
    assert check(username, signing.password_for("sk", "GID_test")) is None
    assert check(username, password, CLIENT._replace(text="GID_test@@@0002")) is None


@pytest.mark.parametrize(
    "username", ["", "nobody", "Signature", "Signature||", "Signature|nobody|i", "signature|ak|i", "Token|ak|i", "Signature|ak|i|x", "AK"]
)
@pytest.mark.parametrize("text", ["GID_test", CLIENT.text])
def test_unknown_names(username: str, text: str) -> None:
    assert check(username, signing.password_for("sk", text)) is None


def test_an_unknown_key_never_passes_whatever_is_sent() -> None:
    # even the password made with the stand-in secret
    assert check("nobody", signing.password_for(signing._NOBODY, "GID_test")) is None


@given(st.binary(max_size=40))
def test_any_bytes_as_password(password: bytes) -> None:
    assert check("ak", password) is None


def test_empty_and_padded_passwords() -> None:
    password = signing.password_for("sk", "GID_test")
    for wrong in ("", password[:-1], password + "=", password + "\n", " " + password, password.lower()):
        assert check("ak", wrong) is None
