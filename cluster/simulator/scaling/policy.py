"""Who decides how many replicas there are, and what he is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cluster.planner.lengths import Lengths
from cluster.planner.planner import Planner
from cluster.planner.signals import ClassSignals, PoolState, Signals
from cluster.simulator.scaling.load import Shape


class Sizes(NamedTuple):
    prefill: int
    decode: int


@dataclass(frozen=True, slots=True)
class Seen:
    """One interval. `came`: all that arrived; `ttfts`, `itls`: of requests that ended; `ended`:
    their lengths. `ongoing` by role, as a replica would count them, waiting ones included."""

    now: float
    interval_s: float
    came: Sequence[Shape]
    ended: Sequence[Shape]
    ttfts: Sequence[float]
    itls: Sequence[float]
    queued: int
    ongoing: Sizes
    prefill: PoolState
    decode: PoolState
    made: int = 0  # tokens, of answers under way

    @property
    def coming(self) -> Sizes:
        return Sizes(self.prefill.coming, self.decode.coming)


class Policy(Protocol):
    def sizes(self, seen: Seen) -> Sizes: ...


class Fixed:
    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes

    def sizes(self, seen: Seen) -> Sizes:
        return self._sizes


class Planned:
    """The planner. Of those that came it knows prompts, of those that ended answers."""

    def __init__(self, planner: Planner, slo_class: str) -> None:
        self.planner = planner
        self._slo_class = slo_class

    def sizes(self, seen: Seen) -> Sizes:
        of_class = ClassSignals(
            self._slo_class,
            len(seen.came),
            seen.queued,
            Lengths.of([shape.prompt for shape in seen.came]),
            Lengths.of([shape.uncached for shape in seen.came]),
            Lengths.of([shape.output for shape in seen.ended]),
            sum(float(shape.prompt * shape.output) for shape in seen.ended),
        )
        plan = self.planner.plan(
            Signals(seen.interval_s, (of_class,), seen.ongoing.decode, seen.made),
            {"prefill": seen.prefill, "decode": seen.decode},
            seen.now,
        )
        return Sizes(plan.pool("prefill").replicas, plan.pool("decode").replicas)
