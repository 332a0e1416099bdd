"""What is simulated, and what is said of it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.simulator.fleet.asks import Ask
from cluster.simulator.fleet.cores import Contention
from cluster.simulator.fleet.world import WorkerSizes
from router.config import Limits
from router.flow.book import Result
from router.flow.classes import SloConfig
from router.latency import LatencyModel
from router.placement.placement import Disaggregation
from router.placement.policies.names import PolicyName
from workers.core.roles import RoleName


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    name: str
    pool: str
    role: RoleName
    sizes: WorkerSizes


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """`truth` says how long everything takes; `believed` is what the router predicts with, and
    learns. `noise`: sigma of the logarithm of a step's time over the true one. `front_s`: of each
    request, what doors, router and messages take beside all that is simulated. `contention`: where
    all workers share one machine's cores."""

    replicas: Sequence[ReplicaPlan]
    truth: LatencyModel
    believed: LatencyModel
    slo: SloConfig
    limits: Limits = field(default_factory=Limits)
    policy: PolicyName = "kvasir"
    disaggregation: Disaggregation = "auto"
    ticket_ttl_s: float = 10.0
    noise: float = 0.0
    seed: int = 1
    front_s: float = 0.0
    contention: Contention | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request. `cached_tokens`: of its prompt, where it was computed first."""

    ask: Ask
    slo_class: str
    result: Result
    ttft_s: float
    itl_s: float | None
    tokens: int
    cached_tokens: int
    ended_at: float
    error: str = ""


@dataclass(slots=True)
class PoolTotals:
    """Of one pool: seconds that its replicas were up, and in steps, all lives together."""

    replicas: int = 0
    up_s: float = 0.0
    busy_s: float = 0.0
    steps: int = 0
    preemptions: int = 0
    query_tokens: int = 0
    hit_tokens: int = 0
