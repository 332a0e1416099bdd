"""The twin keeps the router's order, and hindsight pays for what it orders."""

from __future__ import annotations

import pytest

from cluster.planner.signals import PoolSpec
from cluster.simulator.scaling.hindsight import Foreseen, most
from cluster.simulator.scaling.line import PrefillLine
from cluster.simulator.scaling.load import Arrival, Shape, arrivals
from cluster.simulator.scaling.policy import Fixed, Sizes
from cluster.simulator.scaling.run import run
from cluster.simulator.scaling.sizes import Promise, Site
from router.latency import FittedLatency, HardwareClass
from workers.models.config import read_shape

SHAPE = Shape(8000, 100, 8000)


@pytest.fixture(scope="module")
def site() -> Site:
    latency = FittedLatency(read_shape("llama-8b"), HardwareClass("h100"))
    specs = {}
    for role in ("prefill", "decode"):
        latency.placed(role, HardwareClass("h100"), 2048)
        specs[role] = PoolSpec(role, role, role, 1, 8, kv_tokens=400_000)  # type: ignore[arg-type]
    return Site(specs, latency, Promise(2.0, 0.03), 20.0, 10.0)


def test_who_can_still_be_in_time_goes_before_who_is_late(site: Site) -> None:
    line = PrefillLine(site, 1, 0.0)
    line.join(Arrival(0.0, SHAPE))
    line.join(Arrival(9.5, SHAPE))
    begun = line.begin(10.0)
    assert begun is not None and begun[1].at_s == 9.5
    begun = line.begin(line.next_at(10.0))
    assert begun is not None and begun[1].at_s == 0.0
    assert not line.refused


def test_who_waited_too_long_is_refused(site: Site) -> None:
    line = PrefillLine(site, 1, 0.0)
    line.join(Arrival(0.0, SHAPE))
    assert line.begin(site.promise.max_wait_s + 1.0) is None
    assert [each.at_s for each in line.refused] == [0.0] and not len(line)


def test_more_than_can_be_computed_leaves_what_can_in_time(site: Site) -> None:
    """First come, first served would make everybody late after a minute."""
    work_s = site.latency.prefill_s("prefill", SHAPE.uncached, 0)
    rate = 1.5 / work_s
    outcome = run(
        site, Fixed(Sizes(1, 8)), arrivals(lambda now: rate, [SHAPE], 200.0), 200.0, Sizes(1, 8)
    )
    assert outcome.requests > 500
    assert 0.5 < outcome.attainment < 0.75


def test_no_prompt_is_computed_while_every_place_to_decode_is_taken(site: Site) -> None:
    """Answers so long that none ends: prompts wait in line, not with a first token."""
    long = Shape(8000, 100_000, 8000)
    outcome = run(
        site, Fixed(Sizes(4, 1)), arrivals(lambda now: 5.0, [long], 60.0), 60.0, Sizes(4, 1)
    )
    assert outcome.requests > 200
    places = site.batch(8000)
    assert outcome.refused > outcome.requests - 2 * places


def test_what_is_foreseen_is_ordered_a_cold_start_before_and_left_only_where_that_pays() -> None:
    needed = [(0.0, Sizes(1, 1)), (100.0, Sizes(2, 1)), (200.0, Sizes(1, 1)), (260.0, Sizes(2, 1))]
    brief = Foreseen(needed, cold_s=30.0, away_s=40.0)
    assert [brief.at(now).prefill for now in (69.0, 70.0, 199.0, 230.0, 300.0)] == [1, 2, 2, 2, 2]
    quick = Foreseen(needed, cold_s=10.0, away_s=10.0)
    assert [quick.at(now).prefill for now in (89.0, 90.0, 210.0, 250.0)] == [1, 2, 1, 2]


def test_nothing_exceeds_what_always_busy_replicas_would_do(site: Site) -> None:
    def coming():  # type: ignore[no-untyped-def]
        return arrivals(lambda now: 4.0, [SHAPE], 200.0)

    sizes = Sizes(2, 1)
    outcome = run(site, Fixed(sizes), coming(), 200.0, sizes)
    assert 0.2 * most(site, coming()) < outcome.goodput < most(site, coming())
