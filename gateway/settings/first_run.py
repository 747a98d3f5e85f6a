"""The first run without accounts: a random account, kept in data_dir/first-run.toml for this user's eyes only, and used again later."""

from __future__ import annotations

import os
import secrets
import tomllib
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr

from gateway.settings.model import Account, Settings
from gateway.settings.values import Problem, SettingsError

GROUP = "GID_demo"
FILE = "first-run.toml"


class FirstRun(NamedTuple):
    """settings: the given ones with the account added. created: the account was made just now."""

    settings: Settings
    account: Account
    path: Path
    created: bool


def prepare(settings: Settings) -> FirstRun | None:
    """Give a gateway without accounts one of its own; None when it has some or lets everyone in.

    Raises SettingsError when the file can't be made, or when others may read it.
    """
    if settings.accounts or settings.auth.anonymous:
        return None
    make_data_dir(settings)
    path = settings.gateway.data_dir / FILE
    try:
        created = _create(path)
        mode = path.stat().st_mode & 0o777
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise _unusable(path, error) from None
    if mode & 0o077:
        raise SettingsError([Problem("gateway.data_dir", f"others may read the secret in {path}", f"Run: chmod 600 {path}")])
    account = _read(path, text)
    return FirstRun(settings.model_copy(update={"accounts": [account]}), account, path, created)


def make_data_dir(settings: Settings) -> None:
    """Make `gateway.data_dir`, for this user alone, when it isn't there. Raises SettingsError."""
    try:
        settings.gateway.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(settings.gateway.data_dir, error) from None


def _unusable(path: Path, error: OSError) -> SettingsError:
    problem = f"{path} can not be made or read ({error.strerror})"
    return SettingsError([Problem("gateway.data_dir", problem, "Choose a folder that this user may write.")])


def _create(path: Path) -> bool:
    """Make the file, whole and with mode 0600 from its first moment; False when it is there already."""
    if path.exists():
        return False
    text = (
        "# Made at the first run, since no account was configured. Keep it secret; delete it to get another one.\n"
        f'access_key = "{secrets.token_hex(8)}"\nsecret_key = "{secrets.token_urlsafe(24)}"\ngroups = ["{GROUP}"]\n'
    )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike a rename, it never replaces the file of another process that was faster
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def _read(path: Path, text: str) -> Account:
    try:
        values = tomllib.loads(text)
        return Account(access_key=values["access_key"], secret_key=SecretStr(values["secret_key"]), groups=values["groups"])
    except (KeyError, ValueError):  # TOMLDecodeError and pydantic's ValidationError are ValueErrors
        raise SettingsError([Problem("gateway.data_dir", f"{path} is damaged", "Delete it; the next start makes another.")]) from None
