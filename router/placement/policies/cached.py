"""Published policies that weigh what a replica caches against its load."""

from __future__ import annotations

import random

from router.placement.decision import Candidates, Need
from router.placement.policies.policy import least


class Soonest:
    """Least queue + `weight` times its own uncached work. Weight 1 is the end of this request;
    weights of 1 and 2 are Dynamo's cost of new and pending prefill tokens."""

    def __init__(self, rng: random.Random, weight: float = 1.0) -> None:
        self._rng = rng
        self._weight = weight

    def choose(self, need: Need, among: Candidates) -> int:
        columns = zip(among.wait_s, among.work_s, strict=True)
        among.cost_s[:] = [wait_s + self._weight * work_s for wait_s, work_s in columns]
        return least(among.cost_s, self._rng)


class ActiveBlocks:
    """Dynamo's published cost: uncached tokens + tokens of all requests that run there."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, need: Need, among: Candidates) -> int:
        columns = zip(among.replicas, among.cached, strict=True)
        costs = [need.num_tokens - cached + replica.kv_tokens for replica, cached in columns]
        return least(costs, self._rng)


class WeightedScores:
    """llm-d's default scorers: 2 parts of the share of the prefix that is cached, 1 part of how
    short the queue is between the shortest and the longest."""

    def __init__(self, rng: random.Random, prefix: float = 2.0, queue: float = 1.0) -> None:
        self._rng = rng
        self._prefix = prefix
        self._queue = queue

    def choose(self, need: Need, among: Candidates) -> int:
        queues = [replica.num_seqs for replica in among.replicas]
        shortest, spread = min(queues), (max(queues) - min(queues)) or 1
        columns = zip(among.cached, queues, strict=True)
        return least(
            [
                self._prefix * (1 - cached / need.num_tokens)
                + self._queue * (length - shortest) / spread
                for cached, length in columns
            ],
            self._rng,
        )


class LongestPrefix:
    """Whoever caches most; the shorter queue among equals."""

    def choose(self, need: Need, among: Candidates) -> int:
        most = max(among.cached)
        holders = [place for place, cached in enumerate(among.cached) if cached == most]
        return min(holders, key=among.wait_s.__getitem__)


class QueueProduct:
    """Uncached tokens times requests there, this one included."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, need: Need, among: Candidates) -> int:
        columns = zip(among.replicas, among.cached, strict=True)
        costs = [
            max(1, need.num_tokens - cached) * (replica.num_seqs + 1) for replica, cached in columns
        ]
        return least(costs, self._rng)


class CacheAware:
    """SGLang's router: the longest prefix if it is a good share of the prompt, else the least
    loaded; the least loaded also whenever loads are far apart (by `gap` and by `ratio`)."""

    def __init__(self, share: float = 0.3, gap: int = 64, ratio: float = 1.5) -> None:
        self._share = share
        self._gap = gap
        self._ratio = ratio

    def choose(self, need: Need, among: Candidates) -> int:
        loads = [replica.num_seqs for replica in among.replicas]
        shortest, longest = min(loads), max(loads)
        most = max(among.cached)
        apart = longest - shortest > self._gap and longest > self._ratio * shortest
        if apart or most <= self._share * need.num_tokens:
            return loads.index(shortest)
        return among.cached.index(most)
