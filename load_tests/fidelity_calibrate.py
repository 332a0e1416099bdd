"""What the simulator has to know of this machine, measured on real clusters: how long steps take
while one worker computes, how much longer while two do, and what messages take when all is idle."""

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
from router.latency import FittedLatency, LatencyModel
from tests.e2e.serving import Serving, kvasir_serve
from workers.core.clock import SystemClock
from workers.core.step_work import MeasuredStep
from workers.models.architecture import ModelConfig

CALIBRATED = "calibrated"  # the replica that the steps of a calibration are taken for
MOST_JOBS = 5000  # more than any calibration takes
MOST_NOISE = 0.3
LAST_REPORT_S = 1.5
LEAST_STEPS = 4  # of a kind
PROBES = ((48, 10), (48, 10), (160, 4)) * 3  # tokens in and out, one after the other


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of these lengths, drawn at random, `in_flight` for each worker."""

    prompts: Sequence[int]
    outputs: Sequence[int]
    in_flight: int = 5

    def jobs(self) -> list[Job]:
        rng = random.Random(f"{self}")
        pick = rng.choice
        return [
            Job(0.0, pick(self.prompts), pick(self.outputs), f"{self} {place}")
            for place in range(MOST_JOBS)
        ]


ALL_SIZES = Load((12, 24, 48, 96, 256), (6, 16, 48))
DECODES = Load((8,), (200,), in_flight=2)  # about as many tokens a second as in the mixes
PROMPTS = Load((64,), (2,), in_flight=2)
BOTH = Load((64,), (32,), in_flight=3)


@dataclass(frozen=True, slots=True)
class Machine:
    """`steps`: of one worker that computes alone, beside the router and the client. `noise`: of
    their times, sigma of the logarithm."""

    steps: list[MeasuredStep]
    contention: Contention
    noise: float

    def teach(self, model: LatencyModel, step_tokens: int) -> None:
        teach(model, CALIBRATED, self.steps, step_tokens, HERE)


async def send(
    serving: Serving, jobs: Sequence[Job], in_flight: int | None = None, within_s: float = 600.0
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


def calibrate(
    model: str, config: ModelConfig, changes: Mapping[str, Any], seconds: float
) -> Machine:
    """Steps of one aggregated worker alone; then of two that both decode, or both compute prompts;
    then of one that computes prompts beside one that decodes. `seconds` of each, always busy."""
    record = _Recording(model, changes, seconds)
    (alone,) = record.steps(("--aggregated=1",), 1, [ALL_SIZES])
    decodes, prompts = record.steps(("--aggregated=2",), 2, [DECODES, PROMPTS])
    (both,) = record.steps(("--prefill=1", "--decode=1"), 2, [BOTH])
    latency = FittedLatency(config)
    teach(latency, CALIBRATED, alone, changes["engine"]["step_tokens"], HERE)

    def slower(steps: Sequence[MeasuredStep], prompt: bool) -> float:
        return max(1.0, median(_ratios(latency, steps, prompt)))

    off = [
        abs(math.log(ratio)) for kind in (True, False) for ratio in _ratios(latency, alone, kind)
    ]
    contention = Contention(
        decode_by_decode=slower(decodes, False),
        decode_by_prompt=slower(both, False),
        prompt_by_decode=slower(both, True),
        prompt_by_prompt=slower(prompts, True),
    )
    return Machine(alone, contention, min(MOST_NOISE, 1.4826 * median(off)))


def _ratios(latency: FittedLatency, steps: Sequence[MeasuredStep], prompt: bool) -> list[float]:
    """Measured over what a worker alone would take."""
    ratios = [
        s / latency.step_s(CALIBRATED, w) for w, s in steps if (w.prefill_tokens > 0) == prompt
    ]
    if len(ratios) < LEAST_STEPS:
        what = "with prompts" if prompt else "of decodes"
        raise SystemExit(
            f"only {len(ratios)} steps {what}: calibrate for longer, with less beside it"
        )
    return ratios


@dataclass(frozen=True, slots=True)
class _Recording:
    model: str
    changes: Mapping[str, Any]
    seconds: float

    def steps(
        self, arguments: Sequence[str], workers: int, loads: Sequence[Load]
    ) -> list[list[MeasuredStep]]:
        """Of one cluster under each load."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            asked = (f"--model={self.model}", *arguments)
            with kvasir_serve(folder, *asked, workers=workers, changes=self.changes) as serving:
                asyncio.run(serving.all_up())
                return [asyncio.run(self._under(serving, load, workers)) for load in loads]

    async def _under(self, serving: Serving, load: Load, workers: int) -> list[MeasuredStep]:
        """What `kvasir record --steps` writes down while it runs."""
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "steps.jsonl"
            with JsonLines(Path(name) / "requests.jsonl") as requests, JsonLines(path) as rows:
                heard = asyncio.Event()
                recording = asyncio.create_task(Recorder(requests, rows).run([serving.grpc], heard))
                await asyncio.wait_for(heard.wait(), 30)
                await send(serving, load.jobs(), load.in_flight * workers, self.seconds)
                await asyncio.sleep(LAST_REPORT_S)
                recording.cancel()
                await asyncio.gather(recording, return_exceptions=True)
            return [step for _, _, step in recorded_steps(path)]


@dataclass(frozen=True, slots=True)
class Probe:
    """One request on an idle cluster: seconds to its first token, from there to the second, and the
    median of later ones. Those two are None where tokens came in one piece."""

    prompt: int
    ttft_s: float
    second_s: float | None
    later_s: float | None


def probe(serving: Serving) -> list[Probe]:
    jobs = [Job(0.0, prompt, output, f"probe {n}") for n, (prompt, output) in enumerate(PROBES)]
    samples = asyncio.run(send(serving, jobs, in_flight=1))
    found = []
    for (prompt, output), sample in zip(PROBES, samples, strict=True):
        # the last token may have no text, and is not seen then
        gaps = sample.gaps if len(sample.gaps) >= output - 2 else None
        found.append(Probe(prompt, sample.ttft, gaps and gaps[0], gaps and median(gaps[1:])))
    return found
