"""What the simulator has to know of this machine, measured on real workers: how long steps take
while one worker computes, how much longer while two do, and what is left when all is idle."""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from cluster.bench.client import Sample, Target
from cluster.bench.runner import Run
from cluster.bench.workload import Job
from cluster.recording import JsonLines, Recorder
from cluster.simulator.fleet.cores import Contention
from cluster.simulator.fleet.recorded import HERE, recorded_steps, teach
from cluster.simulator.route import quantile
from load_tests.fidelity_cores import measure
from router.latency import FittedLatency, LatencyModel
from tests.e2e.serving import Serving, kvasir_serve
from workers.core.clock import SystemClock
from workers.core.step_work import MeasuredStep
from workers.models.architecture import ModelConfig

CALIBRATED = "calibrated"  # the replica that the steps of a calibration are taken for
MOST_JOBS = 5000  # more than any calibration takes
MOST_NOISE = 0.3
P90 = 1.2816  # sigmas from the middle of a normal distribution
LAST_REPORT_S = 1.5
LEAST_STEPS = 4  # of a kind
PROBES = ((48, 10), (48, 10), (160, 4)) * 3  # tokens in and out, one after the other


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of these lengths, drawn at random, so many `in_flight`."""

    prompts: Sequence[int]
    outputs: Sequence[int]
    in_flight: int

    def jobs(self) -> list[Job]:
        rng = random.Random(f"{self}")
        pick = rng.choice
        return [
            Job(0.0, pick(self.prompts), pick(self.outputs), f"{self} {place}")
            for place in range(MOST_JOBS)
        ]


PROMPTS, OUTPUTS = (12, 24, 48, 96, 240), (6, 16, 48)
ALONE = tuple(Load(PROMPTS, OUTPUTS, in_flight) for in_flight in (1, 2, 5))


@dataclass(frozen=True, slots=True)
class Machine:
    """`steps`: of one worker that computes alone, beside the router and the client. `noise`: of
    their times, sigma of the logarithm."""

    steps: list[MeasuredStep]
    contention: Contention
    noise: float

    def teach(
        self, model: LatencyModel, step_tokens: int, slower: float = 1.0, between_s: float = 0.0
    ) -> None:
        """Steps take so many times as long, and `between_s` from their end to the next one."""
        steps = [MeasuredStep(work, s * slower + between_s) for work, s in self.steps]
        teach(model, CALIBRATED, steps, step_tokens, HERE)


async def send(
    serving: Serving, jobs: Sequence[Job], in_flight: int | None = None, within_s: float = 900.0
) -> list[Sample]:
    """When they are due, or as `in_flight` others end; no longer than `within_s`."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=serving.url, timeout=300, limits=limits) as client:
        run = Run(Target(client, SystemClock(), serving.model), SystemClock(), lambda: None)
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                if in_flight is None:
                    await run.open_loop(jobs)
                else:
                    await run.closed_loop(jobs, in_flight)
    failed = [sample.error for sample in run.samples if sample.error is not None]
    assert not failed, failed[:3]
    return run.samples


