"""What the planner says: sizes, how to get there, what it expects of them, and why not others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cluster.planner.needs import Rates, Servers


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """`start`, `stop`: replicas, now. `flip`: of a flex pool, those that become prefill; negative:
    decode. `as_prefill`: of `replicas`, when all is done."""

    name: str
    replicas: int
    as_prefill: int = 0
    start: int = 0
    stop: int = 0
    flip: int = 0

    @property
    def actions(self) -> int:
        return self.start + self.stop + abs(self.flip)


@dataclass(frozen=True, slots=True)
class RoleInputs:
    """What one role was sized for. `rate` is foreseen at the end of the cold start `horizon_s`,
    `margin` is how wrong such forecasts were, `peak` is the most until whatever is stopped now
    could be there again."""

    rate: float
    margin: float
    peak: float
    way: str
    horizon_s: float
    fitted: bool


@dataclass(frozen=True, slots=True)
class Inputs:
    """`offered`: requests a second now; `bursts`: index of dispersion, 1 = Poisson; `batch`:
    sequences of a decode replica at most, for the sake of `bound`."""

    offered: float
    queued: int
    prompt: float
    uncached: float
    output: float
    uncached_p90: float
    output_p90: float
    bursts: float
    prefill_s: float
    step_s: float
    batch: int
    bound: str
    roles: dict[str, RoleInputs]


@dataclass(frozen=True, slots=True)
class Prediction:
    """At the rates planned for. `attainment`: of both targets together."""

    attainment: float
    ttft: float
    itl: float
    prefill_busy: float
    decode_busy: float
    wait_p95_s: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """`needed`: for what is foreseen; `kept`: what is not given back yet; `servers`: what the pools
    come to."""

    at: float
    goal: float
    feasible: bool
    pools: tuple[PoolPlan, ...]
    servers: Servers
    needed: Servers
    kept: Servers
    rates: Rates
    inputs: Inputs
    prediction: Prediction
    reasons: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]

    def pool(self, name: str) -> PoolPlan:
        return next(pool for pool in self.pools if pool.name == name)

    @property
    def actions(self) -> int:
        return sum(pool.actions for pool in self.pools)

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        for key in ("servers", "needed", "kept", "rates"):
            found[key] = getattr(self, key)._asdict()
        found["rejected"] = [{"choice": choice, "why": why} for choice, why in self.rejected]
        return found
