"""Why nothing would do, and what comes nearest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from cluster.planner.decode_model import MARGIN as ITL_MARGIN
from cluster.planner.prefill_model import MARGIN as TTFT_MARGIN
from cluster.sizing.engines import Engine
from cluster.sizing.load import Load
from cluster.sizing.question import Question
from cluster.sizing.screen import Screen
from router.latency import LatencyModel
from workers.core.errors import ConfigError

UP = 1.02  # so that what is proposed is kept when it is asked for


def check_reach(question: Question, load: Load, latency: LatencyModel, screen: Screen) -> None:
    """Raises ConfigError unless something that was screened holds the load."""
    if screen.apart() or screen.together():
        return
    engines = screen.engines
    ttft_s, quick = best_ttft(question, load, latency, engines)
    itl_s, smooth = best_itl(latency, screen, engines)
    faults = []
    if question.slo.ttft is not None and ttft_s > question.slo.ttft * (1 - TTFT_MARGIN):
        faults.append(
            f"ttft={_time(question.slo.ttft)} is out of reach: {question.goal:.0%} of the prompts "
            f"take up to {_time(ttft_s)} on an idle {quick.name}, the fastest for them"
        )
    if question.slo.itl is not None and itl_s > question.slo.itl * (1 - ITL_MARGIN):
        faults.append(
            f"itl={_time(question.slo.itl)} is out of reach: one sequence alone takes "
            f"{_time(itl_s)} a token on {smooth.name}, the fastest for it"
        )
    if faults:
        raise ConfigError(
            "; ".join(faults) + f". Nearest: --slo {_nearest(question, ttft_s, itl_s)}"
        )
    if question.gpus is None:
        raise ConfigError(
            f"{load.rate:.2f} requests a second take more than the largest pools that are tried; "
            "ask for a part of the load with --rate"
        )
    part, holds = screen.best_part()
    free = Screen(replace(question, gpus=None), load, latency, engines)
    enough = min(
        (each.candidate for each in (*free.apart(), *free.together())),
        key=lambda each: each.gpus,
        default=None,
    )
    said = f"no plan within --gpus {question.gpus} holds {load.rate:.2f} requests a second"
    if enough is not None:
        said += f"; {enough.gpus} GPUs would ({enough})"
    if holds is not None and part:
        said += (
            f", and {question.gpus} hold about {part * load.rate:.2f} a second ({holds.candidate})"
        )
    raise ConfigError(said)


def best_ttft(
    question: Question, load: Load, latency: LatencyModel, engines: Sequence[Engine]
) -> tuple[float, Engine]:
    """What the goal's part of the prompts need on an idle replica of the fastest engine."""
    of_class = load.mix.classes[0]
    prompt = of_class.uncached.quantile(question.goal)

    def seconds(engine: Engine) -> float:
        return latency.prefill_s(engine.name, round(prompt), round(of_class.cached))

    best = min(engines, key=seconds)
    return seconds(best), best


def best_itl(
    latency: LatencyModel, screen: Screen, engines: Sequence[Engine]
) -> tuple[float, Engine]:
    """Of one sequence alone."""

    def seconds(engine: Engine) -> float:
        return latency.decode_s(engine.name, 1, math.ceil(screen.decode[engine.name].context))

    best = min(engines, key=seconds)
    return seconds(best), best


def _nearest(question: Question, ttft_s: float, itl_s: float) -> str:
    """Targets that an idle replica keeps with the margins that sizes are made with."""
    parts = []
    if question.slo.ttft is not None:
        least = ttft_s / (1 - TTFT_MARGIN) * UP
        parts.append(f"ttft={_time(max(question.slo.ttft, least))}")
    if question.slo.itl is not None:
        parts.append(f"itl={_time(max(question.slo.itl, itl_s / (1 - ITL_MARGIN) * UP))}")
    return ",".join(parts)


def _time(seconds: float) -> str:
    """As --slo takes it, not rounded down."""
    if seconds >= 1.0:
        return f"{math.ceil(seconds * 100) / 100:g}s"
    return f"{math.ceil(seconds * 10_000) / 10:g}ms"
