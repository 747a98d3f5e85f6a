"""The accounts on a terminal: one table for each fault, then the stories of what broke; and the same for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.faults.harness.account import Account
from tests.faults.harness.history import History
from tests.faults.harness.story import shown, stories


def show(console: Console, account: Account, history: History, where: str) -> None:
    """One fault. where: what was hit."""
    table = Table(title=f"{account.fault.name} ({where})", title_justify="left", title_style="bold")
    table.add_column("what")
    table.add_column("found", justify="right")
    table.add_column("at most", justify="right")
    table.add_column("")
    for row in account.rows:
        number = f"{row.value:.1f} {row.unit}" if row.unit else f"{row.value:,.0f}"
        bound = "" if row.bound is None else f"{row.bound:.1f} {row.unit}" if row.unit else f"{row.bound:,.0f}"
        mark = Text("") if row.bound is None else Text("BROKEN", "bold red") if row.broken else Text("ok", "green")
        table.add_row(row.title, number, bound, mark)
    console.print(table)
    for line in stories(history, account):
        console.print(Text(line))


def summary(console: Console, accounts: Sequence[Account]) -> None:
    """All faults, one line each."""
    table = Table(title="all faults", title_justify="left", title_style="bold")
    table.add_column("fault")
    for title in ("published", "due", "lost", "undelivered", "twice", "repeats up/down", "goes on, s", ""):
        table.add_column(title, justify="right")
    for account in accounts:
        value = {row.name: row.value for row in account.rows}
        undelivered = sum(value[name] for name in ("undelivered_1", "undelivered_2", "undelivered_clean"))
        cells = [f"{number:,.0f}" for number in (value["published"], value["due"], value["lost"], undelivered, value["twice"])]
        cells += [f"{value['repeats_up_1']:.0f} / {value['repeats_down_1'] + value['repeats_return_1']:.0f}", f"{value['goes_on']:.1f}"]
        broken = Text("; ".join(f"{row.title}: {shown(row)}" for row in account.broken), "bold red")
        table.add_row(account.fault.name, *cells, broken if account.broken else Text("ok", "green"))
    console.print(table)


def as_json(account: Account, history: History) -> dict[str, Any]:
    """One fault for machines: values and bounds by the rows' names."""
    return {
        "fault": account.fault._asdict(),
        "rows": {
            row.name: {"value": _finite(row.value), "bound": row.bound, "broken": row.broken, "unit": row.unit} for row in account.rows
        },
        "broken": [row.name for row in account.broken],
        "stories": stories(history, account),
    }


def _finite(value: float) -> float | None:
    return None if value == float("inf") else value
