"""Groups over Gloo, as threads of one process; and which ranks form which group."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch
import torch.distributed as dist

from workers.core.errors import ConfigError, Unavailable
from workers.parallel.group import Alone, Group, Ranks
from workers.parallel.layout import Layout
from workers.parallel.torch_group import Rendezvous

T = TypeVar("T")
CPU = torch.device("cpu")
HOST = "127.0.0.1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def on_ranks(layout: Layout, work: Callable[[Ranks], T], deadline_s: float = 20.0) -> list[T]:
    store = dist.HashStore()

    def run(rank: int) -> T:
        return work(Rendezvous(store, HOST, rank).ranks(layout, CPU, deadline_s))

    with ThreadPoolExecutor(layout.world) as pool:
        return [each.result() for each in [pool.submit(run, r) for r in range(layout.world)]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_collectives_do_what_the_seam_says(size: int, dtype: torch.dtype) -> None:
    def rows(rank: int, count: int) -> torch.Tensor:
        return torch.arange(count * 3, dtype=dtype).view(count, 3) + 16 * rank

    def work(ranks: Ranks) -> None:
        group, rank = ranks.world, ranks.world.rank
        everybody = [rows(r, 4) for r in range(size)]
        assert torch.equal(group.all_reduce(rows(rank, 4)), torch.stack(everybody).sum(0))
        assert torch.equal(group.all_gather(rows(rank, 4)), torch.cat(everybody))
        gathered = group.gather(rows(rank, 4))
        assert (gathered is None) == (rank > 0)
        assert gathered is None or torch.equal(gathered, torch.cat(everybody))
        assert torch.equal(group.broadcast(rows(rank, 4)), rows(0, 4))
        # Rank r gives s rows to rank s, so some are given none.
        sent, received = list(range(size)), [rank] * size
        mine = group.all_to_all(rows(rank, sum(sent)), sent, received)
        first = sum(range(rank))
        expected = [rows(r, sum(sent))[first : first + rank] for r in range(size)]
        assert torch.equal(mine, torch.cat(expected))

    on_ranks(Layout(size, 1), work)


def test_what_is_not_contiguous_is_taken_too() -> None:
    def work(ranks: Ranks) -> torch.Tensor:
        x = torch.arange(6.0).view(2, 3).T + ranks.world.rank
        return ranks.world.all_reduce(x)

    for total in on_ranks(Layout(2, 1), work):
        assert torch.equal(total, 2 * torch.arange(6.0).view(2, 3).T + 1)


def test_half_precision_sums_are_rounded_once_a_rank() -> None:
    """1000 of 1/1000 differ visibly from their fp32 sum if a sum were kept in too few bits."""

    def work(ranks: Ranks) -> torch.Tensor:
        values = torch.randn(1000, generator=torch.Generator().manual_seed(ranks.world.rank))
        return ranks.world.all_reduce(values.bfloat16())

    one, other = on_ranks(Layout(2, 1), work)
    parts = [torch.randn(1000, generator=torch.Generator().manual_seed(r)) for r in range(2)]
    exact = sum(part.bfloat16().float() for part in parts)
    assert torch.equal(one, other)
    assert torch.equal(one, torch.as_tensor(exact).bfloat16())


@pytest.mark.parametrize(("tensor", "experts"), [(1, 4), (2, 4), (4, 2), (4, 4), (4, 1), (2, 2)])
def test_groups_follow_the_layout(tensor: int, experts: int) -> None:
    layout = Layout(tensor, experts)

    def members(group: Group, rank: int) -> tuple[int, ...]:
        return tuple(group.all_gather(torch.tensor([rank])).tolist())

    def work(ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        rank = ranks.world.rank
        if experts == layout.world or tensor == layout.world:
            assert ranks.world in (ranks.tensor, ranks.experts)
        return tuple(members(group, rank) for group in (ranks.tensor, ranks.experts))

    for rank, found in enumerate(on_ranks(layout, work)):
        assert found == (layout.tensor_members(rank), layout.expert_members(rank))
        assert all(rank in group for group in found)


def test_members_of_two_by_four() -> None:
    layout = Layout(tensor=2, experts=4)
    assert [layout.tensor_members(r) for r in range(4)] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert layout.expert_members(3) == (0, 1, 2, 3)
    layout = Layout(tensor=4, experts=2)
    assert [layout.expert_members(r) for r in range(4)] == [(0, 2), (1, 3), (0, 2), (1, 3)]


def test_sizes_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel 2 and expert_parallel 3"):
        Layout(2, 3)


def test_a_group_of_one_needs_nobody() -> None:
    ranks = Rendezvous(dist.HashStore(), HOST, 0).ranks(Layout(1, 1), CPU, 1.0)
    assert isinstance(ranks.world, Alone) and isinstance(ranks.tensor, Alone)


def test_a_rank_that_stays_away_is_an_error_after_the_deadline() -> None:
    left = threading.Event()

    def work(ranks: Ranks) -> str:
        if ranks.world.rank == 1:
            assert left.wait(20)
            return ""
        with pytest.raises(Unavailable) as caught:
            ranks.world.all_reduce(torch.ones(3))
        left.set()
        return caught.value.message

    message, _ = on_ranks(Layout(2, 1), work, deadline_s=0.3)
    assert message.startswith("rank 0 of 2 lost its group")


def test_a_rank_that_leaves_breaks_the_group_at_once() -> None:
    def work(ranks: Ranks) -> bool:
        if ranks.world.rank == 1:
            return True  # its group, and with it its connections, end here
        with pytest.raises(Unavailable):
            ranks.world.all_reduce(torch.ones(3))
        return True

    assert all(on_ranks(Layout(2, 1), work, deadline_s=20.0))
