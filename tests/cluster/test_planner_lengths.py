"""What the planner makes of lengths that it half knows, and of errors that are only noise."""

from __future__ import annotations

import random

import pytest

from cluster.planner.forecast import DRIFT, Forecast
from cluster.planner.lengths import Lengths
from cluster.planner.mix import Recent
from cluster.planner.signals import ClassSignals, PoolState, Signals
from tests.cluster.planner_scene import INTERVAL_S, planner, signals


def ended(prompt: int, output: int, count: int) -> ClassSignals:
    return ClassSignals(
        "chat",
        count,
        0,
        Lengths.of([prompt] * count),
        Lengths.of([prompt] * count),
        Lengths.of([output] * count),
        float(prompt * output * count),
    )


def test_a_decode_replica_holds_the_prompts_of_long_answers() -> None:
    """Half of the requests: long prompt, one token; the others: short prompt, long answer."""
    told = ClassSignals(
        "chat",
        100,
        0,
        Lengths.of([10_000] * 50 + [100] * 50),
        Lengths.of([10_000] * 50 + [100] * 50),
        Lengths.of([1] * 50 + [1000] * 50),
        held=50.0 * (10_000 * 1 + 100 * 1000),
    )
    recent = Recent()
    recent.note(Signals(INTERVAL_S, (told,)), 0.0)
    (of_class,) = recent.mix.classes
    exact = 50 * (1 * (10_000 + 0.5) + 1000 * (100 + 500)) / 100
    assert of_class.token_steps == pytest.approx(exact, rel=0.01)


def test_answers_are_as_long_as_all_that_was_made_says_not_only_as_those_that_ended() -> None:
    """Lengths are exponential with a mean of 1000, a token a step of 20 ms; after 30 s mostly
    short ones have ended."""
    rng = random.Random(1)
    lengths = [rng.expovariate(1 / 1000) for _ in range(4000)]
    began = [30.0 * place / 4000 for place in range(4000)]
    made = [min(length, (30.0 - at) / 0.02) for length, at in zip(lengths, began, strict=True)]
    over = [round(length) for length, m in zip(lengths, made, strict=True) if m == length]
    under_way = sum(m for length, m in zip(lengths, made, strict=True) if m < length)
    told = ClassSignals("chat", 4000, outputs=Lengths.of(over))
    recent = Recent()
    recent.note(Signals(30.0, (told,), 4000 - len(over), round(under_way)), 0.0)
    (of_class,) = recent.mix.classes
    assert sum(over) / len(over) < 600
    assert of_class.outputs.mean == pytest.approx(1000, rel=0.1)


def test_when_as_many_end_as_come_answers_are_as_long_as_those_that_ended() -> None:
    recent = Recent()
    for _ in range(200):
        recent.note(Signals(INTERVAL_S, (ended(1000, 300, 20),), 40, 6000), 2.0)
    assert recent.mix.classes[0].outputs.mean == pytest.approx(300, rel=0.02)


def test_nothing_that_decodes_is_given_back_before_answers_tell_how_long_they_are() -> None:
    plans = planner()
    there = {"prefill": PoolState(up=1), "decode": PoolState(up=12)}
    few = signals(40)
    for step in range(1, 20):  # most are still under way: what ended were the short ones
        told = Signals(INTERVAL_S, (few.classes[0],), 40 * step, 0)
        plan = plans.plan(told, there, step * INTERVAL_S)
        assert plan.pool("decode").stop == 0
    for step in range(20, 80):
        plan = plans.plan(Signals(INTERVAL_S, few.classes, 40), there, step * INTERVAL_S)
    assert plan.pool("decode").stop > 0


@pytest.mark.parametrize("rate", [3.0, 30.0])
def test_noise_is_no_reason_for_a_margin_but_drift_is(rate: float) -> None:
    """Poisson counts leave a margin of hardly more than what real loads drift by."""
    rng = random.Random(7)
    forecast, margins = Forecast(None), []
    for step in range(360):
        count = sum(rng.random() < rate / 100 for _ in range(1000))
        forecast.note(count / INTERVAL_S, step * INTERVAL_S)
        ahead = forecast.ahead(70.0, 70.0)
        if step > 120:
            margins.append(ahead.margin / ahead.rate)
    mean = sum(margins) / len(margins)
    assert 0.99 < mean / (DRIFT * 70.0) < 3.0
