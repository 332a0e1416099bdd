#!/usr/bin/env python3
"""Where prompts are computed: always apart from decodes, always beside them, or as predicted.

    python load_tests/disaggregation.py [--traces NAME ...] [--pools 4:4 ...] [--requests 400]
                                        [--jobs 2] [--json FILE]

llama-8b on simulated H100s, the whole router in virtual time. Capacity is the largest rate at which
the better of `remote` and `local` keeps 90% of the requests within the targets of their class; then
all three modes get the same requests at 0.5, 0.8 and 1.0 of it. `mix` goes through PHASES, of
which a second table has what part was in time. The class of a trace is the tightest whose TTFT is
twice what its longer prompts (p90) need alone; `mix` has one of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from cluster.bench.workload import Job, read_trace
from cluster.config import ClusterConfig
from cluster.simulator.arrivals import spread
from cluster.simulator.fleet.asks import asks
from cluster.simulator.fleet.figures import figures
from cluster.simulator.fleet.play import Played, play
from cluster.simulator.fleet.setup import Options, fleet_plan, read_model
from cluster.simulator.route import quantile
from router.flow.book import Result
from router.flow.classes import SloClass, default_classes
from router.latency import FittedLatency, HardwareClass
from router.placement.placement import Disaggregation
from workers.core.errors import ConfigError
from workers.models.config import read_shape

TRACES = Path(__file__).parent / "traces"
MODEL, HARDWARE = "llama-8b", "h100"
# The tightest first; beside the defaults one for prompts that take many seconds.
CLASSES = {**default_classes(), "patient": SloClass(ttft=30.0, itl=0.1)}
# Twice what its longer prompts need alone, twice a step that decodes one sequence: with 50 ms
# between tokens there is room for large chunks beside decodes, and little to decide.
MIX_CLASS, MIX_TARGETS = "fast", SloClass(ttft=0.6, itl=0.02)
MODES: tuple[Disaggregation, ...] = ("local", "remote", "auto")
LOADS = (0.5, 0.8, 1.0)
KEPT = 0.9  # attainment at capacity
NEAR = 1.1  # rates closer than this factor are one capacity
HALVINGS = 8  # of the first guess, before a mode is said to have none
TOKEN_S = 0.015  # of decoding, for how long requests stay
STAYS = 4  # as long as so many stays is the window at least


class Phase(NamedTuple):
    """Of `mix`. `weight`: arrivals a second, relative to those of other phases; tokens in, out."""

    name: str
    seconds: float
    weight: float
    prompt: int
    output: int


PHASES = (Phase("long prompts", 10.0, 1.0, 6000, 60), Phase("long answers", 20.0, 2.0, 300, 700))
CYCLE_S = sum(phase.seconds for phase in PHASES)
MEAN_WEIGHT = sum(phase.seconds * phase.weight for phase in PHASES) / CYCLE_S


@dataclass(frozen=True, slots=True)
class Row:
    """Goodput is requests served within their targets, a second. `best`: which of local and remote
    is better at this load. `phases`: of `mix`, by name, then by mode, the part within targets."""

    trace: str
    pools: str
    slo_class: str
    load: float
    rate: float
    local: float
    remote: float
    auto: float
    best: str
    requests: int
    phases: dict[str, dict[Disaggregation, float]]

    @property
    def ratio(self) -> float:
        return self.auto / max(self.local, self.remote, 1e-9)


@dataclass(frozen=True, slots=True)
class Cell:
    """One trace on one fleet."""

    trace: str
    pools: str
    requests: int

    def rows(self) -> list[Row]:
        jobs = mix() if self.trace == "mix" else read(self.trace)
        slo_class = MIX_CLASS if self.trace == "mix" else class_of(jobs)
        guess, capacity = first_guess(jobs, self.pools), 0.0
        for mode in MODES[:2]:
            capacity = max(capacity, self.capacity(jobs, slo_class, mode, capacity or guess))
        if not capacity:
            raise ConfigError(f"{self.trace}: on {self.pools} no rate keeps {KEPT:.0%} in time")
        found = []
        for load in LOADS:
            goodput, count = {}, 0
            phases: dict[str, dict[Disaggregation, float]] = {}
            for mode in MODES:
                played = self.run(jobs, slo_class, mode, load * capacity)
                result = figures(played)
                goodput[mode], count = result.goodput, result.requests
                for name, part in in_time(played) if self.trace == "mix" else ():
                    phases.setdefault(name, {})[mode] = part
            best = max(MODES[:2], key=goodput.__getitem__)
            found.append(
                Row(
                    self.trace, self.pools, slo_class, load, load * capacity,
                    goodput["local"], goodput["remote"], goodput["auto"], best, count, phases,
                )
            )  # fmt: skip
        return found

    def capacity(
        self, jobs: Sequence[Job], slo_class: str, mode: Disaggregation, guess: float
    ) -> float:
        """By doubling or halving from the guess, then by bisection of its logarithm. 0: none of
        HALVINGS rates keeps enough."""

        def holds(rate: float) -> bool:
            return figures(self.run(jobs, slo_class, mode, rate)).attainment >= KEPT

        low = high = guess
        if holds(guess):
            while holds(high := high * 2):
                low = high
        else:
            while not holds(low := low / 2):
                if low < guess / 2**HALVINGS:
                    return 0.0
                high = low
        while high > low * NEAR:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low

    def run(self, jobs: Sequence[Job], slo_class: str, mode: Disaggregation, rate: float) -> Played:
        prefill, decode = map(int, self.pools.split(":"))
        config = ClusterConfig.model_validate(
            {
                "model": MODEL,
                "hardware": HARDWARE,
                "engine": {"step_tokens": 2048, "max_seqs": 256},
                "router": {"limits": {"max_requests": 8192}},
                "slo": {"classes": {**CLASSES, MIX_CLASS: MIX_TARGETS}},
                "pools": [
                    {"name": "prefill", "role": "prefill", "replicas": prefill},
                    {"name": "decode", "role": "decode", "replicas": decode},
                ],
            }
        )
        plan = fleet_plan(config, read_model(MODEL), Options(mode))
        stay_s = TOKEN_S * sum(job.output_tokens for job in jobs) / len(jobs)
        window_s = max(self.requests / rate, STAYS * stay_s)
        if self.trace == "mix":  # phases stay as long as they are
            window_s = CYCLE_S * math.ceil(window_s / CYCLE_S)
            jobs, speed = mix(rate, window_s), 1.0
        else:
            speed = rate * jobs[-1].at_s / (len(jobs) - 1)
        coming = asks(
            jobs, config.engine.block_size, rate=speed, duration_s=window_s, slo_class=slo_class
        )
        return play(plan, coming, window_s)


def read(name: str) -> list[Job]:
    """What fits into the model's context: anything else fails wherever it goes."""
    context = read_shape(MODEL).context_length
    jobs = spread(read_trace(TRACES / f"{name}.jsonl.gz"), seed=1)
    return [job for job in jobs if job.input_tokens + job.output_tokens <= context]


