"""The plots of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from tests.bench.bars import Outcome, Round, median
from tests.bench.names import TITLES

COLOURS = {
    "gateway-rocketmq": "#c0392b",
    "gateway-redis": "#af7ac5",
    "gateway-local": "#e59866",
    "gateway-strict": "#922b21",
    "mosquitto": "#5d6d7e",
    "rocketmq": "#2e86c1",
}
RATES = {"uplink.png": ("uplink1", "uplink16"), "fanout.png": ("fanout0", "fanout1"), "devices.png": ("devices",)}
CALM = ("uplink500", "devices500", "app200")


def draw(rounds: Sequence[Round], outcomes: Sequence[Outcome], folder: Path) -> list[str]:
    """Draw what there are figures for; the names of the files."""
    drawn = [name for name, scenarios in RATES.items() if _rates(rounds, scenarios, folder / name)]
    if _latency(rounds, folder / "latency.png"):
        drawn.append("latency.png")
    outcomes = [outcome for outcome in outcomes if outcome.values]
    if outcomes:
        _bars(outcomes, folder / "bars.png")
        drawn.append("bars.png")
    return drawn


def _save(figure: Any, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def _spread(rounds: Sequence[Round], scenario: str, target: str, figure: str) -> list[float]:
    return [one[scenario, target][figure] for one in rounds if figure in one.get((scenario, target), {})]


def _rates(rounds: Sequence[Round], scenarios: Sequence[str], file: Path) -> bool:
    """Bars by target, the rounds as dots."""
    figure, panels = plt.subplots(1, len(scenarios), figsize=(4.6 * len(scenarios), 3.2), squeeze=False)
    any_drawn = False
    for panel, scenario in zip(panels[0], scenarios, strict=True):
        shown = [target for target in COLOURS if median(rounds, scenario, target, "rate") is not None]
        for place, target in enumerate(shown):
            any_drawn = True
            values = _spread(rounds, scenario, target, "rate")
            panel.barh(place, median(rounds, scenario, target, "rate"), color=COLOURS[target], height=0.65)
            panel.plot(values, [place] * len(values), "o", color="black", markersize=2.5)
        panel.set_yticks(range(len(shown)), [TITLES[target].replace(", names", ",\nnames") for target in shown], fontsize=8)
        panel.invert_yaxis()
        panel.set_title(TITLES[scenario] + " a second", fontsize=9)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panel.tick_params(axis="x", labelsize=7)
        panel.grid(axis="x", alpha=0.3)
    if any_drawn:
        _save(figure, file)
    plt.close(figure)
    return any_drawn


def _latency(rounds: Sequence[Round], file: Path) -> bool:
    """From the p50 to the p99, on a logarithmic axis."""
    rows = [(scenario, target) for scenario in CALM for target in COLOURS if median(rounds, scenario, target, "p50_ms") is not None]
    if not rows:
        return False
    figure, panel = plt.subplots(figsize=(9, 0.6 + 0.36 * len(rows)))
    for place, (scenario, target) in enumerate(rows):
        low, high = (median(rounds, scenario, target, name) or 0.0 for name in ("p50_ms", "p99_ms"))
        panel.plot([low, high], [place, place], color=COLOURS[target], linewidth=3)
        panel.plot([low], [place], "o", color=COLOURS[target])
        panel.plot([high], [place], "|", color=COLOURS[target], markersize=12)
    panel.set_yticks(range(len(rows)), [f"{TITLES[scenario]}: {TITLES[target]}" for scenario, target in rows], fontsize=8)
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.set_xlabel("ms, from p50 (dot) to p99", fontsize=8)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(axis="x", alpha=0.3, which="both")
    _save(figure, file)
    return True


def _bars(outcomes: Sequence[Outcome], file: Path) -> None:
    """How many times over its bar each measure is; 1 is the bar."""
    figure, panel = plt.subplots(figsize=(9, 0.8 + 0.36 * len(outcomes)))
    for place, outcome in enumerate(outcomes):
        limit = outcome.bar.limit
        times = [value / limit if outcome.bar.at_least else limit / value for value in outcome.values]
        middle = outcome.median / limit if outcome.bar.at_least else limit / outcome.median
        panel.barh(place, middle, color="#27ae60" if outcome.reached else "#c0392b", height=0.6)
        panel.plot(times, [place] * len(times), "o", color="black", markersize=2.5)
    panel.axvline(1, color="black", linewidth=1)
    panel.set_yticks(range(len(outcomes)), [outcome.bar.title for outcome in outcomes], fontsize=7)
    panel.invert_yaxis()
    panel.set_xlabel("times the bar (in the good direction; dots: rounds)", fontsize=8)
    _save(figure, file)
