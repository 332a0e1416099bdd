from __future__ import annotations

import torch

from tests.ranks import run_ranks
from workers.bench.traffic import Traffic
from workers.parallel.group import SINGLE, Ranks


class Ticks:
    """A clock that moves on by a second whenever it is read."""

    def __init__(self) -> None:
        self._time = 0.0

    def now(self) -> float:
        self._time += 1.0
        return self._time


def test_every_collective_is_measured_and_stays_what_it_was() -> None:
    def work(plain: Ranks) -> None:
        traffic = Traffic(Ticks())
        group, rank = traffic.of(plain).world, plain.world.rank
        assert (group.rank, group.size) == (rank, 2)
        x = torch.full((2, 3), float(rank))
        assert torch.equal(group.all_reduce(x.clone()), torch.ones(2, 3))
        assert torch.equal(
            group.all_gather(x), torch.tensor([0.0, 1.0]).repeat_interleave(2)[:, None].expand(4, 3)
        )
        assert (group.gather(x) is None) == (rank == 1)
        assert torch.equal(group.broadcast(x.clone()), torch.zeros(2, 3))
        assert torch.equal(group.all_to_all(x, [1, 1], [1, 1])[:, 0], torch.tensor([0.0, 1.0]))
        assert traffic.seconds == 5.0
        assert traffic.bytes == 5 * x.nbytes

    run_ranks(2, work)


def test_who_is_alone_moves_nothing() -> None:
    traffic = Traffic(Ticks())
    traffic.of(SINGLE).tensor.all_reduce(torch.ones(3))
    assert (traffic.seconds, traffic.bytes) == (0.0, 0)
