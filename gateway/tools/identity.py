"""Which device a command is: server, Client ID, user name and signed password, from the settings that the gateway itself uses."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from gateway.mqtt.packets import Connect
from gateway.rules.names import SEPARATOR, group_of
from gateway.rules.signing import password_for
from gateway.settings import Account, Settings, address, prepare
from gateway.tools.device import connect_packet
from gateway.tools.running import ToolError


class Identity(NamedTuple):
    """Where and as whom a device connects."""

    host: str
    port: int
    client_id: str
    username: str | None
    password: str | None

    def connect(self, *, clean: bool) -> Connect:
        """Its CONNECT."""
        return connect_packet(self.client_id, self.username, self.password, clean=clean)


def reachable(listen: str) -> tuple[str, int]:
    """Where a listener is reached from this machine."""
    host, port = address(listen)
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port


def identify(
    settings: Settings, *, server: str = "", account: str = "", group: str = "", client_id: str = "", role: str = "cli"
) -> Identity:
    """server: host:port, "" for the settings' own. account: its AccessKey, "" for the one that has the group, or the first one. group: the
    Group ID, "" for the account's first one. client_id: the whole one; "" for a random device of the group. Raises ToolError."""
    try:
        host, port = reachable(server or settings.mqtt.tcp)
    except ValueError:
        raise ToolError(f"--server: {server!r} is no address. Write host:port.") from None
    first_run = prepare(settings)
    accounts = settings.accounts if first_run is None else [first_run.account]
    wanted = group or (group_of(client_id, "") if client_id else "")
    chosen = _choose(accounts, account, wanted)
    if chosen is None:
        return Identity(host, port, client_id or f"{role}-{secrets.token_hex(4)}", None, None)
    group = wanted or next(iter([*chosen.groups, *settings.naming.groups, settings.naming.default_group]))
    text = client_id or f"{group}{SEPARATOR}{role}-{secrets.token_hex(4)}"
    return Identity(host, port, text, chosen.access_key, password_for(chosen.secret(), group_of(text, settings.naming.default_group)))


def _choose(accounts: list[Account], access_key: str, group: str) -> Account | None:
    if access_key:
        found = next((account for account in accounts if account.access_key == access_key), None)
        if found is None:
            known = ", ".join(account.access_key for account in accounts) or "none"
            raise ToolError(f"--account: there is no account {access_key!r}; the settings have: {known}.")
        return found
    return next((account for account in accounts if group in account.groups), accounts[0] if accounts else None)
