"""What no router can have: one cache for all, and one that knows the future."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence

from cluster.simulator.arrivals import Arrival, Arrivals
from cluster.simulator.route import Report, Setup, report
from workers.core.block_pool import BlockPool
from workers.core.hashing import BlockId

NEVER = math.inf


def pooled(arrivals: Arrivals, setup: Setup) -> Report:
    """One LRU of the fleet's total size; whoever is free first computes. Blocks count as cached
    from the moment of the decision."""
    rate = setup.tokens_per_s(arrivals)
    size = arrivals.block_size
    pool = BlockPool(setup.workers * max(1, setup.cache_tokens // size), size)
    rng = random.Random(setup.seed)
    free_s = [0.0] * setup.workers
    computed = [0] * setup.workers
    cached_tokens = 0
    ttft_s = []
    for arrival in arrivals.requests:
        waits = [max(0.0, end_s - arrival.at_s) for end_s in free_s]
        shortest = min(waits) + 1e-9
        worker = rng.choice([place for place, wait in enumerate(waits) if wait <= shortest])
        cached = _pass_through(pool, arrival)
        cached_tokens += cached
        computed[worker] += arrival.tokens - cached
        ttft_s.append(waits[worker] + (arrival.tokens - cached) / rate)
        free_s[worker] = arrival.at_s + ttft_s[-1]
    return report(arrivals, computed, cached_tokens, ttft_s, [0.0])


def _pass_through(pool: BlockPool, arrival: Arrival) -> int:
    """Tokens of it that were cached; afterwards all of its blocks are."""
    matched = pool.match(arrival.ids)
    pool.acquire(matched)
    room = pool.num_available - len(matched)
    blocks = matched + pool.allocate(min(len(arrival.ids), room + len(matched)) - len(matched))
    pool.commit(blocks, arrival.ids[: len(blocks)])
    pool.release(blocks)
    pool.events.take()
    return min(len(matched) * pool.block_size, arrival.tokens - 1)


def optimum(arrivals: Arrivals, setup: Setup) -> float:
    """The hit ratio of the pooled cache under Belady's rule: what is used last in the future goes
    first, and what is never used again does not stay. Nothing on line can have more."""
    size = arrivals.block_size
    most = setup.workers * max(1, setup.cache_tokens // size)
    next_uses = _next_uses(arrivals.requests)
    held: dict[BlockId, float] = {}
    furthest: list[tuple[float, int, BlockId]] = []  # (-next use, -depth, block)
    cached_tokens = 0
    for arrival, uses in zip(arrivals.requests, next_uses, strict=True):
        depth = next((d for d, b in enumerate(arrival.ids) if b not in held), len(arrival.ids))
        cached_tokens += min(depth * size, arrival.tokens - 1)
        for place, (block, use) in enumerate(zip(arrival.ids, uses, strict=True)):
            if use == NEVER:
                held.pop(block, None)
            else:
                held[block] = use
                heapq.heappush(furthest, (-use, -place, block))
        while len(held) > most:
            use, _, block = heapq.heappop(furthest)
            if held.get(block) == -use:
                del held[block]
    return cached_tokens / arrivals.tokens


def _next_uses(requests: Sequence[Arrival]) -> list[list[float]]:
    """For each block of each request the number of the next request that has it."""
    later: dict[BlockId, float] = {}
    uses: list[list[float]] = []
    for number in range(len(requests) - 1, -1, -1):
        ids = requests[number].ids
        uses.append([later.get(block, NEVER) for block in ids])
        later.update(dict.fromkeys(ids, float(number)))
    return uses[::-1]
