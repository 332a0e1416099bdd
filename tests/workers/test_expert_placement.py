"""Experts in several slots, and moved between steps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.mixtures import FAMILIES, TOKENS, Mixtures, tokens
from tests.ranks import run_ranks
from workers.kernels.compiled import CompiledKernels
from workers.kernels.library import load_library
from workers.layers.expert_load import ExpertBalance, ExpertBalancer
from workers.parallel.balance import ExpertPlacement, balance, in_order
from workers.parallel.group import Ranks
from workers.parallel.layout import Layout
from workers.parallel.torch_group import Rendezvous


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Mixtures:
    return Mixtures(tmp_path_factory.mktemp("mixtures"))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("size", "experts", "redundant"), [(2, 2, 0), (2, 2, 2), (4, 4, 4), (4, 2, 4)]
)
def test_copies_and_changes_of_placement_leave_outputs_alone(
    name: str, size: int, experts: int, redundant: int, mixtures: Mixtures
) -> None:
    layer = mixtures[name]
    load = [float(expert * expert) for expert in range(8)]
    placements = [
        balance(load, experts, redundant),
        balance(load[::-1], experts, redundant),
        in_order(8, experts, redundant),
    ]

    def work(ranks: Ranks) -> list[Tensor]:
        own = layer.ours(ranks, redundant=redundant)
        results = [own(tokens())]
        for placement in placements:
            own.rebalance(placement)
            assert own.placement == placement
            results.append(own(tokens()))
        return results

    first = None
    for results in run_ranks(size, work, tensor=size if experts < size else 1, experts=experts):
        for got in results:
            first = got if first is None else first
            # torch's sums in float32 depend on how many rows a product has, so on how many copies.
            assert redundant or torch.equal(got, first)
            torch.testing.assert_close(got, layer(tokens()), rtol=1e-5, atol=1e-5)


def test_rows_of_a_copied_expert_are_spread_over_its_copies(
    mixtures: Mixtures,
) -> None:
    layer = mixtures["mixtral"]
    served: dict[int, Tensor] = {}

    def work(ranks: Ranks) -> None:
        own = layer.ours(ranks, redundant=4)
        own.rebalance(ExpertPlacement((3, 0, 1, 2, 4, 3, 3, 5, 6, 7, 3, 3), 2))
        counts: list[Tensor] = []
        own.experts.register_forward_pre_hook(
            lambda _, args: counts.append(args[1].diff(prepend=torch.zeros(1, dtype=torch.int32)))
        )
        own(tokens(1000))
        served[ranks.world.rank] = counts[0]

    run_ranks(2, work, tensor=2)
    copies = [int(served[rank][slot]) for rank in (0, 1) for slot in range(6)]
    of_expert_3 = [copies[slot] for slot in (0, 5, 6, 10, 11)]
    assert sum(copies) == 2000 and min(of_expert_3) > 0.1 * sum(of_expert_3)


@pytest.mark.parametrize(
    ("size", "tensor", "experts"), [(1, 1, 1), (4, 4, 2), (4, 1, 4), (2, 2, 1)]
)
def test_load_counts_every_row_once(
    size: int, tensor: int, experts: int, mixtures: Mixtures
) -> None:
    layer = mixtures["deepseek-v3"]
    ids, _ = layer.ours().router(tokens())
    expected = torch.bincount(ids.flatten(), minlength=8)

    def work(ranks: Ranks) -> Tensor:
        model = nn.ModuleList([layer.ours(ranks), nn.Identity(), layer.ours(ranks)])
        model[0](tokens())
        model[0](tokens())
        model[2](tokens())
        return ExpertBalancer(model, ranks).load()

    for load in run_ranks(size, work, tensor=tensor, experts=experts):
        # Each shard has had these tokens.
        assert torch.equal(load, size // tensor * torch.stack((2 * expected, expected)))


def test_rebalance_evens_what_was_measured(mixtures: Mixtures) -> None:
    layer = mixtures["qwen3-moe"]

    def work(ranks: Ranks) -> tuple[list[ExpertBalance | None], list[ExpertPlacement]]:
        layers = [layer.ours(ranks, redundant=2) for _ in range(2)]
        for own in layers:
            own.router.weight[5:7] *= 4  # two hot ones on one rank
        balancer = ExpertBalancer(nn.ModuleList(layers), ranks)
        idle = balancer.run()
        before = torch.stack([own(tokens(400)) for own in layers])
        first = balancer.run()
        assert torch.equal(torch.stack([own(tokens(400)) for own in layers]), before)
        return [idle, first, balancer.run()], [own.placement for own in layers]

    results = run_ranks(2, work)
    assert results[0] == results[1]
    (idle, first, again), _ = results[0]
    assert idle is None and first is not None and again is not None
    assert first.before > 1.1 > first.after >= 1.0
    assert first.moved > 0 and min(first.hottest) > 1.0
    # The same tokens again: they find the experts where they should be.
    assert (again.before, again.moved) == (first.after, 0)


@pytest.mark.parametrize("name", ["qwen3-moe", "gpt-oss"])
@pytest.mark.skipif(not load_library(), reason="no compiled kernels for this machine")
def test_packed_experts_in_bf16(name: str, mixtures: Mixtures) -> None:
    """They are moved as they lie; a row is the same in whatever product it is computed."""
    layer = mixtures[name]
    x = tokens().bfloat16()
    with torch.inference_mode():
        plainly = layer.ours(dtype=torch.bfloat16)(x)
        packed = layer.ours(dtype=torch.bfloat16, kernels=CompiledKernels())(x)
    torch.testing.assert_close(packed, plainly, rtol=2e-2, atol=2e-2)
    load = [float(expert) for expert in range(8)]

    def work(ranks: Ranks) -> tuple[Tensor, Tensor]:
        kernels = CompiledKernels()
        own = layer.ours(ranks, redundant=2, dtype=torch.bfloat16, kernels=kernels)
        before = own(x)
        own.rebalance(balance(load, 2, 2))
        return before, own(x)

    for before, after in run_ranks(2, work):
        assert torch.equal(before, packed) and torch.equal(after, packed)


def test_over_gloo(mixtures: Mixtures) -> None:
    """Sockets in place of barriers, in bfloat16."""
    layer, size, store = mixtures["deepseek-v3"], 4, dist.HashStore()
    alone = layer.ours(dtype=torch.bfloat16)

    @torch.inference_mode()
    def work(rank: int) -> list[Tensor]:
        meeting = Rendezvous(store, "127.0.0.1", rank)
        ranks = meeting.ranks(Layout(2, size), torch.device("cpu"), 30)
        own = layer.ours(ranks, redundant=4, dtype=torch.bfloat16)
        results = [own(tokens(count).bfloat16()) for count in (1, TOKENS)]
        assert ExpertBalancer(own, ranks).run() is not None
        return [*results, own(tokens().bfloat16())]

    with ThreadPoolExecutor(size) as pool:
        for one, many, again in pool.map(work, range(size)):
            for got, count in ((one, 1), (many, TOKENS), (again, TOKENS)):
                expected = alone(tokens(count).bfloat16())
                torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
