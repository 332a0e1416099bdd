"""A simulated prefill worker: one prompt at a time, in order, over a real block pool.

Computing a token takes as long as any other: `tokens_per_s` is all there is to it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import cast

from cluster.simulator.arrivals import Arrival
from router.replica import Assignment, Replica, ReplicaState
from router.worker_client import WorkerClient
from workers.core.block_pool import BlockPool
from workers.wire.redis_keys import ReplicaRecord


@dataclass(slots=True, eq=False)
class Prefill:
    """A prompt on its way through a worker."""

    arrival: Arrival
    load: Assignment
    matched: int = 0  # blocks that were cached when it began
    finish_s: float = 0.0
    blocks: list[int] = field(default_factory=list)


class PrefillWorker:
    """`replica` is what the router knows of it. Whoever calls start() calls finish() when its time
    has come; both change what the pool's events tell."""

    def __init__(self, name: str, pool: BlockPool, tokens_per_s: float) -> None:
        self.pool = pool
        self.replica = _replica(name, pool)
        self.queue: deque[Prefill] = deque()
        self.running: Prefill | None = None
        self.computed_tokens = 0
        self.cached_tokens = 0
        self._tokens_per_s = tokens_per_s

    def enqueue(self, job: Prefill) -> None:
        self.pool.expect(job.arrival.ids)
        self.queue.append(job)

    def start(self, now: float) -> Prefill:
        """The next in the queue, which is not empty: what is cached is known now."""
        job = self.queue.popleft()
        arrival, pool = job.arrival, self.pool
        matched = pool.match(arrival.ids)
        pool.acquire(matched)
        job.blocks = matched + pool.allocate(pool.blocks_for(arrival.tokens) - len(matched))
        pool.settle(arrival.ids)
        job.matched = len(matched)
        cached_tokens = min(len(matched) * pool.block_size, arrival.tokens - 1)
        uncached = arrival.tokens - cached_tokens
        job.load.update(pending_tokens=uncached)
        job.finish_s = now + uncached / self._tokens_per_s
        self.computed_tokens += uncached
        self.cached_tokens += cached_tokens
        self.running = job
        return job

    def progress(self, now: float) -> None:
        """The router hears how far the prompt under way is."""
        if self.running is not None:
            left = int((self.running.finish_s - now) * self._tokens_per_s)
            self.running.load.update(pending_tokens=left if left > 0 else 0)

    def finish(self) -> Prefill:
        job = self.running
        assert job is not None, f"{self.replica.id} computes nothing"
        fresh = slice(job.matched, len(job.arrival.ids))
        self.pool.commit(job.blocks[fresh], job.arrival.ids[fresh])
        self.pool.release(job.blocks)
        self.running = None
        return job


def _replica(name: str, pool: BlockPool) -> Replica:
    record = ReplicaRecord(
        id=name,
        incarnation=name,
        address="",
        pool="prefill",
        role="prefill",
        model="",
        kv_abi="",
        block_size=pool.block_size,
        context_length=pool.num_blocks * pool.block_size,
        kv_tokens=pool.num_blocks * pool.block_size,
    )
    replica = Replica(record, cast(WorkerClient, None))  # nobody calls it
    replica.move(ReplicaState.UP, "simulated")
    return replica
