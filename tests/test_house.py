"""The house holds: who may import whom, what the pure rooms are free of, where threads live, how long files and functions may be."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gateway", "backend_adapters")

# Room -> prefixes of what it may import from this project, besides itself.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "gateway.mqtt": (),
    "gateway.ports": (),
    "gateway.rules": ("gateway.mqtt", "gateway.ports"),
    "gateway.settings": (),
    "gateway.observe": (),
    "gateway.transports": ("gateway.settings", "gateway.observe"),
    "gateway.workers": ("gateway.transports", "gateway.settings", "gateway.observe"),
    "gateway.store": ("gateway.ports", "gateway.observe"),
    "backend_adapters": ("gateway.ports", "gateway.observe"),
    "gateway.runtime": ("gateway.mqtt", "gateway.rules", "gateway.ports", "gateway.settings", "gateway.observe"),
    "gateway.api": (
        "gateway.runtime.views",
        "gateway.runtime.actions",
        "gateway.rules",
        "gateway.ports",
        "gateway.settings",
        "gateway.observe",
    ),
    "gateway.app": ("gateway", "backend_adapters"),
    "gateway.tools": (
        "gateway.app",
        "gateway.workers",
        "gateway.api",
        "gateway.mqtt",
        "gateway.rules",
        "gateway.ports",
        "gateway.settings",
        "gateway.observe",
    ),
    "gateway.cli": ("gateway.app", "gateway.tools", "gateway.settings", "gateway.rules"),
}
PURE = ("gateway.mqtt", "gateway.rules", "gateway.ports")
# What touches the world or the clock: handed to the pure rooms as arguments instead.
IMPURE = {"asyncio", "logging", "multiprocessing", "random", "secrets", "select", "socket", "ssl", "subprocess", "threading", "time"}
NOT_IN_RUNTIME = {"redis", "rocketmq", "starlette", "hypercorn", "httpx", "sqlite3", "socket", "ssl"}

THREADS = {"threading", "asyncio", "concurrent", "multiprocessing", "trio.to_thread", "trio.from_thread"}
# The files that bridge to a blocking library.
BRIDGES = ("gateway/store/pump.py", "backend_adapters/local")

MAX_FILE, MAX_FUNCTION = 400, 50
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
VAGUE = {"Manager", "Helper", "Helpers", "Util", "Utils", "Impl", "Base", "Processor", "Context"}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, module: str, *, package: bool = False) -> Iterator[str]:
    """Dotted names that `tree` imports, wherever in the file: `from a.b import c` gives `a.b.c`, which is enough for every prefix."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = module.split(".")[: None if package and node.level == 1 else len(module.split(".")) - node.level + package]
                origin = ".".join([*above, *([origin] if origin else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def room_of(module: str) -> str | None:
    return next((room for room in MAY_IMPORT if within(module, room)), None)


def forbidden(tree: ast.AST, module: str, *, package: bool = False) -> list[str]:
    """What `module` imports against the table."""
    room = room_of(module)
    assert room is not None, f"{module} is in no room: put it into one, or the room into MAY_IMPORT"
    found = []
    for name in imported(tree, module, package=package):
        top = name.split(".")[0]
        if top in PACKAGES:
            wrong = not any(within(name, allowed) for allowed in (room, *MAY_IMPORT[room]))
        elif room in PURE:
            wrong = top in IMPURE or top not in sys.stdlib_module_names
        else:
            wrong = room == "gateway.runtime" and top in NOT_IN_RUNTIME
        if wrong:
            found.append(f"{module} imports {name}")
    return found


def uses_threads(tree: ast.AST, module: str) -> bool:
    named = any(within(name, thread) for name in imported(tree, module) for thread in THREADS)
    dotted = (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return named or any(within(name, thread) for name in dotted for thread in THREADS)


def long_functions(tree: ast.AST, most: int = MAX_FUNCTION) -> list[tuple[str, int]]:
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    sized = ((node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in functions)
    return [(name, size) for name, size in sized if size > most]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=relative(path))


# ---------------------------------------------------------------- the sources


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_imports_follow_the_table(path: Path) -> None:
    module = module_name(path)
    if module in ("gateway", "backend_adapters"):
        assert list(imported(parsed(path), module)) == [], "the top package imports nothing, or every room would import everything"
    else:
        assert forbidden(parsed(path), module, package=path.name == "__init__.py") == []


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_threads_live_in_the_bridges_alone(path: Path) -> None:
    if not any(relative(path) == bridge or relative(path).startswith(bridge) for bridge in BRIDGES):
        assert not uses_threads(parsed(path), module_name(path)), f"{relative(path)} uses threads; only {', '.join(BRIDGES)} may"


def test_each_adapter_has_one_bridge() -> None:
    bridging = [relative(path) for path in sources() if uses_threads(parsed(path), module_name(path))]
    for bridge in BRIDGES:
        assert len([path for path in bridging if path.startswith(bridge)]) <= 1, bridging


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_files_and_functions_stay_small(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= MAX_FILE or relative(path) in LONG_FILES, f"{relative(path)} has {lines} lines: which two jobs does it do?"
    long = [(name, size) for name, size in long_functions(parsed(path)) if f"{relative(path)}:{name}" not in LONG_FUNCTIONS]
    assert long == []


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_every_module_says_its_job_first(path: Path) -> None:
    tree = parsed(path)
    assert not tree.body or ast.get_docstring(tree), f"{relative(path)} has no docstring"


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_class_names_say_something(path: Path) -> None:
    names = [node.name for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)]
    assert [name for name in names if VAGUE & set(re.findall(r"[A-Z][a-z]*", name))] == []


def test_no_word_of_mqtt_in_the_backend_adapters() -> None:
    words = re.compile(r"mqtt|puback|pubrec|connack|suback", re.IGNORECASE)
    found = [relative(path) for path in sources() if relative(path).startswith("backend_adapters") and words.search(path.read_text())]
    assert found == []


def test_the_exceptions_are_still_needed() -> None:
    for name in LONG_FILES:
        assert (ROOT / name).read_text().count("\n") > MAX_FILE, f"{name} is short enough now: strike it from LONG_FILES"
    for name in LONG_FUNCTIONS:
        file, _, function = name.partition(":")
        assert function in dict(long_functions(parsed(ROOT / file))), f"strike {name} from LONG_FUNCTIONS"


# ---------------------------------------------------------------- the rules themselves


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway.mqtt.codec", "import trio"),
        ("gateway.mqtt.codec", "def now():\n    import time"),
        ("gateway.mqtt.codec", "from gateway.rules import names"),
        ("gateway.ports", "from gateway import mqtt"),
        ("gateway.rules.names", "from .. import runtime"),
        ("gateway.rules.names", "from ..store import sqlite"),
        ("gateway.store.sqlite", "import gateway.mqtt.packets"),
        ("gateway.api.http", "from gateway.runtime import link"),
        ("gateway.runtime.link", "import sqlite3"),
        ("gateway.runtime.link", "from gateway.transports.tcp import listen"),
        ("gateway.cli", "from gateway.runtime import views"),
        ("backend_adapters.local.log", "from gateway.rules import envelope"),
    ],
)
def test_what_the_table_forbids_is_found(module: str, source: str) -> None:
    assert forbidden(ast.parse(source), module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway.mqtt.codec", "import struct\nfrom .packets import Publish\nfrom gateway.mqtt import errors"),
        ("gateway.rules.names", "from gateway.mqtt import topics\nfrom ..ports import Message"),
        ("gateway.api.http", "from gateway.runtime.views import Clients\nfrom gateway.runtime import actions\nimport starlette"),
        ("gateway.app", "from gateway.store import sqlite\nimport backend_adapters.local"),
        ("backend_adapters.local.log", "import sqlite3\nfrom gateway.ports import Message"),
    ],
)
def test_what_the_table_allows_passes(module: str, source: str) -> None:
    assert forbidden(ast.parse(source), module) == []


def test_a_package_names_its_own_modules_relatively() -> None:
    tree = ast.parse("from . import codec\nfrom .codec import Decoder\nfrom ..ports import Message")
    assert list(imported(tree, "gateway.mqtt", package=True)) == [
        "gateway.mqtt.codec",
        "gateway.mqtt.codec.Decoder",
        "gateway.ports.Message",
    ]


@pytest.mark.parametrize("source", ["import threading", "from concurrent.futures import Future", "import trio\ntrio.to_thread.run_sync(f)"])
def test_threads_are_found(source: str) -> None:
    assert uses_threads(ast.parse(source), "gateway.runtime.link")


def test_long_functions_are_found() -> None:
    source = "def long():\n" + "    pass\n" * 3
    assert long_functions(ast.parse(source), most=3) == [("long", 4)]
