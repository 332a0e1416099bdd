"""A policy in the whole-cluster simulator: the twin says the same of it."""

from __future__ import annotations

import pytest

from cluster.config import ClusterConfig
from cluster.planner.options import Options as PlannerOptions
from cluster.planner.planner import Planner
from cluster.planner.signals import PoolSpec
from cluster.simulator.fleet.plan import FleetPlan
from cluster.simulator.fleet.setup import Options, fleet_plan, read_model
from cluster.simulator.scaling.fleet_loop import Scaling, run_fleet
from cluster.simulator.scaling.load import Arrival, Shape, arrivals
from cluster.simulator.scaling.policy import Fixed, Planned, Sizes
from cluster.simulator.scaling.run import run
from cluster.simulator.scaling.sizes import Promise, Site
from router.flow.classes import SloClass, SloConfig
from router.latency import FittedLatency, HardwareClass
from workers.models.config import read_shape

WINDOW_S, WARM_UP_S, COLD_S = 120.0, 20.0, 20.0
SLO = SloConfig(classes={"chat": SloClass(ttft=2.0, itl=0.03, max_wait=30.0)}, default="chat")


def site() -> Site:
    latency = FittedLatency(read_shape("llama-8b"), HardwareClass("h100"))
    specs = {}
    for role in ("prefill", "decode"):
        latency.placed(role, HardwareClass("h100"), 2048)
        specs[role] = PoolSpec(role, role, role, 1, 8, cold_start_s=COLD_S, kv_tokens=400_000)  # type: ignore[arg-type]
    return Site(specs, latency, Promise(2.0, 0.03), COLD_S, 10.0)


def fleet() -> FleetPlan:
    pools = [{"name": role, "role": role} for role in ("prefill", "decode")]
    engine = {"block_size": 64, "step_tokens": 2048, "max_seqs": 256, "kv_tokens": 400_000}
    config = ClusterConfig.model_validate(
        {
            "model": "llama-8b",
            "hardware": "h100",
            "engine": engine,
            "pools": pools,
            "slo": SLO.model_dump(),
            "router": {"disaggregation": "remote"},
        }
    )
    return fleet_plan(config, read_model("llama-8b"), Options())


def coming(rate: float) -> list[Arrival]:
    return list(arrivals(lambda now: rate, [Shape(2000, 100, 2000)], WINDOW_S))


def planned(there: Site) -> Planned:
    options = PlannerOptions(season_s=None)
    return Planned(Planner(list(there.pools.values()), SLO, there.latency, options), "chat")


def test_the_planner_does_the_same_in_the_twin_and_request_by_request() -> None:
    there, first = site(), Sizes(3, 3)
    twin = run(there, planned(there), coming(4.0), WINDOW_S, first, warm_up_s=WARM_UP_S)
    scaling = Scaling(WINDOW_S, first, COLD_S, warm_up_s=WARM_UP_S)
    real = run_fleet(fleet(), planned(site()), coming(4.0), scaling)
    assert real.requests == twin.requests > 300
    assert real.attainment == pytest.approx(twin.attainment, abs=0.02)
    assert real.replica_hours == pytest.approx(twin.replica_hours, rel=0.1)
    assert real.sizes[-1][1] == twin.sizes[-1][1] != first  # it began too large


def test_fixed_replicas_are_paid_for_the_window_alone_and_nobody_is_lost() -> None:
    sizes = Sizes(1, 2)
    scaling = Scaling(WINDOW_S, sizes, COLD_S, warm_up_s=WARM_UP_S)
    real = run_fleet(fleet(), Fixed(sizes), coming(1.0), scaling)
    assert real.replica_hours == pytest.approx(3 * (WINDOW_S - WARM_UP_S) / 3600)
    assert real.actions == 0
    assert real.requests == sum(each.at_s >= WARM_UP_S for each in coming(1.0))
