"""A Prometheus histogram of what comes many at a time: tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import INF, floatToGoString


class CountedHistogram(Collector):
    """Like prometheus_client's with one label, where that one wants a call for each observation: a
    quarter of what a token costs the router."""

    def __init__(
        self,
        name: str,
        documentation: str,
        label: str,
        *,
        registry: CollectorRegistry,
        buckets: Sequence[float],
    ) -> None:
        """`buckets`: upper bounds, rising; the one without a bound goes without saying."""
        self._name = name
        self._documentation = documentation
        self._label = label
        self._bounds = (*buckets, INF)
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        registry.register(self)

    def observe(self, value: str, amount: float, count: int) -> None:
        """`count` times `amount`, under the label's `value`."""
        counts = self._counts.get(value)
        if counts is None:
            counts = self._counts[value] = [0] * len(self._bounds)
            self._sums[value] = 0.0
        counts[bisect_left(self._bounds, amount)] += count
        self._sums[value] += amount * count

    def describe(self) -> Iterable[Metric]:
        return (self._family(),)

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        bounds = [floatToGoString(bound) for bound in self._bounds]
        for value, counts in self._counts.items():
            below = zip(bounds, map(float, accumulate(counts)), strict=True)
            family.add_metric([value], list(below), self._sums[value])
        return (family,)

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
