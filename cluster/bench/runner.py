"""Sends jobs when they are due (open loop) or as earlier ones end (closed loop)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from cluster.bench.client import Sample, Target
from cluster.bench.workload import Job
from workers.core.clock import Clock


class Run:
    """`samples` grows while it runs, so that what there is can be shown at any moment."""

    def __init__(self, target: Target, clock: Clock, on_done: Callable[[], None]) -> None:
        self.samples: list[Sample] = []
        self._target = target
        self._clock = clock
        self._on_done = on_done

    async def open_loop(self, jobs: Sequence[Job]) -> None:
        """Every job goes out at its own time, whatever became of the others."""
        began = self._clock.now()
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                due = began + job.at_s
                await asyncio.sleep(due - self._clock.now())
                group.create_task(self._send(job, due))

    async def closed_loop(self, jobs: Sequence[Job], concurrency: int) -> None:
        """`concurrency` clients, each sending its next job when its last one ended."""
        queue = iter(jobs)
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(self._client(queue))

    async def _client(self, queue: Iterator[Job]) -> None:
        for job in queue:
            await self._send(job, self._clock.now())

    async def _send(self, job: Job, due: float) -> None:
        self.samples.append(await self._target.send(job, due=due))
        self._on_done()
