#!/usr/bin/env python3
"""How right the latency model is: recorded steps (record_steps.py) played to it, each predicted
before it is learnt from. Beside it the roofline alone, and what it replaced: the roofline times one
smoothed ratio for each kind of step.

python load_tests/bench_latency.py demo=steps.jsonl MODEL_DIRECTORY=other.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from time import thread_time
from typing import NamedTuple

from cluster.model_source import resolve_model
from cluster.simulator.route import quantile
from router.latency import FittedLatency, HardwareClass
from workers.core.step_work import MeasuredStep, StepWork
from workers.models.architecture import ModelConfig
from workers.models.config import load_config

LEARNT = 200  # steps before errors count
REPORT = 8  # steps that a report brings
STALLS, STALL = 0.05, 10.0
DRIFT = 1.7
SETTLED = 50  # steps after a change that do not count


class Step(NamedTuple):
    """`true_s`: without the stall that may have been put on top."""

    measured: MeasuredStep
    true_s: float


class Case(NamedTuple):
    """Errors count from step `first` on, and nothing is learnt from step `learnt` on."""

    steps: list[Step]
    first: int
    learnt: int


class Prior:
    """The roofline alone."""

    def __init__(self, config: ModelConfig, hardware: str) -> None:
        self._model = FittedLatency(config, HardwareClass(hardware))

    def step_s(self, work: StepWork) -> float:
        return self._model.step_s("replica", work)

    def observe(self, steps: Sequence[MeasuredStep]) -> None: ...


class Ratio(Prior):
    """The roofline times a ratio, smoothed in log space, with prompts and without."""

    def __init__(self, config: ModelConfig, hardware: str) -> None:
        super().__init__(config, hardware)
        self._log: dict[bool, float] = {}

    def step_s(self, work: StepWork) -> float:
        return super().step_s(work) * math.exp(self._log.get(work.prefill_tokens > 0, 0.0))

    def observe(self, steps: Sequence[MeasuredStep]) -> None:
        for work, seconds in steps:
            new = math.log(seconds / super().step_s(work))
            kind = work.prefill_tokens > 0
            old = self._log.get(kind, new)
            self._log[kind] = old + 0.1 * (new - old)


class Fitted(Prior):
    """What the router runs with."""

    def observe(self, steps: Sequence[MeasuredStep]) -> None:
        self._model.observe("replica", steps)


MODELS: dict[str, Callable[[ModelConfig, str], Prior]] = {
    "roofline": Prior,
    "ratio": Ratio,
    "fit": Fitted,
}


def read(path: Path, field: str) -> list[Step]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Step(
            MeasuredStep(StepWork(*(line[name] for name in StepWork._fields)), line[field]),
            line[field],
        )
        for line in lines
    ]


def stalled(steps: Sequence[Step], rng: random.Random) -> list[Step]:
    def slow(step: Step) -> Step:
        if rng.random() >= STALLS:
            return step
        return Step(MeasuredStep(step.measured.work, STALL * step.true_s), step.true_s)

    return [slow(step) for step in steps]


def drifted(steps: Sequence[Step]) -> list[Step]:
    """The second half takes longer by the same factor: another machine, or the same with others."""
    half = len(steps) // 2
    return [*steps[:half], *(_scaled(step) for step in steps[half:])]


def _scaled(step: Step) -> Step:
    seconds = DRIFT * step.true_s
    return Step(MeasuredStep(step.measured.work, seconds), seconds)


def errors(model: Prior, case: Case) -> dict[str, float]:
    """`us`: CPU time of a step, prediction and learning."""
    off: list[tuple[bool, float]] = []
    began = thread_time()
    for start in range(0, len(case.steps), REPORT):
        report = case.steps[start : start + REPORT]
        for (work, _), true_s in report:
            off.append((work.prefill_tokens > 0, (model.step_s(work) - true_s) / true_s))
        if start < case.learnt:
            model.observe([step.measured for step in report])
    took = thread_time() - began
    counted = off[case.first :]
    absolute = [abs(value) for _, value in counted]
    return {
        "median": median(absolute),
        "p90": quantile(absolute, 0.9),
        "prompts": _median(abs(value) for prompt, value in counted if prompt),
        "decodes": _median(abs(value) for prompt, value in counted if not prompt),
        "bias": median(value for _, value in counted),
        "us": took / len(case.steps) * 1e6,
    }


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return median(found) if found else math.nan


def cases(steps: list[Step], rng: random.Random) -> dict[str, Case]:
    first, half, every = min(LEARNT, len(steps) // 2), len(steps) // 2, len(steps)
    shuffled = rng.sample(steps, every)
    return {
        "as recorded": Case(steps, first, every),
        "held out": Case(shuffled, first, first),
        f"held out, {STALLS:.0%} stalls": Case(stalled(shuffled, rng), first, first),
        f"x{DRIFT} half way": Case(drifted(steps), half + SETTLED, every),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recorded", nargs="+", help="model=file")
    parser.add_argument("--hardware", default="cpu")
    parser.add_argument("--clock", choices=("seconds", "cpu_seconds"), default="cpu_seconds")
    options = parser.parse_args()
    print("| steps of | played | model | median | p90 | prompts | decodes | bias | us/step |")
    print("|---|---|---|---|---|---|---|---|---|")
    for pair in options.recorded:
        model, _, file = pair.rpartition("=")
        config, steps = load_config(resolve_model(model)), read(Path(file), options.clock)
        for played, case in cases(steps, random.Random(1)).items():
            for name, make in MODELS.items():
                found = errors(make(config, options.hardware), case)
                cells = [
                    f"{100 * found[key]:.1f} %" for key in ("median", "p90", "prompts", "decodes")
                ]
                cells += [f"{100 * found['bias']:+.1f} %", f"{found['us']:.0f}"]
                print(f"| {Path(model).name} | {played} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
