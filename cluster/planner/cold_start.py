"""How long a pool's replicas take until they serve, from those that did."""

from __future__ import annotations

from collections import deque

from cluster.planner.signals import PoolSpec, PoolState

KEPT = 16
PART = 0.8  # of the starts kept take no longer than what is counted on


class ColdStarts:
    def __init__(self) -> None:
        self._took_s: dict[str, deque[float]] = {}

    def note(self, pool: str, state: PoolState) -> None:
        self._took_s.setdefault(pool, deque(maxlen=KEPT)).extend(state.took_s)

    def seconds(self, spec: PoolSpec, state: PoolState) -> float:
        """One that takes longer than all before it tells that, too."""
        ranked = sorted(self._took_s.get(spec.name, ()))
        usual = ranked[int(PART * (len(ranked) - 1))] if ranked else spec.cold_start_s
        return max(usual, *state.starting, 0.0)
