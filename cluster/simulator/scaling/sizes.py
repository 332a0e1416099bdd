"""What pools of the twin are made of, and what its requests are promised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.planner.decode_model import KV_SHARE, MARGIN
from cluster.planner.signals import PoolSpec
from router.flow.tuning import decode_cap
from router.latency import LatencyModel


@dataclass(frozen=True, slots=True)
class Promise:
    """Targets of all requests, and the longest wait after which one is refused."""

    ttft_s: float
    itl_s: float
    max_wait_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Site:
    """`cold_start_s` of every start, `drain_s`: until a decode replica has nothing left."""

    pools: Mapping[str, PoolSpec]
    latency: LatencyModel
    promise: Promise
    cold_start_s: float
    drain_s: float

    def batch(self, context: int) -> int:
        """Of a decode replica, as the router's tuner would set it."""
        spec = self.pools["decode"]
        cap = decode_cap(
            self.latency, spec.model, self.promise.itl_s * (1 - MARGIN), context, spec.max_seqs
        )
        return max(1, min(cap, int(KV_SHARE * spec.kv_tokens / context)))
