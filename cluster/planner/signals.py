"""What the planner is told each interval: what was asked for, and what there is to serve it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cluster.planner.lengths import Lengths

Role = Literal["prefill", "decode"]
PoolRole = Literal["prefill", "decode", "flex"]
ROLES: tuple[Role, Role] = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class ClassSignals:
    """One service class in one interval. `arrivals`: all that came, those refused or still queued
    included; `queued`: who waits now. `prompts`: whole, `uncached`: what of them is computed,
    `outputs`: of answers that ended, and `held` the sum of prompt times answer over those: long
    answers have other prompts than short ones, and it is theirs that a decode replica holds. 0 =
    not known."""

    slo_class: str
    arrivals: int
    queued: int = 0
    prompts: Lengths = field(default_factory=Lengths)
    uncached: Lengths = field(default_factory=Lengths)
    outputs: Lengths = field(default_factory=Lengths)
    held: float = 0.0


@dataclass(frozen=True, slots=True)
class Signals:
    """`decoding`: sequences that decode or wait to, `made`: tokens that they have so far; None =
    not known. Lengths are known of answers that ended, which the short ones do first; those under
    way show what the long ones take. `in_flight`: requests that were let in and are not over, also
    those that wait for a replica to come."""

    interval_s: float
    classes: tuple[ClassSignals, ...]
    decoding: int = 0
    made: int | None = None
    in_flight: int = 0

    @property
    def arrivals(self) -> int:
        return sum(each.arrivals for each in self.classes)

    @property
    def queued(self) -> int:
        return sum(each.queued for each in self.classes)


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What a pool may become. `model`: the replica that the latency model is asked about;
    `resources`: of one replica, in units of the budget; `cold_start_s`: until starts are measured.
    """

    name: str
    role: PoolRole
    model: str
    least: int = 1
    most: int = 16
    resources: float = 1.0
    cold_start_s: float = 120.0
    kv_tokens: int = 0
    max_seqs: int = 256

    def serves(self, role: Role) -> bool:
        return self.role in (role, "flex")


@dataclass(frozen=True, slots=True)
class PoolState:
    """`starting`: for how long each has been, in seconds. `as_prefill`: of a flex pool's replicas
    up or starting, those that prefill. `took_s`: starts that ended since the last plan. `fitted`:
    steps of this pool were measured."""

    up: int = 0
    starting: tuple[float, ...] = ()
    draining: int = 0
    as_prefill: int = 0
    took_s: tuple[float, ...] = ()
    fitted: bool = True

    @property
    def coming(self) -> int:
        """Up, or about to be."""
        return self.up + len(self.starting)


State = Mapping[str, PoolState]
