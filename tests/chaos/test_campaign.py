"""Three hundred runs of the campaign; `make chaos` plays many more."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from tests.chaos.campaign import Campaign, run, tell
from tests.chaos.plan import Kind, draw
from tests.chaos.play import PRESSURE, play
from tests.chaos.report import table

RUNS = 300


@pytest.mark.timeout(600)
def test_no_fault_costs_a_token_a_page_or_a_ticket() -> None:
    campaign = Campaign()
    for campaign in run(range(RUNS), jobs=min(2, os.cpu_count() or 1)):
        assert not campaign.failed, tell(campaign.failed[0])
    assert campaign.tally.runs == RUNS
    assert set(campaign.tally.faults) == {*Kind, PRESSURE}
    assert campaign.tally.clean, table(campaign.tally, "virtual")
    assert campaign.preemptions > 0 and len(campaign.tally.recovered_s) > 50
    print(table(campaign.tally, "virtual"))


def test_a_seed_plays_the_same_again() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as elsewhere:
        for seed in range(3):
            there = elsewhere.apply(_ending, (seed,))
            assert there == _ending(seed)


def _ending(seed: int) -> tuple[float, dict[str, int]]:
    outcome = play(draw(seed))
    return outcome.ended_s, dict(outcome.seen)
