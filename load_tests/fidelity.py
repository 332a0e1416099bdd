#!/usr/bin/env python3
"""What the simulator predicts, beside what real clusters on this machine do: one table.

    python -m load_tests.fidelity [--model DIR] [--configs NAME ...] [--mixes NAME ...]
                                  [--seconds 32] [--calibration 20] [--json FILE]

Without --model a checkpoint of 82 million random weights is made first. Two workers of one thread
each run behind the real router: both aggregated, or one to prefill and one to decode with each
value of `router.disaggregation`. Rates are LOAD of what the two can compute.

1. Calibration, once (fidelity_calibrate.py): steps of one worker that computes alone, and how many
   times as long they take beside another one's: the two share the machine's cores.
2. For each configuration: requests one by one on the idle cluster say what doors, router, messages
   and copies of KV take; then every mix runs, and the simulator, which has seen none of it, gets
   the same requests at the same times.

It takes about 14 minutes with all four configurations and mixes. Nothing else may run meanwhile.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from cluster.bench.client import Sample
from cluster.bench.workload import Job
from cluster.config import ClusterConfig, Overrides, load_config
from cluster.simulator.fleet.asks import asks
from cluster.simulator.fleet.plan import FleetPlan
from cluster.simulator.fleet.play import Played, play
from cluster.simulator.fleet.setup import Options, fleet_plan, read_model
from cluster.simulator.route import quantile
from load_tests.fidelity_calibrate import CALIBRATED, Machine, Probe, calibrate, probe, send
from load_tests.fidelity_table import Row, Seen, head, line, ranking, verdict
from load_tests.leaving import leave_on_sigterm
from router.latency import FittedLatency
from router.latency.transfers import MeasuredTransfer
from router.placement.placement import Disaggregation
from tests.e2e.serving import kvasir_serve
from workers.models.architecture import ModelConfig

LOAD = 0.5  # of what both workers can compute
BATCH = 4  # sequences in a step of decodes, as work is counted
WARM_UP_S = 12.0
SLO = {"classes": {"chat": {"ttft": 30, "itl": 3, "max_wait": 120}}, "default": "chat"}
ENGINE = {"threads": 1, "context_length": 1024, "kv_tokens": 16384, "step_tokens": 256}
CHANGES: dict[str, Any] = {"engine": ENGINE, "slo": SLO}


@dataclass(frozen=True, slots=True)
class Setting:
    """A configuration: arguments of `kvasir serve`, and where prompts are computed."""

    arguments: tuple[str, ...]
    mode: Disaggregation
    overrides: Overrides


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


def jobs_of(kinds: Sequence[Kind], rate: float, seconds: float, seed: int) -> list[Job]:
    """Poisson arrivals; no prompt shares anything with another."""
    rng = random.Random(seed)
    jobs: list[Job] = []
    at_s = rng.expovariate(rate)
    while at_s < seconds:
        kind = rng.choices(kinds, [kind.part for kind in kinds])[0]
        factor = rng.uniform(2 / 3, 4 / 3)
        name = f"{seed} {len(jobs)} {kind}"
        jobs.append(Job(at_s, int(kind.prompt * factor), int(kind.output * factor), name))
        at_s += rng.expovariate(rate)
    return jobs


def rate_of(kinds: Sequence[Kind], machine: Machine, config: ModelConfig) -> float:
    """Requests a second that take LOAD of both workers' time."""
    latency = FittedLatency(config)
    machine.teach(latency, int(ENGINE["step_tokens"]))
    work_s = 0.0
    for kind in kinds:
        step_s = latency.decode_s(CALIBRATED, BATCH, BATCH * (kind.prompt + kind.output // 2))
        prompt_s = latency.prefill_s(CALIBRATED, kind.prompt, 0)
        work_s += kind.part * (prompt_s + kind.output * step_s / BATCH)
    slower = mean(asdict(machine.contention).values())
    return LOAD * 2 / slower / work_s


def real(samples: Sequence[Sample]) -> Seen:
    gaps = [gap for sample in samples for gap in sample.gaps]
    began, ended = min(s.sent for s in samples), max(s.arrivals[-1] for s in samples)
    tokens = sum(sample.output_tokens for sample in samples)
    answers = [sample.arrivals[-1] - sample.sent for sample in samples]
    itl = (quantile(gaps, 0.5), quantile(gaps, 0.9))
    return seen([s.ttft for s in samples], itl, tokens / (ended - began), answers)


def predicted(played: Played) -> Seen:
    outcomes = played.outcomes
    failed = [o.error for o in outcomes if o.error]
    assert not failed, failed[:3]
    (gaps,) = played.gaps.values()
    lasted = [o.ttft_s + (o.itl_s or 0.0) * (o.tokens - 1) for o in outcomes]
    began = min(o.ask.at_s for o in outcomes)
    ended = max(o.ask.at_s + last for o, last in zip(outcomes, lasted, strict=True))
    tokens = sum(o.tokens for o in outcomes)
    itl = (gaps.quantile(0.5), gaps.quantile(0.9))
    return seen([o.ttft_s for o in outcomes], itl, tokens / (ended - began), lasted)


def seen(
    ttft_s: Sequence[float], itl: tuple[float, float], throughput: float, answers: Sequence[float]
) -> Seen:
    first = (quantile(ttft_s, 0.5), quantile(ttft_s, 0.9))
    return Seen(*first, *itl, throughput, mean(answers))


class Simulated:
    """One configuration as the simulator has it. `copies` of KV: of this one or, where prompts
    need not be handed over, of one before it."""

    def __init__(
        self,
        config: ClusterConfig,
        mode: Disaggregation,
        model: ModelConfig,
        machine: Machine,
        copies: list[MeasuredTransfer],
    ) -> None:
        self.front_s = 0.0
        self.copies = copies
        self._config, self._mode = config, mode
        self._model, self._machine = model, machine

    def run(self, jobs: Sequence[Job]) -> Played:
        window_s = max(1.0, jobs[-1].at_s)
        return play(self._plan(), asks(jobs, self._config.engine.block_size), window_s)

    def _plan(self) -> FleetPlan:
        plan = fleet_plan(self._config, self._model, Options(self._mode, self._machine.noise))
        for latency in (plan.truth, plan.believed):
            self._machine.teach(latency, self._config.engine.step_tokens)
            for copy in self.copies:
                for replica in plan.replicas:
                    latency.observe_transfers(replica.name, [copy])
        return replace(plan, front_s=self.front_s, contention=self._machine.contention)

    def learn(self, idle: Sequence[Probe]) -> None:
        """What the probes took beyond the steps is the front's, and the copy's where there is
        one."""
        plan = self._plan()
        first, truth = plan.replicas[0], plan.truth
        hands_over = self._mode == "remote" and first.role == "prefill"
        fronts = []
        for each in idle:
            fronts.append(each.ttft_s - truth.prefill_s(first.name, each.prompt, 0))
            if each.second_s is not None and hands_over:
                copy_s = each.second_s - truth.decode_s(first.name, 1, each.prompt + 1)
                num_bytes = each.prompt * first.sizes.token_bytes
                copy = MeasuredTransfer(first.name, num_bytes, max(1e-3, copy_s), "simulated")
                self.copies.append(copy)
        self.front_s = max(0.0, median(fronts))


def rows_of(
    name: str,
    mixes: Sequence[str],
    model_dir: str,
    machine: Machine,
    copies: list[MeasuredTransfer],
    seconds: float,
) -> Iterator[Row]:
    setting, model = CONFIGS[name], read_model(model_dir)
    changes = CHANGES | {"router": {"disaggregation": setting.mode}}
    with tempfile.TemporaryDirectory() as folder:
        arguments = (f"--model={model_dir}", *setting.arguments)
        with kvasir_serve(Path(folder), *arguments, changes=changes) as serving:
            asyncio.run(serving.all_up())
            kinds = MIXES["both"]
            rate = rate_of(kinds, machine, model)
            asyncio.run(send(serving, jobs_of(kinds, rate, WARM_UP_S, seed=0)))
            idle = probe(serving)
            config = load_config(Path(folder) / "cluster.yaml", setting.overrides)
            simulated = Simulated(config, setting.mode, model, machine, copies)
            simulated.learn(idle)
            say_idle(name, idle, simulated)
            for mix in mixes:
                rate = rate_of(MIXES[mix], machine, model)
                jobs = jobs_of(MIXES[mix], rate, seconds, seed=1)
                samples = asyncio.run(send(serving, jobs))
                yield Row(name, mix, len(jobs), real(samples), predicted(simulated.run(jobs)))


def say_machine(machine: Machine, latency: FittedLatency) -> None:
    steps = [latency.decode_s(CALIBRATED, count, count * 64) for count in (1, 4, 8)]
    contention = machine.contention
    print(
        f"One worker alone: a prompt of 48 tokens {latency.prefill_s(CALIBRATED, 48, 0):.3f} s, "
        f"of 240 {latency.prefill_s(CALIBRATED, 240, 0):.3f} s; a step of 1, 4, 8 decodes "
        f"{steps[0] * 1e3:.1f}, {steps[1] * 1e3:.1f}, {steps[2] * 1e3:.1f} ms (noise "
        f"{machine.noise:.2f}). Beside another worker decodes take "
        f"{contention.decode_by_decode:.2f} times as long where it decodes and "
        f"{contention.decode_by_prompt:.2f} times where it computes prompts, prompts "
        f"{contention.prompt_by_decode:.2f} and {contention.prompt_by_prompt:.2f} times.\n",
        flush=True,
    )


def say_idle(name: str, idle: Sequence[Probe], simulated: Simulated) -> None:
    copies = [copy.seconds for copy in simulated.copies]
    copied = f", copies of KV {median(copies) * 1e3:.1f} ms" if copies else ""
    later = [each.later_s for each in idle if each.later_s is not None]
    print(
        f"{name}, idle: TTFT {median(each.ttft_s for each in idle) * 1e3:.1f} ms, of which "
        f"{simulated.front_s * 1e3:.1f} ms for doors, router and messages{copied}; "
        f"later tokens every {median(later) * 1e3:.1f} ms",
        file=sys.stderr,
        flush=True,
    )


def main() -> None:
    leave_on_sigterm()
    logging.basicConfig(level=logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint; without it a small one is made")
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), choices=MIXES)
    parser.add_argument("--seconds", type=float, default=32.0, help="of arrivals, of each mix")
    parser.add_argument("--calibration", type=float, default=20.0, help="seconds of each part")
    parser.add_argument("--json", type=Path, help="write rows, ratios and calibration here")
    options = parser.parse_args()
    with ExitStack() as held:
        model_dir = options.model or small_model(held.enter_context(tempfile.TemporaryDirectory()))
        model = read_model(model_dir)
        machine = calibrate(model_dir, model, CHANGES, options.calibration)
        latency = FittedLatency(model)
        machine.teach(latency, int(ENGINE["step_tokens"]))
        say_machine(machine, latency)
        print(head(), flush=True)
        rows: list[Row] = []
        copies: list[MeasuredTransfer] = []
        for name in options.configs:
            for row in rows_of(name, options.mixes, model_dir, machine, copies, options.seconds):
                rows.append(row)
                print(line(row), flush=True)
    print(f"\n{verdict(rows)}\n\n| mix | real, seconds an answer | predicted | ranking |")
    print("|---|---|---|---|")
    for mix in options.mixes:
        print(ranking(rows, mix))
    if options.json is not None:
        contention = asdict(machine.contention) | {"noise": machine.noise}
        found = [asdict(row) | {"ratios": row.ratios} for row in rows]
        text = json.dumps({"contention": contention, "rows": found}, indent=2)
        options.json.write_text(text + "\n")


def small_model(folder: str) -> str:
    make = Path(__file__).parent / "make_checkpoint.py"
    arguments = ["--shape=small", "--dtype=float32", f"--out={folder}"]
    subprocess.run([sys.executable, str(make), *arguments], check=True, stderr=subprocess.DEVNULL)
    return folder


if __name__ == "__main__":
    sys.exit(main())
