"""`/metrics` in the text format of Prometheus: the counters of all facts, the gauges of the views, and the process itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway import observe
from gateway.ports import Health

PREFIX = "mqtt_gateway_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_not_in_name = re.compile(r"[^a-zA-Z0-9_]").sub


class Views(Protocol):
    """What the API reads of a running gateway."""

    async def health(self) -> list[Health]: ...
    def gauges(self) -> Mapping[str, float]: ...


class Metrics(Collector):
    """One scrape: everything is computed when it is asked for."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """The answer to a scrape."""
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: `collect` is not called when the collector is registered."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The families of a scrape."""
        counts = observe.counters()
        for fact in observe.Fact:
            yield CounterMetricFamily(PREFIX + fact.event, fact.meaning, value=counts[fact.event])
        reasons = CounterMetricFamily(PREFIX + "reasons", "Facts by their reason.", labels=["fact", "reason"])
        for (event, reason), count in observe.reasons().items():
            reasons.add_metric([event, reason], count)
        yield reasons
        for name, value in self._views.gauges().items():
            full = PREFIX + _not_in_name("_", name)
            if full.endswith("_total"):
                yield CounterMetricFamily(full, f"Counter {name} of the gateway.", value=value)
            else:
                yield GaugeMetricFamily(full, f"Gauge {name} of the gateway.", value=value)
