"""Mixtures of experts against transformers, alone and over ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.mixtures import FAMILIES, HIDDEN, TOKENS, Mixtures, tokens
from tests.ranks import run_ranks
from workers.kernels.api import GroupedProduct
from workers.kernels.grouped import GroupedMM, Looped, plain
from workers.kernels.torch_kernels import TorchKernels
from workers.layers.build import Build
from workers.layers.routing import choose
from workers.models.checkpoint import open_checkpoint
from workers.parallel.group import SINGLE, Ranks


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Mixtures:
    return Mixtures(tmp_path_factory.mktemp("mixtures"))


every_family = pytest.mark.parametrize("name", FAMILIES)


@every_family
def test_router_is_bit_for_bit_that_of_transformers(name: str, mixtures: Mixtures) -> None:
    layer = mixtures[name]
    gate = layer.block.router if name == "gpt-oss" else layer.block.gate
    x = tokens(500)
    with torch.inference_mode():
        logits, weights, ids = gate(x)
        correction = getattr(gate, "e_score_correction_bias", None)
        expected = torch.zeros_like(logits).scatter_(1, ids, weights)
        for own_ids, own_weights in (
            choose(logits, layer.config, correction),
            layer.ours().router(x),
        ):
            assert own_ids.shape == ids.shape
            assert torch.equal(torch.zeros_like(logits).scatter_(1, own_ids, own_weights), expected)
    assert (expected != 0).any(0).all()


@every_family
def test_targets_are_the_tensors_of_the_checkpoint(name: str, mixtures: Mixtures) -> None:
    layer = mixtures[name]
    tensors = open_checkpoint(layer.directory).tensors
    theirs = {name: tensors[name].shape for name in tensors if name.startswith(layer.prefix)}
    spread = run_ranks(2, lambda ranks: ranks)
    split = run_ranks(2, lambda ranks: ranks, tensor=2, experts=1)
    for ranks in (SINGLE, *spread, *split):
        _, targets = layer.new(Build(torch.float32, torch.device("cpu"), TorchKernels(), ranks))
        assert {target.name: target.shape for target in targets} == theirs


@every_family
def test_output_is_that_of_transformers(name: str, mixtures: Mixtures) -> None:
    layer = mixtures[name]
    ours = layer.ours()
    for count in (1, TOKENS):
        with torch.inference_mode():
            got = ours(tokens(count))
        torch.testing.assert_close(got, layer(tokens(count)), rtol=1e-5, atol=1e-5)


@every_family
@pytest.mark.parametrize(
    ("size", "tensor", "experts"), [(2, 1, 2), (4, 1, 4), (4, 2, 4), (4, 4, 2), (2, 2, 1)]
)
def test_ranks_together_say_what_one_says(
    name: str, size: int, tensor: int, experts: int, mixtures: Mixtures
) -> None:
    layer = mixtures[name]
    batches = [tokens(count) for count in (1, size, TOKENS)]

    def work(ranks: Ranks) -> list[Tensor]:
        own = layer.ours(ranks)
        return [own(x) for x in batches]

    for results in run_ranks(size, work, tensor=tensor, experts=experts):
        for x, got in zip(batches, results, strict=True):
            torch.testing.assert_close(got, layer(x), rtol=1e-5, atol=1e-5)


def test_one_rank_calls_no_collective_and_several_call_few(mixtures: Mixtures) -> None:
    layer = mixtures["deepseek-v2"]

    def calls(ranks: Ranks) -> list[dict[str, int]]:
        own = layer.ours(ranks)
        own(tokens())
        return [getattr(group, "calls", {}) for group in (ranks.world, ranks.tensor, ranks.experts)]

    assert run_ranks(1, calls) == [[{}, {}, {}]]
    spread = [{}, {}, {"all_to_all": 3}]
    assert run_ranks(2, calls) == [spread] * 2
    sliced: list[dict[str, int]] = [{}, {"all_gather": 1}, {"all_to_all": 3}]
    assert run_ranks(2, calls, tensor=2) == [sliced] * 2
    split: list[dict[str, int]] = [{}, {"all_reduce": 1}, {}]
    assert run_ranks(2, calls, tensor=2, experts=1) == [split] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_grouped_product_is_that_of_each_expert(dtype: torch.dtype) -> None:
    """What CUDA uses runs on a CPU too, with experts that have no rows."""
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 24, 32).to(dtype), torch.randn(5, 24).to(dtype)
    ends = torch.tensor([0, 3, 3, 10, 10], dtype=torch.int32)
    x = torch.randn(10, 32).to(dtype)
    for own_bias in (None, bias):
        grouped, looped = GroupedMM(weight, own_bias), plain(weight, own_bias)
        assert isinstance(looped, Looped)
        torch.testing.assert_close(grouped(x, ends), looped(x, ends), rtol=2e-2, atol=2e-2)
        none = grouped(x[:0], ends * 0)
        assert none.shape == looped(x[:0], ends * 0).shape == (0, 24)


@every_family
def test_each_shard_has_tokens_of_its_own_or_none(name: str, mixtures: Mixtures) -> None:
    layer = mixtures[name]
    batches = [tokens(0), tokens(TOKENS), tokens(3, seed=2), tokens(1, seed=3)]

    def work(ranks: Ranks) -> Tensor:
        return layer.ours(ranks)(batches[ranks.shards.rank])

    for tensor in (1, 2):
        for rank, got in enumerate(run_ranks(4, work, tensor=tensor, experts=4)):
            x = batches[rank // tensor]
            assert got.shape == x.shape
            if len(x):
                torch.testing.assert_close(got, layer(x), rtol=1e-5, atol=1e-5)


class Grouping(TorchKernels):
    """With the products that CUDA uses."""

    def pack_experts(self, weight: Tensor, bias: Tensor | None) -> GroupedProduct:
        return GroupedMM(weight, bias)


@every_family
def test_what_is_capturable_needs_no_word_from_the_device(name: str, mixtures: Mixtures) -> None:
    """Fake tensors have no data: who asks for some fails, as it would in a CUDA graph."""
    layer = mixtures[name]
    with torch.inference_mode():
        got = layer.ours(kernels=Grouping())(tokens())
    torch.testing.assert_close(got, layer(tokens()), rtol=1e-5, atol=1e-5)
    grouping = layer.ours(dtype=torch.bfloat16, kernels=Grouping())
    looping = layer.ours(dtype=torch.bfloat16)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(TOKENS, HIDDEN, dtype=torch.bfloat16)
        assert grouping.capturable and grouping(x).shape == x.shape
        assert not looping.capturable
        with pytest.raises(DataDependentOutputException):
            looping(x)
    assert not any(run_ranks(2, lambda ranks: layer.ours(ranks, kernels=Grouping()).capturable))
