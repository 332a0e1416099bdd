"""A policy beside the whole-cluster simulator: the same loop as run.py, request by request through
the real router. Dozens of times slower than the twin; it tells whether the twin is right.

The fleet is opened at its largest and what is not wanted is stopped before the first request. A
replica that leaves drains as a real one does: it takes nothing new and ends what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress

from cluster.bench.workload import Job
from cluster.planner.signals import ROLES, PoolState, Role
from cluster.simulator.fleet.asks import Ask, BlockNames
from cluster.simulator.fleet.fleet import Fleet
from cluster.simulator.fleet.plan import FleetPlan, Outcome
from cluster.simulator.scaling.load import Arrival, Shape
from cluster.simulator.scaling.policy import Policy, Seen, Sizes
from cluster.simulator.scaling.run import HOUR_S
from cluster.simulator.scaling.run import Outcome as Total
from router.flow.book import Result
from workers.core.clock import run_virtual

LOOK_S = 1.0  # whether who drains has nothing left


class ScaledPool:
    """Replicas of one role: who is up, who starts, who drains."""

    def __init__(self, fleet: Fleet, names: Sequence[str], up: int, cold_start_s: float) -> None:
        self.replica_s = 0.0
        self.actions = 0
        self._fleet = fleet
        self._cold_start_s = cold_start_s
        self._up = list(names[:up])
        self._down = list(names[up:])
        self._starting: dict[str, float] = {}
        self._draining: list[str] = []
        self._took_s: list[float] = []
        for name in self._down:
            fleet.kill(name)

    @property
    def ongoing(self) -> int:
        """Calls at its workers."""
        workers = (self._fleet.workers.get(name) for name in (*self._up, *self._draining))
        return sum(len(worker.calls) for worker in workers if worker is not None)

    def state(self, now: float) -> PoolState:
        took, self._took_s = tuple(self._took_s), []
        ages = tuple(now - since for since in self._starting.values())
        return PoolState(len(self._up), ages, len(self._draining), took_s=took)

    def passes(self, now: float, elapsed: float) -> None:
        self.replica_s += elapsed * (len(self._up) + len(self._starting) + len(self._draining))
        for name in [n for n, at in self._starting.items() if now - at >= self._cold_start_s]:
            self._took_s.append(now - self._starting.pop(name))
            self._fleet.start(name)
            self._up.append(name)
        for name in [n for n in self._draining if not self._fleet.workers[n].leftover()]:
            self._draining.remove(name)
            self._fleet.kill(name)
            self._down.append(name)

    def resize(self, size: int, now: float) -> None:
        """Those that start are stopped first; of those up, the least busy."""
        more = size - len(self._up) - len(self._starting)
        self.actions += abs(more)
        for _ in range(more):
            if self._down:
                self._starting[self._down.pop()] = now
        for _ in range(-more):
            if self._starting:
                self._down.append(self._starting.popitem()[0])
            elif self._up:
                name = min(self._up, key=lambda each: len(self._fleet.workers[each].calls))
                self._up.remove(name)
                self._fleet.workers[name].draining = True
                self._draining.append(name)


def run_fleet(
    plan: FleetPlan,
    policy: Policy,
    arrivals: Iterable[Arrival],
    window_s: float,
    first: Sizes,
    cold_start_s: float,
    interval_s: float = 10.0,
) -> Total:
    """`plan`: with as many replicas as there may ever be."""
    return run_virtual(_run(plan, policy, arrivals, window_s, first, cold_start_s, interval_s))


async def _run(
    plan: FleetPlan,
    policy: Policy,
    arrivals: Iterable[Arrival],
    window_s: float,
    first: Sizes,
    cold_start_s: float,
    interval_s: float,
) -> Total:
    block_size = plan.replicas[0].sizes.block_size
    blocks = BlockNames(block_size)
    came: list[Shape] = []
    sizes: list[tuple[float, Sizes]] = []
    async with Fleet.open(plan) as fleet:
        loop = asyncio.get_running_loop()
        pools: dict[Role, ScaledPool] = {}
        for role, count in zip(ROLES, first, strict=True):
            names = [replica.name for replica in plan.replicas if replica.role == role]
            pools[role] = ScaledPool(fleet, names, count, cold_start_s)
        began = loop.time()

        async def scale() -> None:
            looked, told = 0.0, 0
            while True:
                await asyncio.sleep(LOOK_S)
                now = loop.time() - began
                for pool in pools.values():
                    pool.passes(now, LOOK_S if now <= window_s else 0.0)
                if now - looked < interval_s or now > window_s:
                    continue
                looked = now
                seen = _seen(fleet, pools, now, interval_s, came, fleet.outcomes[told:])
                told = len(fleet.outcomes)
                came.clear()
                wanted = policy.sizes(seen)
                for role, size in zip(ROLES, wanted, strict=True):
                    pools[role].resize(size, now)
                sizes.append((now, wanted))

        async with asyncio.TaskGroup() as beside:
            scaling = beside.create_task(scale())
            async with asyncio.TaskGroup() as requests:
                for number, arrival in enumerate(arrivals):
                    await asyncio.sleep(max(0.0, began + arrival.at_s - loop.time()))
                    shape = arrival.shape
                    came.append(shape)
                    job = Job(arrival.at_s, shape.prompt, shape.output, f"{number}")
                    ids = blocks.of(job, f"own {number}")
                    ask = Ask(number, arrival.at_s, job, ids, block_size)
                    requests.create_task(fleet.serve(ask))
            scaling.cancel()
            with suppress(asyncio.CancelledError):
                await scaling
        good = sum(outcome.result is Result.GOOD for outcome in fleet.outcomes)
        return Total(
            len(fleet.outcomes),
            good,
            len(fleet.outcomes) - good,
            sum(outcome.result is Result.REFUSED for outcome in fleet.outcomes),
            sum(pool.replica_s for pool in pools.values()) / HOUR_S,
            sum(pool.actions for pool in pools.values()),
            window_s / HOUR_S,
            tuple(sizes),
        )


def _seen(
    fleet: Fleet,
    pools: dict[Role, ScaledPool],
    now: float,
    interval_s: float,
    came: Sequence[Shape],
    ended: Sequence[Outcome],
) -> Seen:
    answered = [each for each in ended if each.tokens]
    queued = fleet.flow.queued
    return Seen(
        now,
        interval_s,
        list(came),
        [
            Shape(e.ask.input_tokens, e.ask.output_tokens, e.ask.input_tokens - e.cached_tokens)
            for e in answered
        ],
        [each.ttft_s for each in answered],
        [each.itl_s for each in answered if each.itl_s is not None],
        queued,
        Sizes(queued + pools["prefill"].ongoing, pools["decode"].ongoing),
        pools["prefill"].state(now),
        pools["decode"].state(now),
    )
