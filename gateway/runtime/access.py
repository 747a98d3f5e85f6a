"""May this device come in, and what may it do: the named steps of CONNECT before the session is touched, and the permissions after it
(contract sections 1 to 3 and 11)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from gateway.mqtt.packets import Connect, ConnectCode
from gateway.rules import limits, permissions, signing
from gateway.rules.names import ClientId, NameFault, parse_client_id
from gateway.rules.presence import Reason
from gateway.settings import Settings


class Account(NamedTuple):
    """Who a device is. publish, subscribe: topic filters that it may use."""

    access_key: str
    groups: frozenset[str]
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


ANYBODY = Account("", frozenset(), ("#",), ("#",))


class Refused(NamedTuple):
    """CONNACK `code`, then close."""

    code: ConnectCode
    reason: Reason
    text: str


class Admitted(NamedTuple):
    client_id: ClientId
    account: Account


class Access:
    """The accounts, groups and limits of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._naming = settings.naming
        self._limits = settings.limits
        self._anonymous = settings.auth.anonymous
        self._secrets = {account.access_key: account.secret_key.get_secret_value() for account in settings.accounts}
        self._accounts = {
            account.access_key: Account(account.access_key, frozenset(account.groups), tuple(account.publish), tuple(account.subscribe))
            for account in settings.accounts
        }
        self._open_groups = frozenset(settings.naming.groups)
        self._groups = self._open_groups.union(*(account.groups for account in self._accounts.values()))

    # ------------------------------------------------------------ CONNECT, step by step

    def admit(self, connect: Connect, online: int) -> Admitted | Refused:
        """online: connections of this instance now."""
        client_id = self._identify(connect)
        if isinstance(client_id, Refused):
            return client_id
        strict = self._naming.mode == "strict"
        if strict and client_id.group not in self._groups:
            return Refused(ConnectCode.NOT_AUTHORIZED, Reason.NOT_PERMITTED, f"group {client_id.group} was never created")
        if self._limits.connections and online >= self._limits.connections:
            return Refused(ConnectCode.UNAVAILABLE, Reason.QUOTA, "limits.connections is reached")
        account = self._authenticate(connect, client_id)
        if account is None:
            return Refused(ConnectCode.BAD_CREDENTIALS, Reason.BAD_CREDENTIALS, "wrong user name or password")
        owned = account is ANYBODY or client_id.group in account.groups or client_id.group in self._open_groups
        if strict and not owned:
            return Refused(ConnectCode.NOT_AUTHORIZED, Reason.NOT_PERMITTED, f"group {client_id.group} belongs to another account")
        return Admitted(client_id, account)

    def _identify(self, connect: Connect) -> ClientId | Refused:
        text = connect.client_id
        if not text and self._naming.mode == "any" and connect.clean:
            text = uuid.uuid4().hex  # [MQTT-3.1.3-6]
        found = parse_client_id(
            text, mode=self._naming.mode, default_group=self._naming.default_group, max_length=self._limits.client_id_length
        )
        if isinstance(found, NameFault):
            return Refused(ConnectCode.BAD_IDENTIFIER, Reason.BAD_IDENTIFIER, f"Client ID refused: {found.value}")
        return found

    def _authenticate(self, connect: Connect, client_id: ClientId) -> Account | None:
        if connect.username is None and connect.password is None:
            return ANYBODY if self._anonymous else None
        access_key = signing.check_password(connect.username or "", connect.password or b"", client_id, self._secrets.get)
        if access_key is not None:
            return self._accounts[access_key]
        return ANYBODY if self._anonymous and not self._accounts else None

    # ------------------------------------------------------------ PUBLISH and SUBSCRIBE

    def topic_fits(self, topic: str) -> bool:
        """Contract section 11: characters; the `/p2p/<ClientID>` of a P2P topic is not counted."""
        return limits.topic_fits(topic, self._limits.topic_length, self._limits.client_id_length)

    def may_publish(self, account: Account, topic: str) -> bool:
        """Whether one of the account's publish filters matches `topic`."""
        return permissions.may_publish(account.publish, topic)

    def may_subscribe(self, account: Account, filter: str) -> bool:
        """Whether `filter` is covered by one of the account's subscribe filters."""
        return permissions.may_subscribe(account.subscribe, filter)

    def readable(self, account: Account, filter: str, bridged: Sequence[str]) -> list[str]:
        """The bridged parents for which the account may subscribe `filter`, a filter with a wildcard in its first level."""
        return permissions.readable_parents(account.subscribe, filter, bridged)
