"""The simulator's side of fidelity.py: one configuration as it has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.bench.workload import Job
from cluster.config import ClusterConfig
from cluster.simulator.fleet.asks import asks
from cluster.simulator.fleet.plan import FleetPlan, Outcome
from cluster.simulator.fleet.play import Played, play
from cluster.simulator.fleet.setup import Options, fleet_plan
from load_tests.fidelity_calibrate import Copy, Idle, Machine
from load_tests.fidelity_table import Seen, middle, seen
from router.latency import FittedLatency
from router.latency.transfers import MeasuredTransfer
from router.placement.placement import Disaggregation
from workers.models.architecture import ModelConfig

SEEDS = range(1, 6)  # of the noise: the prediction is the median
COUNTED, WARM_UP = "chat", "warm_up"  # classes of requests
PAUSE_S = 30.0  # between the warm-up and what counts


class Simulated:
    """`copies`: of this configuration, or where prompts need not be handed over of one before."""

    def __init__(
        self,
        config: ClusterConfig,
        mode: Disaggregation,
        model: ModelConfig,
        machine: Machine,
        idle: Idle,
        copies: Sequence[Copy],
    ) -> None:
        self._config, self._mode = config, mode
        self._model, self._machine = model, machine
        self._idle, self._copies = idle, copies
        latency = FittedLatency(model)
        machine.teach(latency, config.engine.step_tokens)
        self._slower = idle.slower(latency)

    def predict(self, warm_up: Sequence[Job], jobs: Sequence[Job]) -> Seen:
        """Of `jobs`, which come when the cluster has served the `warm_up`."""
        return middle([predicted(self._run(warm_up, jobs, seed)) for seed in SEEDS])

    def _run(self, warm_up: Sequence[Job], jobs: Sequence[Job], seed: int) -> Played:
        first_s = warm_up[-1].at_s + PAUSE_S
        coming = [replace(job, slo_class=WARM_UP) for job in warm_up]
        for job in jobs:
            coming.append(replace(job, at_s=first_s + job.at_s, slo_class=COUNTED))
        window_s = coming[-1].at_s
        return play(self._plan(seed), asks(coming, self._config.engine.block_size), window_s)

    def _plan(self, seed: int) -> FleetPlan:
        machine, idle = self._machine, self._idle
        options = Options(self._mode, machine.noise, seed)
        plan = fleet_plan(self._config, self._model, options)
        step_tokens = self._config.engine.step_tokens
        machine.teach(plan.truth, step_tokens, self._slower, idle.between_s)
        machine.teach(plan.believed, step_tokens, self._slower)
        sender = plan.replicas[0]
        for copy in self._copies:
            num_bytes = copy.tokens * sender.sizes.token_bytes
            measured = MeasuredTransfer(sender.name, num_bytes, copy.seconds, "simulated")
            for latency in (plan.truth, plan.believed):
                for replica in plan.replicas:
                    latency.observe_transfers(replica.name, [measured])
        return replace(plan, front_s=idle.front_s, contention=machine.contention)


def predicted(played: Played) -> Seen:
    failed = [o.error for o in played.outcomes if o.error]
    assert not failed, failed[:3]
    outcomes = [o for o in played.outcomes if o.slo_class == COUNTED]
    gaps = played.gaps[COUNTED]
    lasted = [_lasted(outcome) for outcome in outcomes]
    began = min(o.ask.at_s for o in outcomes)
    ended = max(o.ask.at_s + last for o, last in zip(outcomes, lasted, strict=True))
    tokens = sum(o.tokens for o in outcomes)
    itl = (gaps.quantile(0.5), gaps.quantile(0.9))
    return seen([o.ttft_s for o in outcomes], itl, tokens / (ended - began), lasted)


def _lasted(outcome: Outcome) -> float:
    return outcome.ttft_s + (outcome.itl_s or 0.0) * (outcome.tokens - 1)
