"""What a planner sees: the pools, and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.autoscaler.offered import Offered
from cluster.autoscaler.published import Published
from cluster.autoscaler.routers import Routers, There
from cluster.autoscaler.watched import Watched
from cluster.planner.signals import PoolSpec, PoolState, Signals
from router.pool import Pool
from workers.core.roles import RoleName


@dataclass(frozen=True, slots=True)
class Sight:
    """`watched` makes pools of what `replicas` report, `offered` signals of what `routers` tell."""

    watched: Watched
    replicas: Pool
    offered: Offered
    routers: Routers

    @property
    def specs(self) -> list[PoolSpec]:
        return self.watched.specs

    def look(self, orders: Mapping[str, int], now: float) -> dict[str, list[float]]:
        """Starts that are over, in seconds, by pool."""
        return self.watched.look(self.replicas, orders, now)

    def state(self, now: float) -> dict[str, PoolState]:
        return self.watched.state(self.replicas, now)

    def signals(self, interval_s: float, there: There) -> Signals:
        """Of the interval that ends now."""
        decoding, made = self.watched.decoding(self.replicas)
        classes = self.offered.take(there.queued)
        return Signals(interval_s, classes, decoding, made, there.in_flight)

    def flips(self, plan: Published) -> list[tuple[str, RoleName]]:
        """Replicas that have not the role which the plan gives them."""
        return list(self.watched.flips(self.replicas, plan.pools, plan.as_prefill))

    def pool_of(self, replica: str) -> str | None:
        found = self.replicas.get(replica)
        return found.record.pool if found is not None else None
