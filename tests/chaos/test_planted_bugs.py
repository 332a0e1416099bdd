"""The campaign can fail: each of these bugs, planted, is seen within a bounded number of seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from router.flight import Flight
from tests.chaos.campaign import one
from workers.core.request import Request, Sequence
from workers.core.scheduler import Scheduler
from workers.core.ticket import Ticket
from workers.transfer import port
from workers.transfer.exchange import Exchange
from workers.transfer.fetch import Fetch

SEEDS = 150
Plant = Callable[[pytest.MonkeyPatch], None]


def free_before_the_sender_stopped(patch: pytest.MonkeyPatch) -> None:
    """Pages of a ticket whose fetch is being stopped go at once, while they are still read."""

    def quiet_at_once(self: Fetch) -> None:
        self.stopping.set()
        self.quiet.set()

    patch.setattr(Fetch, "stop", quiet_at_once)


def no_epoch_check(patch: pytest.MonkeyPatch) -> None:
    """Whoever comes with a ticket gets it, however late."""
    patch.setattr(Ticket, "check_epoch", lambda self, epoch: None)


def ack_lost(patch: pytest.MonkeyPatch) -> None:
    """The sender never hears that everything was received."""
    patch.setattr(Ticket, "received", lambda self, epoch, now: None)


def a_copy_is_left_when_its_request_is(patch: pytest.MonkeyPatch) -> None:
    """Somebody else gets the pages while a thread still writes them."""

    @contextmanager
    def unguarded(self: Exchange) -> Iterator[None]:
        yield

    patch.setattr(Exchange, "_section", unguarded)


def blocks_are_found_before_they_are_here(patch: pytest.MonkeyPatch) -> None:
    """Reserved pages stand in the hash table although nothing has come."""
    reserve = Scheduler.reserve

    def too_early(self: Scheduler, seq: Sequence) -> bool:
        done = reserve(self, seq)
        if done:
            computed, seq.num_computed = seq.num_computed, len(seq.tokens) - 1
            self._pages.commit(seq)
            seq.num_computed = computed
        return done

    patch.setattr(Scheduler, "reserve", too_early)


def pages_go_while_a_step_writes_them(patch: pytest.MonkeyPatch) -> None:
    """An aborted sequence gives its pages back in the middle of a step."""

    def at_once(self: Scheduler, seq: Sequence) -> None:
        steps, seq.steps_under_way = seq.steps_under_way, 0
        RETIRE(self, seq)
        seq.steps_under_way = steps

    patch.setattr(Scheduler, "_retire", at_once)


def checksums_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    check = port.scatter_checked

    def unchecked(pages: Any, staging: Any, blocks: Any, crcs: Any, heads: Any = None) -> list[int]:
        return check(pages, staging, blocks, (), heads)

    patch.setattr(port, "scatter_checked", unchecked)


def the_seed_is_lost_on_the_way(patch: pytest.MonkeyPatch) -> None:
    """A request that goes on elsewhere is sampled with another seed."""
    plain_request = Flight.next_request

    def reseeded(self: Flight) -> Request:
        request = plain_request(self)
        if request.params.seed is None or len(request.token_ids) == request.prompt_len:
            return request
        return replace(request, params=replace(request.params, seed=1))

    patch.setattr(Flight, "next_request", reseeded)


RETIRE = Scheduler._retire


@pytest.mark.parametrize(
    "plant",
    [
        free_before_the_sender_stopped,
        no_epoch_check,
        ack_lost,
        a_copy_is_left_when_its_request_is,
        blocks_are_found_before_they_are_here,
        pages_go_while_a_step_writes_them,
        checksums_are_not_looked_at,
        the_seed_is_lost_on_the_way,
    ],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_bug_is_caught(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    caught = next((seed for seed in range(SEEDS) if one(seed).problems), None)
    assert caught is not None, f"{SEEDS} runs did not see it"
