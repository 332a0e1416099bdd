"""How much do long prompts disturb streams that are being decoded?

A few clients stream all the time. First nobody else is there (quiet), then prompts arrive at a
fixed pace, whatever became of the earlier ones (loaded).
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.bench.client import Sample, Target
from cluster.bench.runner import Run
from cluster.bench.workload import Job
from workers.core.clock import Clock
from workers.core.errors import Unavailable

POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Plan:
    streams: int = 4
    stream_input: int = 128
    stream_output: int = 3072  # long enough to outlast the run; a stream that ends begins anew
    prompt_input: int = 2048
    prompt_output: int = 16
    every_s: float = 4.0
    quiet_s: float = 10.0
    loaded_s: float = 28.0

    def prompts(self, seed: str) -> list[Job]:
        """One at the start of the loaded window and one every `every_s` up to its end."""
        return [
            Job(number * self.every_s, self.prompt_input, self.prompt_output, f"{seed} p{number}")
            for number in range(math.ceil(self.loaded_s / self.every_s))
        ]


@dataclass(frozen=True, slots=True)
class Window:
    began: float
    ended: float

    def gaps_within(self, samples: list[Sample]) -> list[float]:
        """Seconds between tokens, of the gaps that lie in the window as a whole."""
        return [b - a for a, b in _gaps(samples) if self.began <= a and b <= self.ended]

    def gaps_across(self, samples: list[Sample]) -> list[float]:
        """Those that lie in it with any part: a stall that reaches beyond it counts in full."""
        return [b - a for a, b in _gaps(samples) if a < self.ended and b > self.began]

    def tokens_per_s(self, samples: list[Sample]) -> float:
        arrivals = itertools.chain.from_iterable(sample.arrivals for sample in samples)
        count = sum(self.began <= at < self.ended for at in arrivals)
        return count / (self.ended - self.began)


@dataclass(slots=True)
class Interference:
    """`run` once; then `steady` has the streams' samples and `prompts` those of the prompts."""

    target: Target
    clock: Clock
    plan: Plan
    seed: str
    steady: list[Sample] = field(default_factory=list)
    prompts: list[Sample] = field(default_factory=list)

    async def run(self) -> tuple[Window, Window]:
        """(quiet, loaded). Quiet ends as the first prompt goes out: what is stalled by it lies
        across that edge, so quiet counts the gaps within, loaded those across. The streams go on
        until every prompt is answered, so that the last ones meet the same company as the first.
        Raises Unavailable if a stream breaks."""
        async with asyncio.TaskGroup() as group:
            streams = [
                group.create_task(self._keep_streaming(number))
                for number in range(self.plan.streams)
            ]
            await self._until_all_speak_after(-math.inf)
            quiet = await self._quiet()
            began = self.clock.now()
            run = Run(self.target, self.clock, lambda: None)
            self.prompts = run.samples
            await run.open_loop(self.plan.prompts(self.seed))
            loaded = Window(began, began + self.plan.loaded_s)
            await asyncio.sleep(loaded.ended - self.clock.now())
            await self._until_all_speak_after(loaded.ended)
            for stream in streams:
                stream.cancel()
        return quiet, loaded

    async def _quiet(self) -> Window:
        began = self.clock.now()
        await asyncio.sleep(self.plan.quiet_s)
        return Window(began, self.clock.now())

    async def _keep_streaming(self, stream: int) -> None:
        plan = self.plan
        for number in itertools.count():
            job = Job(0.0, plan.stream_input, plan.stream_output, f"{self.seed} s{stream} {number}")
            now = self.clock.now()
            sample = Sample(due=now, sent=now, input_tokens=job.input_tokens)
            self.steady.append(sample)
            await self.target.stream(job, sample)
            if sample.error is not None:
                raise Unavailable(f"a steady stream broke: {sample.error}")

    async def _until_all_speak_after(self, moment: float) -> None:
        """Until so many streams as there are have said something after `moment`."""
        while True:
            heard = sum(bool(s.arrivals) and s.arrivals[-1] > moment for s in self.steady)
            if heard >= self.plan.streams:
                return
            await asyncio.sleep(POLL_S)


def _gaps(samples: list[Sample]) -> Iterator[tuple[float, float]]:
    for sample in samples:
        yield from itertools.pairwise(sample.arrivals)
