"""Signs requests for brokers with access control, version 1 and 2 (design section 6). Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac


class Signer:
    """Adds `AccessKey`, `SecurityToken` and `Signature` to the fields of a request."""

    __slots__ = ("_access_key", "_secret", "_token")

    def __init__(self, access_key: str, secret_key: str, security_token: str = "") -> None:
        self._access_key = access_key
        self._secret = secret_key.encode()
        self._token = security_token

    def __repr__(self) -> str:
        return "Signer(***)"

    def sign(self, fields: dict[str, str], body: bytes) -> None:
        """HMAC-SHA1 over the values of all fields, sorted by their names, and the body."""
        fields["AccessKey"] = self._access_key
        if self._token:
            fields["SecurityToken"] = self._token
        fields.pop("Signature", None)
        text = "".join([fields[name] for name in sorted(fields)]).encode()
        mac = hmac.new(self._secret, text, hashlib.sha1)
        mac.update(body)
        fields["Signature"] = base64.b64encode(mac.digest()).decode()
