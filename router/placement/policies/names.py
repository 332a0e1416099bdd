"""Policies by the names that config and command line use."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import MappingProxyType
from typing import Literal, get_args

from router.placement.policies.cached import (
    ActiveBlocks,
    CacheAware,
    LongestPrefix,
    QueueProduct,
    Soonest,
    WeightedScores,
)
from router.placement.policies.hashing import ConsistentHash
from router.placement.policies.kvasir import Kvasir
from router.placement.policies.load import LeastRequests, LeastWork, Random, RoundRobin
from router.placement.policies.policy import Policy
from workers.core.clock import Clock

PolicyName = Literal[
    "kvasir", "random", "round_robin", "least_requests", "least_work", "prefix_hash",
    "session_hash", "bounded_hash", "cache_aware", "cache_aware_tight", "weighted",
    "longest_prefix", "active_blocks", "pending_prefill", "pending_prefill_2", "queue_product",
]  # fmt: skip
POLICY_NAMES: tuple[PolicyName, ...] = get_args(PolicyName)

_MAKERS: MappingProxyType[PolicyName, Callable[[random.Random], Policy]] = MappingProxyType(
    {
        "random": Random,
        "round_robin": lambda _: RoundRobin(),
        "least_requests": LeastRequests,
        "least_work": LeastWork,
        "prefix_hash": lambda _: ConsistentHash("prefix"),
        "session_hash": lambda _: ConsistentHash("session"),
        "bounded_hash": lambda _: ConsistentHash("session", bound=1.25),
        "cache_aware": lambda _: CacheAware(),
        "cache_aware_tight": lambda _: CacheAware(gap=2, ratio=1.1),
        "weighted": WeightedScores,
        "longest_prefix": lambda _: LongestPrefix(),
        "active_blocks": ActiveBlocks,
        "pending_prefill": Soonest,
        "pending_prefill_2": lambda rng: Soonest(rng, weight=2.0),
        "queue_product": QueueProduct,
    }
)


def make_policy(name: PolicyName, rng: random.Random, clock: Clock) -> Policy:
    return Kvasir(rng, clock) if name == "kvasir" else _MAKERS[name](rng)
