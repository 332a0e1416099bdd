"""What became of requests: how each left the line, and what those that were served got of what
their class is promised. Plain counts, read for Prometheus and for `kvasir status`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from enum import StrEnum

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from router.flow.classes import FlowKey, SloClass


class Outcome(StrEnum):
    """How a request left the line."""

    ADMITTED = "admitted"
    QUEUE_FULL = "queue_full"
    HOPELESS = "hopeless"  # at once: it would have waited for too long
    WAITED = "waited"  # in vain: refused from the line
    LEFT = "left"  # its client did not wait
    STOPPING = "stopping"


class Result(StrEnum):
    """How a request ended. LATE and SLOW: over the TTFT, over the ITL target."""

    GOOD = "good"
    LATE = "late"
    SLOW = "slow"
    LATE_AND_SLOW = "late_and_slow"
    FAILED = "failed"
    REFUSED = "refused"


OTHERS = "other"  # every tenant that is not counted by name, and who names none
REFUSALS = frozenset({Outcome.QUEUE_FULL, Outcome.HOPELESS, Outcome.WAITED})


def result_of(slo: SloClass, ttft_s: float, itl_s: float | None) -> Result:
    """`itl_s`: the mean, None for an answer of one token."""
    late = slo.ttft is not None and ttft_s > slo.ttft
    slow = slo.itl is not None and itl_s is not None and itl_s > slo.itl
    if late:
        return Result.LATE_AND_SLOW if slow else Result.LATE
    return Result.SLOW if slow else Result.GOOD


class Book(Collector):
    """`tenants`: those that are counted by name; all others are counted as one, as anybody can
    make up names."""

    def __init__(self, classes: Collection[str], tenants: Collection[str]) -> None:
        self.queued: Counter[str] = Counter(dict.fromkeys(classes, 0))
        self._tenants = frozenset(tenants)
        self._outcomes: Counter[tuple[FlowKey, Outcome]] = Counter()
        self._results: Counter[tuple[FlowKey, Result]] = Counter()

    def change(self, classes: Collection[str], tenants: Collection[str]) -> None:
        self._tenants = frozenset(tenants)
        self.queued.update(dict.fromkeys(classes, 0))

    def joined(self, flow: FlowKey) -> None:
        self.queued[flow.slo_class] += 1

    def left(self, flow: FlowKey) -> None:
        """The line, whatever for."""
        self.queued[flow.slo_class] -= 1

    def passed(self, flow: FlowKey, outcome: Outcome) -> None:
        self._outcomes[self._counted(flow), outcome] += 1
        if outcome in REFUSALS:
            self.ended(flow, Result.REFUSED)

    def ended(self, flow: FlowKey, result: Result) -> None:
        self._results[self._counted(flow), result] += 1

    def _counted(self, flow: FlowKey) -> FlowKey:
        return flow if flow.tenant in self._tenants else flow._replace(tenant=OTHERS)

    def outcomes(self, slo_class: str) -> Counter[Outcome]:
        """Of all its tenants."""
        counts: Counter[Outcome] = Counter()
        for (flow, outcome), count in self._outcomes.items():
            if flow.slo_class == slo_class:
                counts[outcome] += count
        return counts

    def results(self, slo_class: str) -> Counter[Result]:
        counts: Counter[Result] = Counter(dict.fromkeys(Result, 0))
        for (flow, result), count in self._results.items():
            if flow.slo_class == slo_class:
                counts[result] += count
        return counts

    def collect(self) -> Iterator[Metric]:
        queued = GaugeMetricFamily("kvasir_queued", "requests that wait", labels=["class"])
        for slo_class, count in self.queued.items():
            queued.add_metric([slo_class], count)
        yield queued
        labels = ["class", "tenant", "outcome"]
        left = CounterMetricFamily("kvasir_admissions", "how requests left the line", labels=labels)
        for (flow, outcome), count in self._outcomes.items():
            left.add_metric([*flow, outcome], count)
        yield left
        ended = CounterMetricFamily(
            "kvasir_slo_results", "requests by what they got of their targets",
            labels=["class", "tenant", "result"],
        )  # fmt: skip
        for (flow, result), count in self._results.items():
            ended.add_metric([*flow, result], count)
        yield ended
