#!/usr/bin/env python3
"""What the simulator predicts, beside what real clusters on this machine do: one table.

    python -m load_tests.fidelity [--model DIR] [--configs NAME ...] [--mixes NAME ...]
                                  [--requests 30] [--repeats 2] [--load 0.5] [--calibration 12]
                                  [--json FILE]
    python -m load_tests.fidelity --again FILE

Without --model a checkpoint of 82 million random weights is made first. Two workers of one thread
each run behind the real router: both aggregated, or one to prefill and one to decode with each
value of `router.disaggregation`. Rates are `--load` of what the two can compute.

1. Calibration, once (fidelity_calibrate.py, fidelity_cores.py): steps of one worker that computes
   alone, and how many times as long they take beside another one's: the two share the machine.
2. For each configuration: requests one by one on the idle cluster say what doors, router, messages
   and copies of KV take; then every mix runs, `--repeats` times with the same arrivals and lengths
   and other tokens. What two of these differ by nobody can predict.
3. The simulator, which has seen none of the mixes, gets the same requests at the same times.

It takes about 18 minutes with all four configurations and mixes. Nothing else may run meanwhile.
--again predicts anew what such a run has measured and written to FILE.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from cluster.bench.client import Sample
from cluster.bench.workload import Job
from cluster.config import Overrides, example_config, load_config
from cluster.simulator.fleet.cores import Contention
from cluster.simulator.fleet.setup import read_model
from cluster.simulator.route import quantile
from load_tests.fidelity_calibrate import (
    CALIBRATED,
    Copy,
    Idle,
    Machine,
    calibrate,
    idle_of,
    probe,
    send,
)
from load_tests.fidelity_predict import Simulated
from load_tests.fidelity_table import Row, Seen, head, line, ranking, seen, verdict
from load_tests.leaving import leave_on_sigterm
from router.latency import FittedLatency
from router.placement.placement import Disaggregation
from tests.e2e.serving import kvasir_serve
from workers.core.step_work import MeasuredStep, StepWork

SMALL = "small"  # shape of the checkpoint that is made
BATCH = 4  # sequences in a step of decodes, as work is counted
WARM_UP = 8  # requests
CLASS = {"ttft": 60, "itl": 6, "max_wait": 240}
SLO = {"classes": {"chat": CLASS, "warm_up": {**CLASS}}, "default": "chat"}
ENGINE = {"threads": 1, "context_length": 1024, "kv_tokens": 16384, "step_tokens": 256}
CHANGES: dict[str, Any] = {"engine": ENGINE, "slo": SLO}


@dataclass(frozen=True, slots=True)
class Setting:
    """A configuration: arguments of `kvasir serve`, and where prompts are computed."""

    arguments: tuple[str, ...]
    mode: Disaggregation
    overrides: Overrides

    @property
    def changes(self) -> dict[str, Any]:
        return CHANGES | {"router": {"disaggregation": self.mode}}


PAIR = Setting(("--prefill=1", "--decode=1"), "remote", Overrides(prefill=1, decode=1))
CONFIGS = {
    "aggregated": Setting(("--aggregated=2",), "remote", Overrides(aggregated=2)),
    "remote": PAIR,
    "auto": replace(PAIR, mode="auto"),
    "local": replace(PAIR, mode="local"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of `prompt` tokens in and `output` out, give or take a third; `part` of a mix."""

    part: float
    prompt: int
    output: int


MIXES: dict[str, tuple[Kind, ...]] = {
    "chat": (Kind(1.0, 48, 24),),
    "long": (Kind(1.0, 240, 8),),
    "write": (Kind(1.0, 24, 64),),
    "both": (Kind(0.7, 48, 24), Kind(0.3, 240, 16)),
}


@dataclass(slots=True)
class Measured:
    """What a run of this tool found; written as JSON, the simulator can be asked again. `model`: a
    checkpoint, or the name of a shape."""

    model: str
    requests: int
    load: float
    machine: Machine
    idle: dict[str, Idle] = field(default_factory=dict)  # by configuration
    runs: dict[str, dict[str, list[Seen]]] = field(default_factory=dict)  # and mix

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Measured:
        found = json.loads(path.read_text(encoding="utf-8"))
        machine = found["machine"]
        steps = [MeasuredStep(StepWork(*work), s) for work, s in machine["steps"]]
        slower = tuple(map(tuple, machine["contention"]["slower"]))
        measured = cls(
            found["model"],
            found["requests"],
            found["load"],
            Machine(steps, Contention(slower), machine["noise"]),
        )
        for name, idle in found["idle"].items():
            copies = [Copy(**copy) for copy in idle.pop("copies")]
            steps = [MeasuredStep(StepWork(*work), s) for work, s in idle.pop("steps")]
            measured.idle[name] = Idle(**idle, copies=copies, steps=steps)
        for name, mixes in found["runs"].items():
            measured.runs[name] = {mix: [Seen(**run) for run in r] for mix, r in mixes.items()}
        return measured


