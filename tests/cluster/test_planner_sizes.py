"""What the planner asks for: enough, no more than that, and within bounds and budget."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.planner.lengths import Lengths
from cluster.planner.options import Options
from cluster.planner.queueing import Wait, erlang_c, halfin_whitt
from cluster.planner.search import Pools
from cluster.planner.signals import PoolState
from router.flow.classes import SloClass, SloConfig
from tests.cluster.planner_scene import planner, pool, signals, state, steady
from workers.core.errors import ConfigError

rates = st.floats(0.2, 40.0)


def total(plan) -> int:  # type: ignore[no-untyped-def]
    return sum(each.replicas for each in plan.pools)


@settings(max_examples=15)
@given(rates, st.floats(1.0, 3.0), st.integers(200, 16_000), st.integers(10, 2000))
def test_more_load_never_takes_fewer_replicas(
    rate: float, times: float, prompt: int, output: int
) -> None:
    less = steady(planner(), rate, 2, prompt=prompt, output=output)
    more = steady(planner(), rate * times, 2, prompt=prompt, output=output)
    assert sum(more.needed) >= sum(less.needed)


@settings(max_examples=25)
@given(
    rates,
    st.integers(0, 3),
    st.integers(3, 8),
    st.integers(0, 2),
    st.integers(2, 30),
    st.integers(6, 30),
    st.integers(0, 300),
)
def test_bounds_and_budget_are_kept(
    rate: float, least: int, most: int, flexes: int, there: int, budget: int, queued: int
) -> None:
    pools = (pool("prefill", least, most), pool("decode", 1, most), pool("flex", 0, flexes))
    planned = planner(*pools, budget=float(budget))
    now = state(there, there)
    for place in range(5):
        plan = planned.plan(signals(round(rate * 10), queued=queued), now, place * 10.0)
        for spec in pools:
            asked = plan.pool(spec.name)
            assert spec.least <= asked.replicas <= spec.most
            assert 0 <= asked.as_prefill <= asked.replicas
        assert total(plan) <= budget
        started = sum(each.start for each in plan.pools)
        assert not started or started + 2 * there <= budget  # stops have not left yet


def test_it_is_never_sized_to_full_utilisation() -> None:
    plan = steady(planner(), 10.0)
    busy = plan.inputs.prefill_s * 10.0
    assert plan.needed.prefill > busy
    assert plan.prediction.prefill_busy < 0.95 and plan.prediction.decode_busy < 0.95
    assert plan.prediction.attainment >= plan.goal


def test_a_tail_of_long_prompts_takes_more_than_their_mean_says() -> None:
    from cluster.planner.signals import ClassSignals, Signals

    def need(lengths: list[int]) -> int:
        told = ClassSignals(
            "chat", 100, 0, Lengths.of(lengths), Lengths.of(lengths), Lengths.of([50])
        )
        return planner().plan(Signals(10.0, (told,)), {}, 0.0).needed.prefill

    assert need([1000] * 90 + [30_000] * 10) > need([3900] * 100)


def test_bursts_take_more_than_the_same_load_in_order() -> None:
    calm = Wait(3, 10.0, 0.2, 1.0, 1.0)
    bursty = Wait(3, 10.0, 0.2, 10.0, 1.0)
    assert bursty.beyond(1.0) > 3 * calm.beyond(1.0)


@given(st.integers(1, 60), st.floats(0.05, 0.99))
def test_waiting_falls_with_servers_and_many_servers_are_a_limit(count: int, busy: float) -> None:
    load = busy * count
    assert erlang_c(count + 1, load) <= erlang_c(count, load) <= 1.0
    assert math.isclose(erlang_c(1, busy), busy, rel_tol=1e-9)
    assert abs(halfin_whitt(400, busy * 400) - erlang_c(400, busy * 400)) < 0.02


def test_what_is_cached_is_not_planned_for() -> None:
    cold = steady(planner(), 10.0, prompt=12_000)
    warm = steady(planner(), 10.0, prompt=12_000, cached=11_000)
    assert warm.needed.prefill < cold.needed.prefill
    assert warm.needed.decode == cold.needed.decode  # its KV is held all the same


def test_an_itl_target_no_replica_keeps_is_said_and_sized_by_memory() -> None:
    slo = SloConfig(classes={"chat": SloClass(ttft=2.0, itl=0.001)}, default="chat")
    plan = steady(planner(slo=slo), 5.0)
    assert not plan.feasible
    assert plan.prediction.attainment == 0.0
    assert any("ITL target is too tight" in reason for reason in plan.reasons)
    assert total(plan) < 40


def test_a_ttft_target_no_replica_keeps_is_said() -> None:
    slo = SloConfig(classes={"chat": SloClass(ttft=0.05, itl=0.03)}, default="chat")
    plan = steady(planner(slo=slo), 5.0)
    assert not plan.feasible
    assert any("TTFT target is too tight" in reason for reason in plan.reasons)
    assert total(plan) < 40


def test_what_the_bounds_cannot_carry_is_said_and_the_best_of_them_is_asked_for() -> None:
    plan = steady(planner(pool("prefill", 1, 2), pool("decode", 1, 50)), 60.0)
    assert not plan.feasible
    assert plan.pool("prefill").replicas == 2
    assert any("more than 2 prefill" in reason for reason in plan.reasons)


def test_a_budget_is_split_so_that_both_roles_are_equally_short() -> None:
    free = steady(planner(), 30.0)
    plan = steady(planner(budget=math.floor(sum(free.needed) * 0.6)), 30.0)
    assert not plan.feasible
    assert plan.pool("prefill").replicas >= 2
    busy = plan.prediction.prefill_busy, plan.prediction.decode_busy
    assert max(busy) < 2.2 * min(busy)


def test_a_pool_without_measured_steps_is_planned_by_its_data_sheet_and_does_not_block() -> None:
    fitted = planner().plan(signals(100), state(2, 2), 0.0)
    told = {"prefill": PoolState(2), "decode": PoolState(2, fitted=False)}
    plan = planner().plan(signals(100), told, 0.0)
    assert plan.needed.decode > fitted.needed.decode
    assert plan.needed.prefill == fitted.needed.prefill
    assert any("no step of decode was measured" in reason for reason in plan.reasons)


def test_rejected_choices_say_why() -> None:
    plan = steady(planner(), 10.0)
    assert len(plan.rejected) >= 2
    assert any("in time" in why for _, why in plan.rejected)
    assert plan.as_json()["rejected"][0]["why"]


@pytest.mark.parametrize(
    ("pools", "said"),
    [
        ((pool("prefill"),), "no pool may decode"),
        ((pool("prefill"), pool("decode", 3, 2)), "at least 3 and at most 2"),
        ((pool("prefill", 4), pool("decode", 4)), "the budget is 6"),
        ((pool("prefill"), pool("prefill")), "two prefill pools"),
    ],
)
def test_contradictions_are_said(pools: tuple, said: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError, match=said):
        Pools(pools, Options(budget=6.0))
