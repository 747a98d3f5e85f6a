"""The Lua scripts of this package: `scripts/<name>.lua`, with what they include from `scripts/lib`.

The first lines of a script may be `-- include lib/<name>`: that file's text is put in their place, once, and what it includes before it.
"""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha1
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

_INCLUDE = re.compile(r"-- include (lib/\w+)\n")


class Script(NamedTuple):
    """sha: how Redis names it. counts_keys: it asks how many keys it got, which must be all that it touches then."""

    text: str
    sha: str
    counts_keys: bool


def _folder() -> Traversable:
    return files(__package__) / "scripts"


def _included(name: str, seen: set[str]) -> str:
    if name in seen:
        return ""
    seen.add(name)
    text = (_folder() / f"{name}.lua").read_text(encoding="utf-8")
    parts = []
    while found := _INCLUDE.match(text):
        parts.append(_included(found[1], seen))
        text = text[found.end() :]
    return "".join([*parts, text])


@cache
def script(name: str) -> Script:
    """The script `name`, whole."""
    text = _included(name, set())
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest(), "#KEYS" in text)


@cache
def all_scripts() -> dict[str, Script]:
    """Every script by its name."""
    names = sorted(entry.name.removesuffix(".lua") for entry in _folder().iterdir() if entry.name.endswith(".lua"))
    return {name: script(name) for name in names}