async def recorded(
    serving: Serving, jobs: Sequence[Job], in_flight: int, within_s: float = 900.0
) -> tuple[list[Sample], list[MeasuredStep]]:
    """And what `kvasir record --steps` writes down meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "steps.jsonl"
        with JsonLines(Path(name) / "requests.jsonl") as requests, JsonLines(path) as rows:
            heard = asyncio.Event()
            recording = asyncio.create_task(Recorder(requests, rows).run([serving.grpc], heard))
            await asyncio.wait_for(heard.wait(), 30)
            samples = await send(serving, jobs, in_flight, within_s)
            await asyncio.sleep(LAST_REPORT_S)
            recording.cancel()
            await asyncio.gather(recording, return_exceptions=True)
        return samples, [step for _, _, step in recorded_steps(path)]


def calibrate(
    model: str, config: ModelConfig, changes: Mapping[str, Any], seconds: float
) -> Machine:
    """`seconds` of each load on one aggregated worker alone, and half of that of each pair of kinds
    of steps on two bare engines."""
    engine = changes["engine"]
    contention = measure(model, engine, seconds / 2)
    steps: list[MeasuredStep] = []
    with tempfile.TemporaryDirectory() as name:
        asked = (f"--model={model}", "--aggregated=1")
        with kvasir_serve(Path(name), *asked, workers=1, changes=changes) as serving:
            asyncio.run(serving.all_up())
            for load in ALONE:
                steps += asyncio.run(recorded(serving, load.jobs(), load.in_flight, seconds))[1]
    latency = FittedLatency(config)
    teach(latency, CALIBRATED, steps, engine["step_tokens"], HERE)
    return Machine(steps, contention, _noise(latency, steps))


def _noise(latency: FittedLatency, steps: Sequence[MeasuredStep]) -> float:
    """As wide as it must be to reach the 90th percentile of what steps are longer than predicted:
    the tail is what matters. Of kinds with prompts and without, the mean."""
    found = []
    for prompt in (True, False):
        off = [
            math.log(seconds / latency.step_s(CALIBRATED, work))
            for work, seconds in steps
            if (work.prefill_tokens > 0) == prompt
        ]
        if len(off) < LEAST_STEPS:
            raise SystemExit(f"only {len(off)} steps of a kind: calibrate for longer")
        found.append((quantile(off, 0.9) - median(off)) / P90)
    return min(MOST_NOISE, sum(found) / len(found))


@dataclass(frozen=True, slots=True)
class Copy:
    """Seconds from the first token to the second beyond a later one's, where KV of so many tokens
    was handed over in between."""

    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Idle:
    """Of requests one by one on an idle cluster. `ttft_s`, `later_s`: what their first tokens took,
    and later ones; `front_s`: of the former what was no step, which is doors, router and messages;
    `between_s`: the same of the latter. `steps`: all of them."""

    ttft_s: float
    later_s: float
    front_s: float
    between_s: float
    copies: Sequence[Copy]
    steps: Sequence[MeasuredStep]

    def slower(self, latency: FittedLatency) -> float:
        """How many times as long steps took as when the machine was calibrated: others may share
        it, and its speed is not the same in every minute. Prompts count as much as decodes."""
        ratios: dict[bool, list[float]] = {True: [], False: []}
        for work, seconds in self.steps:
            ratio = seconds / latency.step_s(CALIBRATED, work)
            ratios[work.prefill_tokens > 0].append(ratio)
        return math.sqrt(median(ratios[True]) * median(ratios[False]))


@dataclass(frozen=True, slots=True)
class Probe:
    """One round of them."""

    samples: Sequence[Sample]
    steps: Sequence[MeasuredStep]


def probe(serving: Serving, name: str) -> Probe:
    """`name`: no round finds what another one has cached."""
    jobs = [
        Job(0.0, prompt, output, f"{name} {place}") for place, (prompt, output) in enumerate(PROBES)
    ]
    return Probe(*asyncio.run(recorded(serving, jobs, in_flight=1)))


def idle_of(probes: Sequence[Probe]) -> Idle:
    """Of rounds before and after everything else."""
    fronts: list[float] = []
    later: list[float] = []
    seconds: dict[int, list[float]] = {}
    for each in probes:
        for (prompt, output), sample in zip(PROBES, each.samples, strict=True):
            computed = [s for work, s in each.steps if work.prefill_tokens == prompt]
            if computed:  # the first ones of a worker are its warm-up
                fronts.append(sample.ttft - median(computed))
            # the last token may have no text, and is not seen then
            if len(sample.gaps) >= output - 2:
                seconds.setdefault(prompt, []).append(sample.gaps[0])
                later += sample.gaps[1:]
    steps = [step for each in probes for step in each.steps]
    single_s = median(s for work, s in steps if not work.prefill_tokens)
    later_s = median(later)
    return Idle(
        ttft_s=median(sample.ttft for each in probes for sample in each.samples),
        later_s=later_s,
        front_s=max(0.0, median(fronts)),
        between_s=max(0.0, later_s - single_s),
        copies=[
            Copy(tokens, max(1e-3, median(gaps) - later_s)) for tokens, gaps in seconds.items()
        ],
        steps=steps,
    )