def jobs_of(
    kinds: Sequence[Kind], rate: float, count: int, seed: int, repeat: int = 0
) -> list[Job]:
    """Poisson arrivals; no prompt shares anything with another. A `repeat` differs in its tokens
    alone."""
    rng = random.Random(seed)
    jobs: list[Job] = []
    at_s = 0.0
    for place in range(count):
        kind = rng.choices(kinds, [kind.part for kind in kinds])[0]
        factor = rng.uniform(2 / 3, 4 / 3)
        name = f"{seed} {repeat} {place} {kind}"
        jobs.append(Job(at_s, int(kind.prompt * factor), int(kind.output * factor), name))
        at_s += rng.expovariate(rate)
    return jobs


class Bench:
    """The loads of a measurement, and its two sides. `checkpoint`: what is served."""

    def __init__(self, measured: Measured, checkpoint: str = "") -> None:
        self.measured = measured
        self._checkpoint = checkpoint
        self._model = read_model(measured.model)
        self.latency = FittedLatency(self._model)
        measured.machine.teach(self.latency, int(ENGINE["step_tokens"]))

    def run(self, name: str, mixes: Sequence[str], repeats: int) -> None:
        """Measures one configuration."""
        setting, measured = CONFIGS[name], self.measured
        with tempfile.TemporaryDirectory() as folder:
            arguments = (f"--model={self._checkpoint}", *setting.arguments)
            changes = setting.changes
            with kvasir_serve(Path(folder), *arguments, changes=changes) as serving:
                asyncio.run(serving.all_up())
                asyncio.run(send(serving, self._warm_up()))
                probes = [probe(serving, "before")]
                runs = measured.runs[name] = {mix: [] for mix in mixes}
                for repeat in range(repeats):
                    for mix in mixes:
                        samples = asyncio.run(send(serving, self._jobs(mix, repeat)))
                        runs[mix].append(real(samples))
                probes.append(probe(serving, "after"))
                measured.idle[name] = idle_of(probes)

    def rows(self, name: str) -> Iterator[Row]:
        """Predicts it."""
        measured, mode = self.measured, CONFIGS[name].mode
        idle = measured.idle[name]
        # Where prompts need not be handed over, copies are those of a configuration that does so.
        others = [each for each in ("remote", "auto") if each in measured.idle]
        copies = measured.idle[others[0]].copies if others and name != "aggregated" else ()
        with tempfile.TemporaryDirectory() as folder:
            config = load_config(config_file(Path(folder), name), CONFIGS[name].overrides)
        simulated = Simulated(config, mode, self._model, measured.machine, idle, copies)
        for mix, runs in measured.runs[name].items():
            predicted = simulated.predict(self._warm_up(), self._jobs(mix))
            yield Row(name, mix, measured.requests, runs, predicted)

    def _warm_up(self) -> list[Job]:
        kinds = MIXES["both"]
        return jobs_of(kinds, self._rate(kinds), WARM_UP, seed=0)

    def _jobs(self, mix: str, repeat: int = 0) -> list[Job]:
        kinds = MIXES[mix]
        return jobs_of(kinds, self._rate(kinds), self.measured.requests, 1, repeat)

    def _rate(self, kinds: Sequence[Kind]) -> float:
        """Requests a second that take `load` of both workers' time."""
        latency, work_s = self.latency, 0.0
        for kind in kinds:
            kv_tokens = BATCH * (kind.prompt + kind.output // 2)
            step_s = latency.decode_s(CALIBRATED, BATCH, kv_tokens)
            prompt_s = latency.prefill_s(CALIBRATED, kind.prompt, 0)
            work_s += kind.part * (prompt_s + kind.output * step_s / BATCH)
        slower = mean(mean(row) for row in self.measured.machine.contention.slower)
        return self.measured.load * 2 / slower / work_s


def config_file(folder: Path, name: str) -> Path:
    """As kvasir_serve() writes it, as far as the simulator reads it."""
    config = yaml.safe_load(example_config().read_text(encoding="utf-8"))
    for section, keys in CONFIGS[name].changes.items():
        config.setdefault(section, {}).update(keys)
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def real(samples: Sequence[Sample]) -> Seen:
    gaps = [gap for sample in samples for gap in sample.gaps]
    began, ended = min(s.sent for s in samples), max(s.arrivals[-1] for s in samples)
    tokens = sum(sample.output_tokens for sample in samples)
    answers = [sample.arrivals[-1] - sample.sent for sample in samples]
    itl = (quantile(gaps, 0.5), quantile(gaps, 0.9))
    return seen([s.ttft for s in samples], itl, tokens / (ended - began), answers)


def machine_line(bench: Bench) -> str:
    latency, machine = bench.latency, bench.measured.machine
    steps = [latency.decode_s(CALIBRATED, count, count * 64) for count in (1, 2, 4, 8)]
    slower = "; ".join(
        " ".join(f"{factor:.2f}" for factor in row) for row in machine.contention.slower
    )
    return (
        f"One worker alone: a prompt of 48 tokens {latency.prefill_s(CALIBRATED, 48, 0):.3f} s, "
        f"of 240 {latency.prefill_s(CALIBRATED, 240, 0):.3f} s; a step of 1, 2, 4, 8 decodes "
        f"{', '.join(f'{step_s * 1e3:.1f}' for step_s in steps)} ms (noise {machine.noise:.2f}). "
        f"Beside a step of one decode, of several, of a prompt, steps of one decode, of several, "
        f"of a prompt take so many times as long: {slower}."
    )


def idle_line(name: str, idle: Idle) -> str:
    copies = ", ".join(f"{copy.tokens} tokens {copy.seconds * 1e3:.1f} ms" for copy in idle.copies)
    return (
        f"{name}, idle: TTFT {idle.ttft_s * 1e3:.1f} ms, of which {idle.front_s * 1e3:.1f} ms for "
        f"doors, router and messages; later tokens every {idle.later_s * 1e3:.1f} ms, of which "
        f"{idle.between_s * 1e3:.1f} ms between steps; beyond that the second token takes: {copies}"
    )


def say(rows: Sequence[Row]) -> None:
    print(f"\n{verdict(rows)}\n\n| mix | real, seconds an answer | predicted | ranking |")
    print("|---|---|---|---|")
    for mix in dict.fromkeys(row.mix for row in rows):
        print(ranking(rows, mix))


def main() -> None:
    leave_on_sigterm()
    logging.basicConfig(level=logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint; without it a small one is made")
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), choices=MIXES)
    parser.add_argument("--requests", type=int, default=30, help="of each mix")
    parser.add_argument("--repeats", type=int, default=2, help="of each mix")
    parser.add_argument("--load", type=float, default=0.5, help="of what both workers can do")
    parser.add_argument("--calibration", type=float, default=12.0, help="seconds of each part")
    parser.add_argument("--json", type=Path, help="write what was measured here")
    parser.add_argument("--again", type=Path, help="what was measured stands here")
    options = parser.parse_args()
    with ExitStack() as held:
        if options.again is not None:
            bench = Bench(Measured.read(options.again))
        else:
            folder = held.enter_context(tempfile.TemporaryDirectory())
            checkpoint = options.model or small_model(folder)
            model = options.model or SMALL
            machine = calibrate(checkpoint, read_model(model), CHANGES, options.calibration)
            bench = Bench(Measured(model, options.requests, options.load, machine), checkpoint)
        measured = bench.measured
        print(machine_line(bench), flush=True)
        for name in [] if options.again else options.configs:
            bench.run(name, options.mixes, options.repeats)
            if options.json is not None:
                measured.write(options.json)
        for name, idle in measured.idle.items():
            print(f"\n{idle_line(name, idle)}")
        print(f"\n{head()}", flush=True)
        rows: list[Row] = []
        for name in measured.runs:
            for row in bench.rows(name):
                rows.append(row)
                print(line(row), flush=True)
    say(rows)


def small_model(folder: str) -> str:
    make = Path(__file__).parent / "make_checkpoint.py"
    arguments = [f"--shape={SMALL}", "--dtype=float32", f"--out={folder}"]
    subprocess.run([sys.executable, str(make), *arguments], check=True, stderr=subprocess.DEVNULL)
    return folder


if __name__ == "__main__":
    main()
