"""What the planner does over time: it foresees, waits for what is coming, and does not swing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from cluster.planner.forecast import Forecast
from cluster.planner.history import History
from cluster.planner.hysteresis import Settled
from cluster.planner.needs import Servers
from cluster.planner.signals import PoolState
from tests.cluster.planner_scene import noisy, planner, pool, reached, signals, state, steady


@pytest.mark.parametrize("rate", [2.0, 7.3, 11.0, 25.0])
def test_nothing_swings_under_constant_noisy_load(rate: float) -> None:
    """A start and a stop of the same pool in half an hour would be a swing."""
    plans = noisy(planner(), lambda now: rate, 300)[120:]
    for name in ("prefill", "decode"):
        sizes = [plan.pool(name).replicas for plan in plans]
        ways = [b - a for a, b in itertools.pairwise(sizes) if a != b]
        assert len(ways) <= 2, ways


def test_replicas_that_are_coming_are_not_started_twice() -> None:
    planned = planner()
    first = planned.plan(signals(200), state(1, 1), 0.0)
    started = first.pool("decode").start
    assert started > 1
    coming = {
        name: PoolState(1, starting=(10.0,) * first.pool(name).start)
        for name in ("prefill", "decode")
    }
    again = planned.plan(signals(200), coming, 10.0)
    assert again.pool("decode").start == again.pool("prefill").start == 0


def test_a_stop_waits_until_the_lower_load_has_settled() -> None:
    planned = planner()
    high = steady(planned, 20.0, 150)
    there = reached(high)
    first_stop = None
    for place in range(150, 230):
        plan = planned.plan(signals(20), there, place * 10.0)
        if plan.actions and first_stop is None:
            first_stop = place * 10.0 - 1500.0
        there = reached(plan)
    assert first_stop is not None and first_stop >= planned.options.settle_s
    assert plan.pool("decode").replicas < high.pool("decode").replicas


def test_a_flip_is_preferred_to_a_start_and_a_stop() -> None:
    pools = (pool("prefill", 1, 1), pool("decode", 1, 1), pool("flex", 4, 6))
    told = signals(250, prompt=200, output=600)
    now = {
        "prefill": PoolState(1),
        "decode": PoolState(1),
        "flex": PoolState(4, as_prefill=4),
    }
    plan = planner(*pools).plan(told, now, 0.0)
    flex = plan.pool("flex")
    assert flex.flip < 0
    assert (flex.start, flex.stop) == (0, 0)


def test_pools_go_to_zero_and_come_back_where_they_may() -> None:
    planned = planner(pool("prefill", 0), pool("decode", 0))
    there = reached(steady(planned, 3.0, 20))
    for place in range(20, 120):
        plan = planned.plan(signals(0), there, place * 10.0)
        there = reached(plan)
    assert plan.pool("prefill").replicas == plan.pool("decode").replicas == 0
    back = planned.plan(signals(1), there, 1200.0)
    assert back.pool("prefill").start >= 1 and back.pool("decode").start >= 1
    for place in range(121, 181):  # it waits for a replica to come, and nobody else asks
        plan = planned.plan(replace(signals(0), in_flight=1), reached(back), place * 10.0)
        assert (plan.pool("prefill").replicas, plan.pool("decode").replicas) == (1, 1)
    plan = planned.plan(signals(0), reached(back), 2400.0)
    assert plan.pool("prefill").replicas == plan.pool("decode").replicas == 0


def test_a_pool_that_may_not_go_to_zero_keeps_its_least() -> None:
    planned = planner(pool("prefill", 2), pool("decode", 1))
    there = state(4, 4)
    for place in range(120):
        plan = planned.plan(signals(0), there, place * 10.0)
        there = reached(plan)
    assert (plan.pool("prefill").replicas, plan.pool("decode").replicas) == (2, 1)


def test_a_queue_is_worked_off_with_more_than_the_load_needs() -> None:
    calm = planner().plan(signals(100), state(3, 3), 0.0)
    full = planner().plan(signals(100, queued=300), state(3, 3), 0.0)
    assert sum(full.needed) > sum(calm.needed)


def test_refused_requests_count_as_load() -> None:
    """All that came, whatever became of it: nothing ends, and the need is the same."""
    planned = planner()
    for place in range(10):
        plan = planned.plan(signals(300, queued=0), state(1, 1), place * 10.0)
    assert plan.inputs.offered == pytest.approx(30.0, rel=0.05)


def test_the_cold_start_is_learned() -> None:
    planned = planner(pool("prefill"), pool("decode", cold_start_s=60.0))
    told = {"prefill": PoolState(1), "decode": PoolState(1, took_s=(250.0, 240.0, 260.0))}
    plan = planned.plan(signals(10), told, 0.0)
    assert plan.inputs.roles["decode"].horizon_s >= 250.0
    assert plan.inputs.roles["prefill"].horizon_s < 100.0


def test_a_start_that_takes_longer_than_any_before_moves_the_horizon() -> None:
    told = {"prefill": PoolState(1), "decode": PoolState(1, starting=(400.0,))}
    plan = planner().plan(signals(10), told, 0.0)
    assert plan.inputs.roles["decode"].horizon_s >= 400.0


def test_a_cycle_is_found_and_its_rise_is_foreseen() -> None:
    forecast = Forecast(None)

    def rate(now: float) -> float:
        return 12.0 - 10.0 * math.cos(2 * math.pi * now / 900.0)

    errors = {}
    for place in range(400):
        now = place * 10.0
        forecast.note(rate(now), now)
        ahead = forecast.ahead(200.0, 0.0)
        errors[now] = abs(ahead.rate - rate(now + 200.0))
    assert forecast.cycle_s == pytest.approx(900.0, abs=20.0)
    late = [error for now, error in errors.items() if now > 3000.0]
    assert sum(late) / len(late) < 1.5


@pytest.mark.parametrize("period_s", [600.0, 900.0, 1230.0])
def test_the_period_of_a_noisy_cycle_is_found_within_two_parts_in_a_hundred(
    period_s: float,
) -> None:
    """Not a multiple of it, either."""
    rng, history = np.random.default_rng(1), History(10.0, 1080)
    for place in range(540):
        now = place * 10.0 + 5.0
        rate = 12.5 - 11.5 * math.cos(2 * math.pi * now / period_s)
        history.add(rng.poisson(rate * 10.0) / 10.0, now)
    assert history.cycle_s() == pytest.approx(period_s, rel=0.02)


def test_a_cycle_that_repeats_is_sure_and_noise_is_not() -> None:
    rng, cycle, noise = np.random.default_rng(1), Forecast(None), Forecast(None)
    for place in range(360):
        now = place * 10.0
        rate = 12.5 - 11.5 * math.cos(2 * math.pi * now / 900.0)
        cycle.note(rng.poisson(rate * 10.0) / 10.0, now)
        noise.note(rng.poisson(125.0) / 10.0, now)
        foreseen, unknown = cycle.ahead(200.0, 70.0), noise.ahead(200.0, 70.0)
        assert not unknown.sure
    assert foreseen.sure and foreseen.way == "cycle"


def test_what_was_started_is_not_stopped_again_for_noise() -> None:
    settled, one, two = Settled(60.0), Servers(1, 1), Servers(1, 2)
    assert settled.size(two, two, one, 0.0, 10.0) == two
    asked = [settled.size(one, one, two, now, 9.8) for now in (10.0, 120.0, 500.0)]
    assert asked == [two] * 3
    assert settled.size(one, one, two, 700.0, 9.8) == one


def test_what_was_started_is_stopped_when_the_load_is_gone() -> None:
    settled, one, two = Settled(60.0), Servers(1, 1), Servers(1, 2)
    settled.size(two, two, one, 0.0, 10.0)
    assert settled.size(one, one, two, 120.0, 7.0) == one


def test_a_learnt_day_is_foreseen_from_the_first_minute() -> None:
    def rate(now: float) -> float:
        return 20.0 + 15.0 * math.sin(2 * math.pi * now / 86_400.0)

    forecast = Forecast(86_400.0)
    forecast.learn((now, rate(now)) for now in range(0, 86_400, 300))
    forecast.note(rate(86_400.0), 86_400.0)
    ahead = forecast.ahead(3600.0, 0.0)
    assert ahead.way == "season"
    assert ahead.rate == pytest.approx(rate(90_000.0), rel=0.05)


def test_a_forecast_that_is_off_knows_only_the_level() -> None:
    forecast = Forecast(86_400.0, enabled=False)
    for place in range(300):
        forecast.note(5.0 + place * 0.1, place * 10.0)
        ahead = forecast.ahead(60.0, 0.0)
    assert ahead.way == "level" and ahead.rate == forecast.level
