#!/usr/bin/env python3
"""What it costs that several routers decide: the same requests over the same simulated prefill
workers (as `kvasir simulate route` has them), through one router and through several, which know of
each other by the workers' reports alone, by what they tell each other, or by that and the blocks
that they expect.

python load_tests/routers.py --trace load_tests/traces/mooncake_conversation_min00-15.jsonl.gz
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from cluster.simulator.arrivals import Arrival, Arrivals, read_arrivals
from cluster.simulator.linear import LinearModel
from cluster.simulator.prefill_worker import Prefill, PrefillWorker
from cluster.simulator.route import EXPECTED_S, Report, SimClock, report
from router.index.expecting import ExpectingIndex
from router.placement.decision import Need
from router.placement.placement import Placement
from router.placement.policies.names import make_policy
from router.pool import WATCH_EVERY_S
from router.replica import Replica
from router.sharing.foreign import NOTHING, Load
from router.sharing.sharing import EVERY_S, SETTLE_S
from workers.core.block_pool import BlockPool
from workers.core.eviction import make_eviction
from workers.core.hashing import BlockId


@dataclass(frozen=True, slots=True)
class Telling:
    name: str
    loads: bool
    blocks: bool


TELLING = (
    Telling("reports alone", loads=False, blocks=False),
    Telling("loads told", loads=True, blocks=False),
    Telling("and blocks", loads=True, blocks=True),
)


class Router:
    """One mirror, one placement, and what it gave to whom."""

    def __init__(self, workers: list[PrefillWorker], rate: float, seed: int, clock: SimClock):
        rng = random.Random(seed)
        self.index = ExpectingIndex(clock, ttl_s=EXPECTED_S)
        self.placement = Placement(LinearModel(rate), rng, make_policy("kvasir", rng, clock))
        self.replicas = [_view(worker) for worker in workers]
        self.sent: list[tuple[str, tuple[BlockId, ...]]] = []  # not yet told

    def own(self, place: int) -> Load:
        held = self.replicas[place].assignments
        return Load(held.pending_tokens, held.kv_tokens, held.seqs)


class House:
    """All of them."""

    def __init__(
        self, arrivals: Arrivals, routers: int, telling: Telling, options: argparse.Namespace
    ) -> None:
        span_s = arrivals.span_s
        rate = arrivals.tokens / (options.rho * options.workers * span_s)
        blocks = max(1, options.cache_tokens // arrivals.block_size)
        self._telling = telling
        self._clock = SimClock()
        self._size = arrivals.block_size
        self.workers = [
            PrefillWorker(
                f"prefill-{place}",
                BlockPool(blocks, self._size, make_eviction("adaptive", blocks)),
                rate,
            )
            for place in range(options.workers)
        ]
        self._routers = [
            Router(self.workers, rate, options.seed + n, self._clock) for n in range(routers)
        ]
        self._door = random.Random(options.seed)
        self._ends: list[tuple[float, int, PrefillWorker]] = []
        self._started = count()
        self._owner: dict[int, tuple[Replica, Prefill]] = {}
        self._told_at = self._reported_at = 0.0
        self.ttft_s: list[float] = []

    def run(self, arrivals: Arrivals) -> Report:
        for arrival in arrivals.requests:
            self._hear_until(arrival.at_s)
            self._until(arrival.at_s)
            self._arrive(arrival, self._door.choice(self._routers))
        self._until(math.inf)
        computed = [worker.computed_tokens for worker in self.workers]
        cached = sum(worker.cached_tokens for worker in self.workers)
        return report(arrivals, computed, cached, self.ttft_s, [0.0])

    def _hear_until(self, now: float) -> None:
        """The last words before `now`, of workers and of routers, in the order of time."""
        told, reported = now // EVERY_S * EVERY_S, now // WATCH_EVERY_S * WATCH_EVERY_S
        for at_s, hear in sorted(((reported, self._report), (told, self._tell)), key=_time):
            self._until(at_s)
            hear(at_s)

    def _report(self, at_s: float) -> None:
        if at_s <= self._reported_at or len(self._routers) == 1:
            return
        self._reported_at = at_s
        for place in range(len(self.workers)):
            all_of_it = NOTHING
            for router in self._routers:
                all_of_it = all_of_it.plus(router.own(place))
            for router in self._routers:
                router.replicas[place].foreign.report(all_of_it.beyond(router.own(place)))

    def _tell(self, at_s: float) -> None:
        if at_s <= self._told_at or not self._telling.loads:
            return
        self._told_at = at_s
        settled = at_s - self._reported_at > SETTLE_S
        for router in self._routers:
            others = [one for one in self._routers if one is not router]
            for place, replica in enumerate(router.replicas):
                told = NOTHING
                for other in others:
                    told = told.plus(other.own(place))
                if told != replica.foreign.told:
                    replica.foreign.tell(told, settled=settled)
            for other in others if self._telling.blocks else ():
                for name, ids in other.sent:
                    router.index.expect(name, ids)
        for router in self._routers:
            router.sent.clear()

    def _arrive(self, arrival: Arrival, router: Router) -> None:
        depths = router.index.match(arrival.ids)
        cached = {
            name: min(depth * self._size, arrival.tokens - 1) for name, depth in depths.items()
        }
        need = Need("prefill", arrival.tokens, cached, ids=arrival.ids, session=arrival.session)
        decision = router.placement.place(need, router.replicas)
        assert decision is not None, "all are up"
        router.index.expect(decision.replica.id, arrival.ids)
        router.sent.append((decision.replica.id, arrival.ids))
        uncached = arrival.tokens - decision.cached_tokens
        job = Prefill(arrival, decision.replica.assignments.add(uncached, arrival.tokens))
        self._owner[id(job)] = decision.replica, job
        worker = self.workers[router.replicas.index(decision.replica)]
        worker.queue.append(job)
        if worker.running is None:
            self._start(worker, arrival.at_s)

    def _start(self, worker: PrefillWorker, now: float) -> None:
        job = worker.start(now)
        heapq.heappush(self._ends, (job.finish_s, next(self._started), worker))
        self._publish(worker)

    def _until(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            end_s, _, worker = heapq.heappop(self._ends)
            self._clock.time_s = end_s
            job = worker.finish()
            replica, _ = self._owner.pop(id(job))
            replica.assignments.remove(job.load)
            self.ttft_s.append(end_s - job.arrival.at_s)
            self._publish(worker)
            if worker.queue:
                self._start(worker, end_s)
        if now < math.inf:
            self._clock.time_s = now
            for worker in self.workers:
                worker.progress(now)

    def _publish(self, worker: PrefillWorker) -> None:
        events = worker.pool.events.take()
        for router in self._routers if events else ():
            router.index.apply(worker.replica.id, events)


def _view(worker: PrefillWorker) -> Replica:
    """A router's own of a worker."""
    mine = Replica(worker.replica.record, worker.replica.client)
    mine.move(worker.replica.state, "simulated")
    return mine


