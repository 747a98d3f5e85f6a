"""docs/clauses.md: each normative statement of MQTT 3.1.1 once, and everything that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

# How many statements the standard's appendix B has for each section.
STATEMENTS = {
    "1.5.3": 3,
    "2.2.2": 2,
    "2.3.1": 7,
    "3.1.0": 2,
    "3.1.2": 24,
    "3.1.3": 11,
    "3.1.4": 5,
    "3.2.0": 1,
    "3.2.2": 6,
    "3.3.1": 12,
    "3.3.2": 3,
    "3.3.4": 1,
    "3.3.5": 2,
    "3.6.1": 1,
    "3.8.1": 1,
    "3.8.3": 4,
    "3.8.4": 6,
    "3.9.3": 2,
    "3.10.1": 1,
    "3.10.3": 2,
    "3.10.4": 6,
    "3.12.4": 1,
    "3.14.1": 1,
    "3.14.4": 3,
    "4.1.0": 2,
    "4.3.1": 1,
    "4.3.2": 2,
    "4.3.3": 2,
    "4.4.0": 1,
    "4.5.0": 2,
    "4.6.0": 6,
    "4.7.1": 3,
    "4.7.2": 1,
    "4.7.3": 4,
    "4.8.0": 2,
    "6.0.0": 4,
    "7.0.0": 2,
    "7.1.1": 1,
    "7.1.2": 1,
}

OF_CLIENTS = {"2.3.1-2", "2.3.1-3", "3.1.2-23", "4.5.0-2", "6.0.0-3", "7.0.0-1", "7.1.2-1"}

OPEN = {"6.0.0-1", "6.0.0-2", "6.0.0-4"}  # they come with the WebSocket transport


class Row(NamedTuple):
    clause: str
    says: str
    code: str
    tests: str


def read() -> list[Row]:
    rows = []
    for line in (ROOT / "docs" / "clauses.md").read_text().splitlines():
        if line.startswith("| MQTT-"):
            clause, *others = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            rows.append(Row(clause.removeprefix("MQTT-").replace("3-8.3-4", "3.8.3-4"), *others))
    return rows


ROWS = read()


@cache
def names_in(path: Path) -> set[str]:
    """Functions and classes, methods included."""
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}


def missing(folder: str, references: str, separator: str) -> list[str]:
    """The references in backticks that lead nowhere. `file` alone will do where no separator is."""
    lost = []
    for reference in re.findall(r"`([^`]+)`", references):
        name, _, inside = reference.partition(separator)
        path = ROOT / folder / name
        if not path.is_file() or (inside and inside not in names_in(path)):
            lost.append(reference)
    return lost


def test_every_statement_is_there_once() -> None:
    expected = [f"{section}-{number}" for section, count in STATEMENTS.items() for number in range(1, count + 1)]
    assert len(expected) == 141
    assert sorted(row.clause for row in ROWS) == sorted(expected)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.clause) for row in ROWS])
def test_what_a_row_names_exists(row: Row) -> None:
    assert len(row.says) > 10
    if row.clause in OF_CLIENTS:
        assert (row.code, row.tests) == ("*client*", "")
        return
    for cell, folder, separator in ((row.code, "gateway", ": "), (row.tests, "tests", "::")):
        assert cell == "*open*" if "`" not in cell else not missing(folder, cell, separator)
    if "`" in row.tests:
        assert all("::test_" in reference for reference in re.findall(r"`([^`]+)`", row.tests))


def test_what_is_open_is_known() -> None:
    assert {row.clause for row in ROWS if "*open*" in (row.code, row.tests)} == OPEN
    assert not (ROOT / "gateway" / "transports" / "websocket.py").exists(), "fill in the rows 6.0.0"


def test_a_lost_reference_is_found() -> None:
    assert missing("gateway", "`mqtt/topics.py: check_name`, `mqtt/topics.py`", ": ") == []
    assert missing("gateway", "`mqtt/topics.py: nothing`, `mqtt/none.py`", ": ") == ["mqtt/topics.py: nothing", "mqtt/none.py"]
    assert missing("tests", "`test_clauses.py::test_every_statement_is_there_once`", "::") == []
