"""The figures to reach: ratios between targets, computed within each round, then the median over the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Place = tuple[str, str, str]  # scenario, target, figure
Round = Mapping[tuple[str, str], Mapping[str, Any]]  # (scenario, target) -> figures


class Bar(NamedTuple):
    """above / below (below None: above / unit) must be at least, or at most, `limit`."""

    title: str
    above: Place
    below: Place | None
    limit: float
    at_least: bool
    unit: float = 1.0


class Outcome(NamedTuple):
    """A bar's ratio in each round that has it. void: rounds in which a load failed, so that there is none."""

    bar: Bar
    values: tuple[float, ...]
    void: int

    @property
    def median(self) -> float:
        return statistics.median(self.values) if self.values else float("nan")

    @property
    def reached(self) -> bool:
        if self.void:
            return False
        return self.median >= self.bar.limit if self.bar.at_least else self.median <= self.bar.limit


def _rates(title: str, scenario: str, limit: float, target: str = "gateway-rocketmq") -> Bar:
    return Bar(title, (scenario, target, "rate"), (scenario, "mosquitto", "rate"), limit, True)


def _cpu(title: str, scenario: str) -> Bar:
    return Bar(title, (scenario, "gateway-redis", "cpu_us"), (scenario, "gateway-rocketmq", "cpu_us"), 1.1, False)


BARS = (
    _rates("uplink QoS 1 on RocketMQ / mosquitto, 1 in flight", "uplink1", 0.15),
    _rates("uplink QoS 1 on RocketMQ / mosquitto, 16 in flight", "uplink16", 0.5),
    _rates("fan-out 1 to 1,000, QoS 1, deliveries/s / mosquitto", "fanout1", 1.5),
    _rates("fan-out 1 to 1,000, QoS 0, deliveries/s / mosquitto", "fanout0", 3),
    _rates("device to device over 1,000 topics, QoS 1, flat out / mosquitto", "devices", 0.3),
    Bar(
        "device to device at 500 msg/s, end to end p50 / bare RocketMQ, send to pulled, p50",
        ("devices500", "gateway-rocketmq", "p50_ms"),
        ("devices500", "rocketmq", "p50_ms"),
        2.5,
        False,
    ),
    Bar(
        "server app to device p50 / bare RocketMQ, send to pulled, p50",
        ("app200", "gateway-rocketmq", "p50_ms"),
        ("app200", "rocketmq", "p50_ms"),
        2,
        False,
    ),
    _cpu("CPU a message on the uplink, store in Redis / in SQLite", "uplink16"),
    _cpu("CPU a message from device to device on one node, store in Redis / in SQLite", "devices"),
    Bar(
        "CPU a message beside 1,000,000 stored subscriptions / beside 1,000",
        ("stored", "fresh-million", "cpu_us"),
        ("stored", "fresh-thousand", "cpu_us"),
        1.5,
        False,
    ),
    Bar(
        "memory of a node for 1,000,000 stored subscriptions and the load, MiB",
        ("stored", "fresh-million", "grown_mib"),
        None,
        100,
        False,
    ),
    Bar("waiting messages delivered a second when their sessions come back", ("reconnect", "fresh-waiting", "rate"), None, 5000, True),
    Bar("memory of an idle connection with one subscription, KiB", ("memory", "fresh-gateway", "bytes"), None, 12, False, 1024.0),
)


def judge(rounds: Sequence[Round]) -> list[Outcome]:
    """The outcome of every bar that was measured in some round."""
    outcomes = []
    for bar in BARS:
        tried = [one for one in rounds if bar.above[:2] in one and (bar.below is None or bar.below[:2] in one)]
        values = [value for one in tried if (value := _ratio(bar, one)) is not None]
        if tried:
            outcomes.append(Outcome(bar, tuple(values), len(tried) - len(values)))
    return outcomes


def _ratio(bar: Bar, one: Round) -> float | None:
    above = one.get(bar.above[:2], {}).get(bar.above[2])
    below = bar.unit if bar.below is None else one.get(bar.below[:2], {}).get(bar.below[2])
    return above / below if above is not None and below else None


def median(rounds: Sequence[Round], scenario: str, target: str, figure: str) -> float | None:
    """A figure's median over the rounds that have it."""
    values = [one[scenario, target][figure] for one in rounds if figure in one.get((scenario, target), {})]
    return statistics.median(values) if values else None


def total(rounds: Sequence[Round], scenario: str, target: str, figure: str) -> int:
    """A count's sum over the rounds."""
    return sum(one.get((scenario, target), {}).get(figure, 0) for one in rounds)
