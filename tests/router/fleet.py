"""Fake workers, and a router's inside over them."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from router.config import Limits
from router.dispatch import Dispatcher
from router.flight import Emission
from router.index.expecting import ExpectingIndex
from router.latency import FittedLatency, LatencyModel
from router.metrics import RouterMetrics
from router.placement.placement import Disaggregation, Placement
from router.pool import Pool
from tests.router.fake_worker import BLOCK as BLOCK
from tests.router.fake_worker import FakeWorker as FakeWorker
from tests.router.fake_worker import token_at as token_at
from workers.core.clock import SystemClock
from workers.core.request import Request, SamplingParams
from workers.core.roles import RoleName
from workers.models.config import read_shape
from workers.wire.redis_keys import ReplicaRecord

SHAPE = read_shape("tiny")


class Fleet:
    """All fake workers of a test."""

    def __init__(self) -> None:
        self.workers: dict[str, FakeWorker] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __getitem__(self, name: str) -> FakeWorker:
        return self.workers[name]

    async def add(self, name: str, role: RoleName) -> FakeWorker:
        fake = self.workers[name] = FakeWorker(self, name, role)
        await fake.start()
        return fake

    def spawn(self, work) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def records(self) -> list[ReplicaRecord]:
        return [fake.record for fake in self.workers.values()]

    async def quiet(self) -> None:
        """Until no worker runs anything or holds a ticket."""

        def done() -> bool:
            fakes = self.workers.values()
            return not any(fake.active or fake.tickets for fake in fakes)

        await until(done)

    async def close(self) -> None:
        for fake in self.workers.values():
            await fake.kill()
        await asyncio.gather(*self._tasks)


@dataclass
class House:
    """A router's inside, without doors."""

    fleet: Fleet
    pool: Pool
    index: ExpectingIndex
    metrics: RouterMetrics
    dispatcher: Dispatcher
    placement: Placement
    clock: SystemClock

    async def tokens(self, request: Request) -> list[Emission]:
        return [emission async for emission in self.dispatcher.run(request)]


# Fake workers share a busy machine with the router, and a second goes by without either of them.
LIMITS = Limits(
    retry_attempts=4, retry_s=10.0, worker_wait_s=5.0, worker_silence_s=10.0, shutdown_s=1.0
)
HASTY = LIMITS.model_copy(update={"worker_silence_s": 1.0})  # for those who wait for silence


@asynccontextmanager
async def house(
    *names: str,
    limits: Limits = LIMITS,
    latency: LatencyModel | None = None,
    disaggregation: Disaggregation = "remote",
) -> AsyncIterator[House]:
    """`names` like "prefill-1" or "aggregated-1"; all up when the block begins."""
    fleet = Fleet()
    try:
        for name in names:
            await fleet.add(name, name.partition("-")[0])
        metrics, clock = RouterMetrics(), SystemClock()
        index = ExpectingIndex(clock)
        latency = latency or FittedLatency(SHAPE)
        placement = Placement(latency, random.Random(7), disaggregation=disaggregation)
        async with (
            Pool(limits.worker_silence_s, [metrics]) as pool,
            Dispatcher(pool, placement, index, latency, limits, clock, metrics) as dispatcher,
        ):
            pool.sync(fleet.records())
            await until(lambda: all(replica.up for replica in pool))
            yield House(fleet, pool, index, metrics, dispatcher, placement, clock)
            pool.check_integrity()
            for replica in pool:
                assert not replica.assignments.seqs, replica.tell()
            assert dispatcher.tickets_held == 0
    finally:
        await fleet.close()


async def until(condition, seconds: float = 10.0) -> None:
    """Fails loudly instead of hanging; says nothing about speed."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def request(num_prompt: int = 10, max_tokens: int = 6, **params) -> Request:
    return Request(
        id=secrets.token_hex(4),
        token_ids=tuple(range(1, num_prompt + 1)),
        prompt_len=num_prompt,
        params=SamplingParams(max_tokens=max_tokens, seed=1, **params),
    )


def unlike(count: int) -> list[Request]:
    """No two begin alike, so nothing but work says where they go."""
    return [
        replace(request(num_prompt=5 + n, max_tokens=8), token_ids=tuple(range(n, 5 + 2 * n)))
        for n in range(count)
    ]
