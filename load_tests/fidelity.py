#!/usr/bin/env python3
"""What the simulator predicts, beside what a real cluster on this machine does.

    python -m load_tests.fidelity --model DIR [--modes remote local auto] [--mixes chat long both]
                                  [--seconds 45] [--json FILE]

One prefill and one decode worker, each with one thread, behind the real router; only where prompts
are computed differs (`router.disaggregation`). In each mode steps are recorded while a mix of its
own warms the cluster up; from these alone the latency model is fitted with which the other mixes
are predicted, request by request as they are sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from cluster.bench.client import Sample, Target
from cluster.bench.runner import Run
from cluster.bench.workload import Job
from cluster.config import load_config
from cluster.recording import JsonLines, Recorder
from cluster.simulator.fleet.asks import asks
from cluster.simulator.fleet.play import Played, play
from cluster.simulator.fleet.recorded import read_steps
from cluster.simulator.fleet.setup import Options, fleet_plan, read_model
from cluster.simulator.route import quantile
from load_tests.leaving import leave_on_sigterm
from router.placement.placement import Disaggregation
from tests.e2e.serving import Serving, kvasir_serve
from workers.core.clock import SystemClock

TTFT_S, ITL_S = 10.0, 0.5
SLO = {"classes": {"chat": {"ttft": TTFT_S, "itl": ITL_S, "max_wait": 120}}, "default": "chat"}
ENGINE = {"threads": 1, "context_length": 2048, "kv_tokens": 16384, "step_tokens": 256}
WARM_UP_S = 30.0


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests a second of `prompt` tokens in and `output` out, give or take a third."""

    rate: float
    prompt: int
    output: int


MIXES: dict[str, tuple[Kind, ...]] = {
    "chat": (Kind(0.7, 48, 24),),
    "long": (Kind(0.18, 256, 8),),
    "both": (Kind(0.35, 48, 24), Kind(0.09, 256, 8)),
}
WARM_UP = (Kind(0.5, 64, 16), Kind(0.1, 200, 16))


@dataclass(frozen=True, slots=True)
class Seen:
    """Seconds; goodput is requests a second within TTFT_S and ITL_S, throughput output tokens."""

    requests: int
    ttft_p50: float
    ttft_p90: float
    itl_p50: float
    itl_p90: float
    throughput: float
    goodput: float


@dataclass(frozen=True, slots=True)
class Row:
    mode: str
    mix: str
    real: Seen
    predicted: Seen


def jobs_of(kinds: Sequence[Kind], seconds: float, seed: int) -> list[Job]:
    """Poisson arrivals; no prompt shares anything with another."""
    rng = random.Random(seed)
    jobs: list[Job] = []
    for number, kind in enumerate(kinds):
        at_s = rng.expovariate(kind.rate)
        while at_s < seconds:
            factor = rng.uniform(2 / 3, 4 / 3)
            seed_of = f"{seed} {number} {len(jobs)}"
            jobs.append(Job(at_s, int(kind.prompt * factor), int(kind.output * factor), seed_of))
            at_s += rng.expovariate(kind.rate)
    return sorted(jobs, key=lambda job: job.at_s)


async def send(serving: Serving, jobs: Sequence[Job]) -> list[Sample]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=serving.url, timeout=300, limits=limits) as client:
        run = Run(Target(client, SystemClock(), serving.model), SystemClock(), lambda: None)
        await run.open_loop(jobs)
    failed = [sample.error for sample in run.samples if sample.error is not None]
    assert not failed, failed[:3]
    return run.samples


async def calibrate(serving: Serving, folder: Path) -> Path:
    """Steps that the workers measured while the warm-up mix ran."""
    steps = folder / "steps.jsonl"
    with JsonLines(folder / "requests.jsonl") as requests, JsonLines(steps) as rows:
        heard = asyncio.Event()
        recording = asyncio.create_task(Recorder(requests, rows).run([serving.grpc], heard))
        await asyncio.wait_for(heard.wait(), 30)
        await send(serving, jobs_of(WARM_UP, WARM_UP_S, seed=0))
        await asyncio.sleep(2.0)  # the last report
        recording.cancel()
        await asyncio.gather(recording, return_exceptions=True)
    return steps


def real(samples: Sequence[Sample], seconds: float) -> Seen:
    gaps = [gap for sample in samples for gap in sample.gaps]
    good = sum(s.ttft <= TTFT_S and s.mean_itl <= ITL_S for s in samples)
    tokens = sum(sample.output_tokens for sample in samples)
    return seen([s.ttft for s in samples], gaps, tokens, good, seconds)


def predicted(played: Played, seconds: float) -> Seen:
    outcomes = played.outcomes
    good = sum(o.ttft_s <= TTFT_S and (o.itl_s or 0.0) <= ITL_S for o in outcomes)
    (histogram,) = played.gaps.values()
    base = seen([o.ttft_s for o in outcomes], [0.0], sum(o.tokens for o in outcomes), good, seconds)
    gaps = {"itl_p50": histogram.quantile(0.5), "itl_p90": histogram.quantile(0.9)}
    return Seen(**(asdict(base) | gaps))


def seen(
    ttft_s: Sequence[float], gaps: Sequence[float], tokens: int, good: int, seconds: float
) -> Seen:
    return Seen(
        len(ttft_s),
        quantile(ttft_s, 0.5),
        quantile(ttft_s, 0.9),
        quantile(gaps, 0.5),
        quantile(gaps, 0.9),
        tokens / seconds,
        good / seconds,
    )


def rows_of(
    mode: Disaggregation, mixes: Sequence[str], model: str, seconds: float
) -> Iterator[Row]:
    changes = {"router": {"disaggregation": mode}, "engine": ENGINE, "slo": SLO}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with kvasir_serve(folder, f"--model={model}", changes=changes) as serving:
            asyncio.run(serving.all_up())
            steps = asyncio.run(calibrate(serving, folder))
            ran = {
                mix: asyncio.run(send(serving, jobs_of(MIXES[mix], seconds, seed=1)))
                for mix in mixes
            }
        config = load_config(folder / "cluster.yaml")
        for mix, samples in ran.items():
            plan = fleet_plan(config, read_model(model), Options(mode))
            for latency in (plan.truth, plan.believed):
                read_steps(steps, latency, config.engine.step_tokens)
            coming = asks(jobs_of(MIXES[mix], seconds, seed=1), config.engine.block_size)
            yield Row(
                mode, mix, real(samples, seconds), predicted(play(plan, coming, seconds), seconds)
            )


def line(row: Row) -> str:
    pairs = zip(asdict(row.real).items(), asdict(row.predicted).values(), strict=True)
    cells = (f"{a:.3g} / {b:.3g}" for (name, a), b in pairs if name != "requests")
    return f"| {row.mode} | {row.mix} | {row.real.requests} | " + " | ".join(cells) + " |"


def main() -> None:
    leave_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--modes", nargs="+", default=["remote", "local", "auto"])
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), choices=MIXES)
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = "TTFT p50 | TTFT p90 | ITL p50 | ITL p90 | tokens/s | goodput"
    print(f"real / predicted\n\n| mode | mix | n | {names} |\n|" + "---|" * 9)
    rows = []
    for mode in options.modes:
        for row in rows_of(mode, options.mixes, options.model, options.seconds):
            rows.append(row)
            print(line(row), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
