"""The figures of a simulation: what clients saw, what the fleet did for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.simulator.fleet.plan import Outcome
from cluster.simulator.fleet.play import Played
from cluster.simulator.fleet.record import Histogram
from cluster.simulator.route import quantile
from router.flow.book import Result

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Seconds; 0 where nothing was measured."""

    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        if not values:
            return cls()
        ranks = (quantile(values, part) for part in (0.5, 0.9, 0.99))
        return cls(sum(values) / len(values), *ranks)

    @classmethod
    def of_histogram(cls, gaps: Histogram) -> Quantiles:
        return cls(gaps.mean, *(gaps.quantile(part) for part in (0.5, 0.9, 0.99)))


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Requests of one class. `good`: TTFT and mean ITL within its targets; `attainment`: part of
    all that were asked. `ttft` of those that got a token, `itl` of all tokens after the first."""

    requests: int
    good: int
    late: int
    slow: int
    refused: int
    failed: int
    attainment: float
    ttft: Quantiles
    itl: Quantiles


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """`utilisation`: part of the time that its replicas spent in steps."""

    replicas: int
    replica_hours: float
    utilisation: float
    preemptions: int
    steps: int


@dataclass(frozen=True, slots=True)
class Figures:
    """`throughput`, `goodput`: requests that were served, and well, a second of `window_s`, in
    which requests came. `hit`: part of the prompt tokens of those served that was cached where they
    were computed first."""

    requests: int
    window_s: float
    throughput: float
    output_tokens_per_s: float
    goodput: float
    attainment: float
    refused: int
    failed: int
    preemptions: int
    hit: float
    replica_hours: float
    classes: dict[str, ClassFigures]
    pools: dict[str, PoolFigures]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def figures(played: Played) -> Figures:
    outcomes, window_s = played.outcomes, played.window_s
    results = Counter(outcome.result for outcome in outcomes)
    served = [o for o in outcomes if o.result not in (Result.REFUSED, Result.FAILED)]
    prompts = sum(outcome.ask.input_tokens for outcome in served)
    pools = {
        name: PoolFigures(
            totals.replicas,
            totals.up_s / HOUR_S,
            totals.busy_s / totals.up_s if totals.up_s else 0.0,
            totals.preemptions,
            totals.steps,
        )
        for name, totals in played.pools.items()
    }
    return Figures(
        requests=len(outcomes),
        window_s=window_s,
        throughput=len(served) / window_s,
        output_tokens_per_s=sum(outcome.tokens for outcome in outcomes) / window_s,
        goodput=results[Result.GOOD] / window_s,
        attainment=results[Result.GOOD] / len(outcomes),
        refused=results[Result.REFUSED],
        failed=results[Result.FAILED],
        preemptions=sum(pool.preemptions for pool in pools.values()),
        hit=sum(o.cached_tokens for o in served) / prompts if prompts else 0.0,
        replica_hours=sum(pool.replica_hours for pool in pools.values()),
        classes={
            name: _of_class([o for o in outcomes if o.slo_class == name], played.gaps.get(name))
            for name in dict.fromkeys(outcome.slo_class for outcome in outcomes)
        },
        pools=pools,
    )


def ttfts(outcomes: Iterable[Outcome]) -> list[float]:
    """Of those that got a token."""
    return [outcome.ttft_s for outcome in outcomes if not math.isinf(outcome.ttft_s)]


def _of_class(outcomes: Sequence[Outcome], gaps: Histogram | None) -> ClassFigures:
    results = Counter(outcome.result for outcome in outcomes)
    both = results[Result.LATE_AND_SLOW]
    return ClassFigures(
        requests=len(outcomes),
        good=results[Result.GOOD],
        late=results[Result.LATE] + both,
        slow=results[Result.SLOW] + both,
        refused=results[Result.REFUSED],
        failed=results[Result.FAILED],
        attainment=results[Result.GOOD] / len(outcomes),
        ttft=Quantiles.of(ttfts(outcomes)),
        itl=Quantiles.of_histogram(gaps or Histogram()),
    )
