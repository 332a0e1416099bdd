"""What the planner wants and sees, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from cluster.autoscaler.published import Published
from cluster.planner.plan import Plan


class PlannerMetrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._wanted = Gauge(
            "kvasir_planner_replicas_wanted", "by the newest plan", ["pool"], registry=registry
        )
        self._seen = Gauge(
            "kvasir_planner_replicas", "as seen by it", ["pool", "state"], registry=registry
        )
        self._attainment = Gauge(
            "kvasir_planner_attainment", "predicted part of requests in time", registry=registry
        )
        self._goal = Gauge("kvasir_planner_goal", "that part, as wanted", registry=registry)
        self._offered = Gauge(
            "kvasir_planner_offered", "requests a second that arrive", registry=registry
        )
        self._infeasible = Gauge(
            "kvasir_planner_infeasible",
            "1 = the goal is out of reach within targets, bounds and budget",
            registry=registry,
        )
        self._publishes = Gauge(
            "kvasir_planner_publishes", "1 = has the lease in Redis", registry=registry
        )
        self._plans = Counter("kvasir_planner_plans", "made", registry=registry)
        self._actions = Counter(
            "kvasir_planner_actions", "ordered", ["pool", "kind"], registry=registry
        )

    def serve(self, host: str, port: int) -> tuple[int, Callable[[], None]]:
        """Exposes /metrics; the port, and what stops it. Raises OSError when it is taken."""
        server, thread = start_http_server(port, addr=host, registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return server.server_port, stop

    def publishes(self, publishes: bool) -> None:
        self._publishes.set(publishes)

    def planned(self, plan: Plan, told: Published) -> None:
        self._plans.inc()
        self._attainment.set(plan.prediction.attainment)
        self._goal.set(plan.goal)
        self._offered.set(plan.inputs.offered)
        self._infeasible.set(not plan.feasible)
        for pool, replicas in told.pools.items():
            self._wanted.labels(pool).set(replicas)
        for pool, seen in told.seen.items():
            counts = {"up": seen.up, "starting": len(seen.starting), "draining": seen.draining}
            for state, count in counts.items():
                self._seen.labels(pool, state).set(count)

    def ordered(self, pool: str, kind: str, count: int = 1) -> None:
        """`kind`: start, stop or flip."""
        self._actions.labels(pool, kind).inc(count)
