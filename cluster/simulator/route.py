"""`kvasir simulate route`: real index, placement and block pools against simulated prefill workers.

The fleet's speed follows from the trace: at `rho` 1 it would be just busy all the time if nothing
were ever cached. Decode is not simulated, and what it generates is not cached.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.simulator.arrivals import Arrival, Arrivals
from cluster.simulator.linear import LinearModel
from cluster.simulator.prefill_worker import Prefill, PrefillWorker
from router.index.expecting import ExpectingIndex
from router.placement.decision import Need
from router.placement.placement import Placement
from router.placement.policies.names import PolicyName, make_policy
from workers.core.block_pool import BlockPool
from workers.core.clock import Clock, SystemClock
from workers.core.eviction import EvictionName, make_eviction

EXPECTED_S = 600.0  # longer than any queue here: an expectation ends with the prefill it is of


@dataclass(frozen=True, slots=True)
class Setup:
    """One run. `cache_tokens` of each worker. `expecting`: the index counts on decisions at once,
    else it hears of a prompt's blocks when its prefill has finished."""

    workers: int
    cache_tokens: int
    policy: PolicyName = "kvasir"
    eviction: EvictionName = "adaptive"
    rho: float = 1.0
    seed: int = 1
    expecting: bool = True

    def tokens_per_s(self, arrivals: Arrivals) -> float:
        """Of one worker."""
        return arrivals.tokens / (self.rho * self.workers * arrivals.span_s)


@dataclass(frozen=True, slots=True)
class Report:
    """`hit`: part of all prompt tokens that was cached. `imbalance`: computed tokens, the busiest
    worker over the mean. TTFT in the trace's seconds; a request that nobody could take is a reject
    and has an infinite one. `decision_us`: index match and placement, on this machine."""

    requests: int
    hit: float
    imbalance: float
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    rejects: int
    decision_us_p50: float
    decision_us_p99: float


class SimClock:
    """A Clock that the simulation sets."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s


class Fleet:
    """Workers, and the router in front of them."""

    def __init__(self, arrivals: Arrivals, setup: Setup, stopwatch: Clock) -> None:
        rate = setup.tokens_per_s(arrivals)
        blocks = max(1, setup.cache_tokens // arrivals.block_size)
        rng = random.Random(setup.seed)
        self._clock = SimClock()
        self._block_size = arrivals.block_size
        self._expecting = setup.expecting
        self._stopwatch = stopwatch
        self._index = ExpectingIndex(self._clock, ttl_s=EXPECTED_S)
        policy = make_policy(setup.policy, rng, self._clock)
        self._placement = Placement(LinearModel(rate), rng, policy)
        self.workers = [
            PrefillWorker(
                f"prefill-{place}",
                BlockPool(blocks, arrivals.block_size, make_eviction(setup.eviction, blocks)),
                rate,
            )
            for place in range(setup.workers)
        ]
        self._replicas = [worker.replica for worker in self.workers]
        self._by_name = {worker.replica.id: worker for worker in self.workers}
        self._ends: list[tuple[float, int, PrefillWorker]] = []
        self._started = 0
        self.ttft_s: list[float] = []
        self.decision_us: list[float] = []

    def run(self, requests: Iterable[Arrival]) -> None:
        for arrival in requests:
            self._finish_until(arrival.at_s)
            self._clock.time_s = arrival.at_s
            self._arrive(arrival)
        self._finish_until(math.inf)

    def _arrive(self, arrival: Arrival) -> None:
        for worker in self.workers:
            worker.progress(arrival.at_s)
        began = self._stopwatch.now()
        depths, size, most = self._index.match(arrival.ids), self._block_size, arrival.tokens - 1
        cached = {name: d * size if d * size < most else most for name, d in depths.items()}
        need = Need("prefill", arrival.tokens, cached, ids=arrival.ids, session=arrival.session)
        decision = self._placement.place(need, self._replicas)
        self.decision_us.append((self._stopwatch.now() - began) * 1e6)
        if decision is None:
            self.ttft_s.append(math.inf)
            return
        replica = decision.replica
        worker = self._by_name[replica.id]
        if self._expecting:
            self._index.expect(replica.id, arrival.ids)
        uncached = arrival.tokens - decision.cached_tokens
        load = replica.assignments.add(uncached, arrival.tokens)
        worker.enqueue(Prefill(arrival, load))
        if worker.running is None:
            self._start(worker, arrival.at_s)

    def _start(self, worker: PrefillWorker, now: float) -> None:
        job = worker.start(now)
        self._started += 1
        heapq.heappush(self._ends, (job.finish_s, self._started, worker))
        self._tell(worker)

    def _finish_until(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            end_s, _, worker = heapq.heappop(self._ends)
            self._clock.time_s = end_s
            job = worker.finish()
            worker.replica.assignments.remove(job.load)
            self.ttft_s.append(end_s - job.arrival.at_s)
            self._tell(worker)
            if worker.queue:
                self._start(worker, end_s)

    def _tell(self, worker: PrefillWorker) -> None:
        events = worker.pool.events.take()
        if events:
            self._index.apply(worker.replica.id, events)


def simulate(arrivals: Arrivals, setup: Setup) -> Report:
    fleet = Fleet(arrivals, setup, SystemClock())
    fleet.run(arrivals.requests)
    computed = [worker.computed_tokens for worker in fleet.workers]
    cached = sum(worker.cached_tokens for worker in fleet.workers)
    return report(arrivals, computed, cached, fleet.ttft_s, fleet.decision_us)


def report(
    arrivals: Arrivals,
    computed: Sequence[int],
    cached_tokens: int,
    ttft_s: Sequence[float],
    decision_us: Sequence[float],
) -> Report:
    """`computed`: tokens of each worker."""
    mean = sum(computed) / len(computed)
    return Report(
        requests=len(arrivals.requests),
        hit=cached_tokens / arrivals.tokens,
        imbalance=max(computed) / mean if mean else 1.0,
        ttft_p50=quantile(ttft_s, 0.5),
        ttft_p90=quantile(ttft_s, 0.9),
        ttft_p99=quantile(ttft_s, 0.99),
        rejects=sum(map(math.isinf, ttft_s)),
        decision_us_p50=quantile(decision_us, 0.5),
        decision_us_p99=quantile(decision_us, 0.99),
    )


def quantile(values: Sequence[float], part: float) -> float:
    """The value that `part` of all are below."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]
