"""The index for Prometheus: what it holds, what became of its expectations, how it was repaired."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from router.index.expecting import ExpectingIndex
from router.index.redis_log import Repairs


class IndexMeasures(Collector):
    """Read when Prometheus asks. `repairs` gives None where there is no log to repair from."""

    def __init__(self, index: ExpectingIndex, repairs: Callable[[], Repairs | None]) -> None:
        self._index = index
        self._repairs = repairs

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "kvasir_index_blocks", "different blocks in the mirror", len(self._index)
        )
        yield CounterMetricFamily(
            "kvasir_index_evicted_blocks", "forgotten for want of room", self._index.evicted
        )
        ends = asdict(self._index.honesty)
        yield CounterMetricFamily(
            "kvasir_index_expected_blocks", "sent to a replica to be stored", ends.pop("expected")
        )
        yield _by(
            "end", ends, "kvasir_index_expectations", "how expected blocks ended: confirmed by "
            "their replica, retracted by it (or it is gone), or stale"
        )  # fmt: skip
        found = self._repairs()
        if found is not None:
            yield _by(
                "source", asdict(found), "kvasir_index_repairs", "gaps closed, by what closed them"
            )


def _by(label: str, values: dict[str, int], name: str, text: str) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
