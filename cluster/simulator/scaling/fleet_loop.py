"""A policy beside the whole-cluster simulator: the same loop as run.py, request by request through
the real router. Dozens of times slower than the twin; it tells whether the twin is right."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cluster.bench.workload import Job
from cluster.planner.signals import ROLES, PoolState, Role
from cluster.simulator.fleet.asks import asks
from cluster.simulator.fleet.elastic import ElasticPool
from cluster.simulator.fleet.fleet import Fleet
from cluster.simulator.fleet.plan import FleetPlan, Outcome, ReplicaPlan
from cluster.simulator.scaling.load import Arrival, Shape
from cluster.simulator.scaling.policy import Policy, Seen, Sizes
from cluster.simulator.scaling.run import HOUR_S
from cluster.simulator.scaling.run import Outcome as Total
from router.flow.book import Result
from workers.core.clock import run_virtual


@dataclass(frozen=True, slots=True)
class Scaling:
    """`first`: replicas of each role to begin with. Requests of the first `warm_up_s`, and replicas
    until then, do not count."""

    window_s: float
    first: Sizes
    cold_start_s: float
    interval_s: float = 10.0
    warm_up_s: float = 0.0


def run_fleet(
    plan: FleetPlan, policy: Policy, arrivals: Iterable[Arrival], scaling: Scaling
) -> Total:
    """Of `plan` only what each role's replicas are like counts, not how many there are."""
    return run_virtual(_Scaled(plan, policy, scaling).run(arrivals))


class _Scaled:
    def __init__(self, plan: FleetPlan, policy: Policy, scaling: Scaling) -> None:
        self._likes: dict[Role, ReplicaPlan] = {
            role: next(replica for replica in plan.replicas if replica.role == role)
            for role in ROLES
        }
        first = [
            replace(self._likes[role], name=f"{self._likes[role].pool}-{place}")
            for role, count in zip(ROLES, scaling.first, strict=True)
            for place in range(count)
        ]
        self._plan = replace(plan, replicas=first)
        self._policy, self._scaling = policy, scaling
        self._came: list[Shape] = []
        self._told = 0  # outcomes that the policy has seen
        self._sizes: list[tuple[float, Sizes]] = []

    async def run(self, arrivals: Iterable[Arrival]) -> Total:
        coming = list(arrivals)
        jobs = [Job(at_s, s.prompt, s.output, f"{at_s}") for at_s, s in coming]
        block_size = self._plan.replicas[0].sizes.block_size
        loop = asyncio.get_running_loop()
        async with Fleet.open(self._plan) as fleet:
            began = loop.time()
            async with asyncio.TaskGroup() as tasks:
                scaled = tasks.create_task(self._scale(fleet, began))
                for arrival, ask in zip(coming, asks(jobs, block_size), strict=True):
                    await asyncio.sleep(max(0.0, began + ask.at_s - loop.time()))
                    self._came.append(arrival.shape)
                    tasks.create_task(fleet.serve(ask))
            return self._total(fleet.outcomes, *scaled.result())

    async def _scale(self, fleet: Fleet, began: float) -> tuple[float, int]:
        """Until the window ends; replica-seconds and actions since the warm-up."""
        scaling, loop = self._scaling, asyncio.get_running_loop()
        pools = {role: _Pool(fleet, like, scaling) for role, like in self._likes.items()}
        paid_s, actions = 0.0, 0
        for look in range(1, round(scaling.window_s / scaling.interval_s) + 1):
            await asyncio.sleep(max(0.0, began + look * scaling.interval_s - loop.time()))
            now = look * scaling.interval_s
            wanted = self._policy.sizes(self._seen(fleet, pools, now))
            orders = sum(p.elastic.resize(n) for p, n in zip(pools.values(), wanted, strict=True))
            self._sizes.append((now, wanted))
            if now <= scaling.warm_up_s:
                paid_s = -sum(pool.elastic.paid_s for pool in pools.values())
            else:
                actions += orders
        return paid_s + sum(pool.elastic.paid_s for pool in pools.values()), actions

    def _seen(self, fleet: Fleet, pools: dict[Role, _Pool], now: float) -> Seen:
        answered = [each for each in fleet.outcomes[self._told :] if each.tokens]
        self._told = len(fleet.outcomes)
        came, self._came = self._came, []
        queued = fleet.flow.queued
        prefill, decode = pools["prefill"], pools["decode"]
        return Seen(
            now,
            self._scaling.interval_s,
            came,
            [
                Shape(e.ask.input_tokens, e.ask.output_tokens, e.ask.input_tokens - e.cached_tokens)
                for e in answered
            ],
            [each.ttft_s for each in answered],
            [each.itl_s for each in answered if each.itl_s is not None],
            queued,
            Sizes(queued + prefill.elastic.calls, decode.elastic.calls),
            prefill.state(),
            decode.state(),
            made=sum(line.tokens for line in fleet.journal.lines.values()),
        )

    def _total(self, outcomes: Sequence[Outcome], paid_s: float, actions: int) -> Total:
        scaling = self._scaling
        counted = [each for each in outcomes if each.ask.at_s >= scaling.warm_up_s]
        good = sum(outcome.result is Result.GOOD for outcome in counted)
        return Total(
            len(counted),
            good,
            len(counted) - good,
            sum(outcome.result is Result.REFUSED for outcome in counted),
            paid_s / HOUR_S,
            actions,
            (scaling.window_s - scaling.warm_up_s) / HOUR_S,
            tuple(self._sizes),
        )


class _Pool:
    """What the planner is told of one."""

    def __init__(self, fleet: Fleet, like: ReplicaPlan, scaling: Scaling) -> None:
        self.elastic = ElasticPool(fleet, like, scaling.cold_start_s)
        self._told = 0  # cold starts

    def state(self) -> PoolState:
        pool = self.elastic
        took, self._told = tuple(pool.took_s[self._told :]), len(pool.took_s)
        return PoolState(len(pool.up), tuple(pool.starting_s), pool.num_draining, took_s=took)