def mix(rate: float = 1.0, window_s: float = 10 * CYCLE_S) -> list[Job]:
    """Poisson arrivals, `rate` a second in the mean over all phases, lengths within a factor of 1.5
    of their phase's."""
    rng, at_s = random.Random(5), 0.0
    jobs: list[Job] = []
    while at_s < window_s:
        phase, factor = phase_at(at_s), rng.uniform(2 / 3, 3 / 2)
        prompt, output = int(phase.prompt * factor), int(phase.output * factor)
        jobs.append(Job(at_s, prompt, output, f"mix {len(jobs)}"))
        at_s += rng.expovariate(rate * phase.weight / MEAN_WEIGHT)
    return jobs


def phase_at(at_s: float) -> Phase:
    into_s = at_s % CYCLE_S
    for phase in PHASES:
        if into_s < phase.seconds:
            return phase
        into_s -= phase.seconds
    return PHASES[-1]


def in_time(played: Played) -> Iterator[tuple[str, float]]:
    """Of the requests that came in each phase, the part within targets."""
    for phase in PHASES:
        came = [o for o in played.outcomes if phase_at(o.ask.at_s) is phase]
        yield phase.name, sum(o.result is Result.GOOD for o in came) / len(came)


def class_of(jobs: Sequence[Job]) -> str:
    prompt = quantile([job.input_tokens for job in jobs], 0.9)
    alone_s = _model().prefill_s("any", int(prompt), 0)
    in_time = (name for name, c in CLASSES.items() if c.ttft and c.ttft >= 2 * alone_s)
    return next(in_time, list(CLASSES)[-1])


def first_guess(jobs: Sequence[Job], pools: str) -> float:
    """Requests a second that would keep all devices computing, decodes in batches of 32."""
    model, count = _model(), len(jobs)
    some = jobs[:: max(1, count // 200)]
    prefill_s = sum(model.prefill_s("any", job.input_tokens, 0) for job in some) / len(some)
    context = sum(job.input_tokens + job.output_tokens / 2 for job in some) / len(some)
    output = sum(job.output_tokens for job in some) / len(some)
    decode_s = output * model.decode_s("any", 32, int(32 * context)) / 32
    return sum(map(int, pools.split(":"))) / (prefill_s + decode_s)


def _model() -> FittedLatency:
    return FittedLatency(read_shape(MODEL), HardwareClass(HARDWARE))


def table(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "| trace | P:D | class | load | requests/s | local | remote | auto | auto / better | "
        "better |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield (
            f"| {row.trace} | {row.pools} | {row.slo_class} | {row.load:g} | {row.rate:.2f} | "
            f"{row.local:.2f} | {row.remote:.2f} | {row.auto:.2f} | {row.ratio:.3f} | {row.best} |"
        )


def phase_table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| phase | P:D | load | local | remote | auto |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        for name, part in row.phases.items():
            parts = " | ".join(f"{part[mode]:.3f}" for mode in MODES)
            yield f"| {name} | {row.pools} | {row.load:g} | {parts} |"


def main() -> None:
    every = sorted(path.name.removesuffix(".jsonl.gz") for path in TRACES.glob("*.jsonl.gz"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", nargs="+", default=[*every, "mix"], choices=[*every, "mix"])
    parser.add_argument("--pools", nargs="+", default=["4:4"], help="prefill:decode")
    parser.add_argument("--requests", type=int, default=400, help="of a run, at least")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    cells = [Cell(trace, pools, asked.requests) for trace in asked.traces for pools in asked.pools]
    rows: list[Row] = []
    with ProcessPoolExecutor(asked.jobs) as workers:
        for found in workers.map(Cell.rows, cells):
            for line in list(table(found))[0 if not rows else 2 :]:
                print(line, flush=True)
            rows += found
    if any(row.phases for row in rows):
        print("", *phase_table(rows), sep="\n")
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
