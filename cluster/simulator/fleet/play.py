"""Plays a trace against a fleet, and watches both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cluster.simulator.fleet.asks import Ask
from cluster.simulator.fleet.failures import Failure
from cluster.simulator.fleet.failures import play as fail
from cluster.simulator.fleet.fleet import Fleet
from cluster.simulator.fleet.plan import FleetPlan, Outcome, PoolTotals
from cluster.simulator.fleet.record import Histogram
from workers.core.clock import run_virtual
from workers.core.errors import ConfigError

SAMPLES = 240  # of the window
DRAIN_S = 1.0  # after the last request: tickets are released, leases end


@dataclass(frozen=True, slots=True)
class PoolSample:
    """One pool at one moment. `busy`: part of the time since the last sample that its replicas
    spent in steps; `kv`: part of its pages that sequences or tickets hold."""

    replicas: int
    running: int
    waiting: int
    busy: float
    kv: float


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    queued: int
    pools: dict[str, PoolSample]


@dataclass(slots=True)
class Played:
    """`window_s`: in which requests came. `leftover`: what was still held at the end, in words."""

    window_s: float
    outcomes: list[Outcome]
    gaps: dict[str, Histogram]
    samples: list[Sample]
    pools: dict[str, PoolTotals]
    leftover: list[str] = field(default_factory=list)


def play(
    plan: FleetPlan,
    asks: Iterable[Ask],
    window_s: float,
    failures: Sequence[Failure] = (),
    check: Callable[[Fleet], None] = lambda fleet: None,
) -> Played:
    """To the end of the last request; `check` sees the fleet then. Raises ConfigError where none
    comes."""
    return run_virtual(_play(plan, asks, window_s, failures, check))


async def _play(
    plan: FleetPlan,
    asks: Iterable[Ask],
    window_s: float,
    failures: Sequence[Failure],
    check: Callable[[Fleet], None],
) -> Played:
    async with Fleet.open(plan) as fleet:
        loop = asyncio.get_running_loop()
        began = loop.time()
        sampler = _Sampler(fleet, began)
        async with asyncio.TaskGroup() as beside:
            watching = beside.create_task(sampler.run(window_s / SAMPLES))
            failing = [beside.create_task(fail(failure, fleet)) for failure in failures]
            async with asyncio.TaskGroup() as requests:
                asked = 0
                for ask in asks:
                    asked += 1
                    await asyncio.sleep(max(0.0, began + ask.at_s - loop.time()))
                    requests.create_task(fleet.serve(ask))
                if not asked:
                    raise ConfigError("no request of the trace comes within the duration")
            await asyncio.sleep(DRAIN_S)
            for task in (watching, *failing):
                task.cancel()
        check(fleet)
        totals = fleet.totals()
        return Played(
            window_s, fleet.outcomes, fleet.journal.gaps, sampler.samples, totals, fleet.leftover()
        )


class _Sampler:
    def __init__(self, fleet: Fleet, began: float) -> None:
        self.samples: list[Sample] = []
        self._fleet = fleet
        self._began = began
        self._busy_s: dict[str, float] = {}

    async def run(self, every_s: float) -> None:
        while True:
            self.samples.append(self._sample(every_s))
            await asyncio.sleep(every_s)

    def _sample(self, every_s: float) -> Sample:
        now = asyncio.get_running_loop().time()
        pools = {name: self._pool(name, every_s) for name in self._fleet.pools}
        return Sample(now - self._began, self._fleet.flow.queued, pools)

    def _pool(self, name: str, every_s: float) -> PoolSample:
        there = [w for w in self._fleet.workers.values() if self._fleet.pool_of(w.name) == name]
        running = waiting = used = blocks = 0
        for at in there:
            scheduler = at.engine.scheduler
            running += len(scheduler.running) + len(scheduler.reserved)
            waiting += len(scheduler.waiting) + at.num_reserving
            used += scheduler.pool.num_referenced
            blocks += scheduler.pool.num_blocks
        busy_s = self._fleet.busy_s(name)
        new_s, self._busy_s[name] = busy_s - self._busy_s.get(name, 0.0), busy_s
        busy = new_s / (every_s * len(there)) if there else 0.0
        return PoolSample(
            len(there), running, waiting, min(1.0, busy), used / blocks if blocks else 0.0
        )
