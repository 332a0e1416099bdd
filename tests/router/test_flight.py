"""What a request under way accepts of the tokens that workers send."""

from __future__ import annotations

import pytest

from router.explain.trail import Trail
from router.flight import BlockIds, Flight, RetryBudget
from router.placement.decision import NO_TARGETS
from router.worker_client import WorkerFailed
from workers.core.clock import SystemClock
from workers.core.request import Request, SampledToken, SamplingParams


@pytest.fixture
def flight() -> Flight:
    request = Request("r", (1, 2, 3), 3, SamplingParams())
    clock = SystemClock()
    budget = RetryBudget(clock, 3, 10.0, 10.0)
    trail = Trail(clock.now, clock.now())
    return Flight(request, budget, BlockIds(request), lambda: None, trail, NO_TARGETS)


def said(*positions: int) -> tuple[SampledToken, ...]:
    return tuple(SampledToken(100 + position, position) for position in positions)


def test_it_takes_what_is_due_and_drops_what_it_has(flight: Flight) -> None:
    assert flight.accept(said(3, 4)) == said(3, 4)
    assert flight.accept(said(3, 4)) == ()
    assert flight.accept(said(4, 5, 5, 6)) == said(5, 6)
    assert flight.accept(()) == ()
    assert flight.tokens == [1, 2, 3, 103, 104, 105, 106]


@pytest.mark.parametrize("positions", ((4,), (3, 5), (4, 3), (3, 5, 4, 6)))
def test_it_takes_nothing_where_one_is_skipped(flight: Flight, positions: tuple[int, ...]) -> None:
    with pytest.raises(WorkerFailed, match="was due"):
        flight.accept(said(*positions))
    assert flight.tokens == [1, 2, 3]
