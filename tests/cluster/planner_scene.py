"""A model, an SLO and pools to plan for, and signals as they would be measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cluster.planner.lengths import Lengths
from cluster.planner.options import Options
from cluster.planner.plan import Plan
from cluster.planner.planner import Planner
from cluster.planner.signals import ClassSignals, PoolSpec, PoolState, Signals, State
from router.flow.classes import SloClass, SloConfig
from router.latency import FittedLatency, HardwareClass
from workers.models.config import read_shape

INTERVAL_S = 10.0
CHAT = SloConfig(classes={"chat": SloClass(ttft=2.0, itl=0.03)}, default="chat")


def latency() -> FittedLatency:
    """llama-8b on H100s; replicas `p`, `d` and `f`."""
    model = FittedLatency(read_shape("llama-8b"), HardwareClass("h100"))
    for name in "pdf":
        model.placed(name, HardwareClass("h100"), 2048)
    return model


def pool(name: str, least: int = 1, most: int = 100, cold_start_s: float = 60.0) -> PoolSpec:
    return PoolSpec(
        name,
        name,  # type: ignore[arg-type]
        name[0],
        least,
        most,
        cold_start_s=cold_start_s,
        kv_tokens=400_000,
    )


def planner(*pools: PoolSpec, slo: SloConfig = CHAT, **options: object) -> Planner:
    given = {"season_s": None} | options
    specs = pools or (pool("prefill"), pool("decode"))
    return Planner(specs, slo, latency(), Options(**given))  # type: ignore[arg-type]


def signals(
    arrivals: int, *, prompt: int = 4000, output: int = 300, queued: int = 0, cached: int = 0
) -> Signals:
    of_class = ClassSignals(
        "chat",
        arrivals,
        queued,
        Lengths.of([prompt] * max(1, arrivals)),
        Lengths.of([prompt - cached] * max(1, arrivals)),
        Lengths.of([output] * max(1, arrivals)),
    )
    return Signals(INTERVAL_S, (of_class,))


def state(prefill: int, decode: int) -> dict[str, PoolState]:
    return {"prefill": PoolState(prefill), "decode": PoolState(decode)}


def reached(plan: Plan) -> dict[str, PoolState]:
    """As if every start were over at once."""
    return {each.name: PoolState(each.replicas, as_prefill=each.as_prefill) for each in plan.pools}


def steady(
    planned: Planner, rate: float, intervals: int = 40, now: State | None = None, **lengths: int
) -> Plan:
    """The plan after so many intervals of exactly that load."""
    there = now or {}
    for place in range(intervals):
        told = signals(round(rate * INTERVAL_S), **lengths)
        plan = planned.plan(told, there, place * INTERVAL_S)
        there = reached(plan)
    return plan


def noisy(
    planned: Planner, rate: Callable[[float], float], intervals: int, seed: int = 1
) -> list[Plan]:
    """Poisson arrivals; starts are over at once."""
    rng = np.random.default_rng(seed)
    there: State = state(1, 1)
    plans = []
    for place in range(intervals):
        now = place * INTERVAL_S
        plans.append(planned.plan(signals(int(rng.poisson(rate(now) * INTERVAL_S))), there, now))
        there = reached(plans[-1])
    return plans