def _time(entry: tuple[float, object]) -> float:
    return entry[0]


def faster(arrivals: Arrivals, speed: float) -> Arrivals:
    requests = tuple(replace(one, at_s=one.at_s / speed) for one in arrivals.requests)
    return Arrivals(requests, arrivals.block_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--speed", type=float, default=1.0, help="the trace so much faster")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--cache-tokens", type=int, default=1_000_000, help="of each worker")
    parser.add_argument("--rho", type=float, default=0.9, help="load if nothing were ever cached")
    parser.add_argument("--routers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    arrivals = faster(read_arrivals(options.trace, seed=options.seed), options.speed)
    print(f"{len(arrivals.requests)} requests, {len(arrivals.requests) / arrivals.span_s:.1f}/s")
    print(f"{'routers':>7} {'they know':<14} {'hit':>6} {'imbal.':>6} {'p50 s':>8} {'p90 s':>8} "
          f"{'p99 s':>8}")  # fmt: skip
    for routers in options.routers:
        for telling in TELLING if routers > 1 else TELLING[:1]:
            found = House(arrivals, routers, telling, options).run(arrivals)
            name = telling.name if routers > 1 else "itself"
            print(f"{routers:>7} {name:<14} {found.hit:>6.3f} {found.imbalance:>6.2f} "
                  f"{found.ttft_p50:>8.3f} {found.ttft_p90:>8.3f} {found.ttft_p99:>8.3f}",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
