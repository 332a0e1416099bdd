"""Sizes from config.json alone: what the decoder allocates, to the byte, and what was published."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.places import places
from workers.attention.kv_cache import KVCache
from workers.core.errors import CheckpointError, ConfigError
from workers.kernels.torch_kernels import TorchKernels
from workers.layers.build import Build
from workers.models.architecture import HeadAttention, ModelConfig
from workers.models.config import read_config
from workers.models.decoder import Decoder
from workers.models.fields import Fields
from workers.models.kv_layout import kv_layout
from workers.models.plan import Demand, Fit, fit, splits
from workers.models.shapes import SHAPES
from workers.models.sizing import (
    Split,
    activation_peak,
    kv_bytes_per_token,
    parameters,
    rank_weights,
    rule_of_thumb,
)
from workers.models.split import check_split, split_faults
from workers.runner.memory import kv_shape

META = torch.device("meta")
PUBLISHED = {
    "qwen3-0.6b": 596_049_920,
    "llama-1b": 1_235_814_400,
    "llama-8b": 8_030_261_248,
    "llama-70b": 70_553_706_496,
    "gemma3-1b": 999_885_952,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    "gpt-oss-20b": 20_914_757_184,
    "deepseek-v3": 671_026_419_200,
}


def shape(name: str) -> ModelConfig:
    return read_config(Fields(Path(name), SHAPES[name]))


def decoder_on(config: ModelConfig, split: Split, rank: int, dtype: torch.dtype) -> Decoder:
    """The decoder of one rank, without memory for its weights."""
    return Decoder(config, Build(dtype, META, TorchKernels(), places(split, rank)))


def allocated(decoder: Decoder) -> int:
    return sum(each.numel() * each.element_size() for each in set(decoder.parameters()))


SPLITS = [Split(), Split(2), Split(4), Split(16), Split(1, 4), Split(2, 4), Split(4, 2)]


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_weights_are_what_the_decoder_allocates(name: str, split: Split) -> None:
    config = shape(name)
    # A few layers tell as much as all; of DeepSeek's the first three are dense.
    config = replace(config, layers=config.layers[:4])
    if split_faults(config, split.tensor, split.experts):
        with pytest.raises(ConfigError):
            check_split(config, split.tensor, split.experts)
        return
    first = allocated(decoder_on(config, split, 0, torch.bfloat16))
    last = allocated(decoder_on(config, split, split.world - 1, torch.bfloat16))
    assert rank_weights(config, split, 2).total == first >= last


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_published(name: str) -> None:
    assert parameters(shape(name)) == PUBLISHED[name]


def test_a_packed_head_is_not_the_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    config = shape("qwen3-0.6b")
    plain, packed = (rank_weights(config, Split(), 2, packed=each) for each in (False, True))
    assert plain.head == 0
    assert packed.total - plain.total == packed.embedding == 151_936 * 1024 * 2
    untied = shape("llama-8b")
    assert rank_weights(untied, Split(), 2) == rank_weights(untied, Split(), 2, packed=True)


@pytest.mark.parametrize(
    ("name", "tensor", "bytes_per_token"),
    [
        ("llama-8b", 1, 2 * 32 * 8 * 128 * 2),
        ("llama-8b", 4, 2 * 32 * 2 * 128 * 2),
        ("llama-8b", 16, 2 * 32 * 1 * 128 * 2),  # more ranks than heads: each has one
        ("deepseek-v3", 1, 61 * 576 * 2),
        ("deepseek-v3", 8, 61 * 576 * 2),  # the latent is on every rank
    ],
)
def test_kv_of_a_token(name: str, tensor: int, bytes_per_token: int) -> None:
    config = shape(name)
    assert kv_bytes_per_token(config, Split(tensor), 2) == bytes_per_token
    blocks = kv_shape(config, tensor, 16, torch.bfloat16)
    assert blocks.token_bytes == bytes_per_token
    pages = KVCache(blocks, 2, torch.device("cpu")).pages
    assert pages.numel() * 2 == 2 * 16 * bytes_per_token


def test_layers_that_keep_different_kv_are_refused() -> None:
    config = shape("tiny")
    layer = config.layers[0]
    assert isinstance(layer.attention, HeadAttention)
    other = replace(layer, attention=replace(layer.attention, head_dim=32))
    with pytest.raises(CheckpointError, match="2 heads of 32, 2 heads of 64"):
        kv_layout(replace(config, layers=(layer, other)), 1)


@pytest.mark.parametrize(
    ("name", "split", "fault"),
    [
        ("qwen3-0.6b", Split(32), "32 does not divide 16 attention heads"),
        ("llama-8b", Split(3), "of 3 and 8 key/value heads one must be a multiple of the other"),
        ("tiny", Split(3), "3 does not divide the feed-forward width 704"),
        ("tiny", Split(1, 2), "the model has no experts"),
        ("mixtral-8x7b", Split(1, 16), "16 does not divide 8 experts"),
        ("mixtral-8x7b", Split(4, 6), "of 4 and 6 one must be a multiple of the other"),
        ("gpt-oss-20b", Split(128), "128 does not divide 64 attention heads"),
        ("gpt-oss-20b", Split(128), "128 does not divide the expert width 2880"),
        ("deepseek-v3", Split(3), "3 does not divide the shared experts' width 2048"),
    ],
)
def test_why_a_split_does_not_work(name: str, split: Split, fault: str) -> None:
    assert fault in split_faults(shape(name), split.tensor, split.experts)


def test_experts_that_are_spread_stay_whole() -> None:
    """So a width that tensor ranks cannot divide does not matter then."""
    assert split_faults(shape("gpt-oss-20b"), 32, 1) == ()
    assert split_faults(shape("gpt-oss-20b"), 64, 1) == ()
    assert split_faults(shape("qwen3-30b-a3b"), 32, 32) == ()


GIB = float(1 << 30)
DEMAND = Demand(
    memory=80 * GIB,
    share=0.9,
    item=2,
    kv_item=2,
    context=8192,
    block_size=16,
    step_tokens=512,
    max_seqs=32,
)


def on(name: str, split: Split, **changes: Any) -> Fit:
    return fit(shape(name), split, replace(DEMAND, **changes))


def test_what_is_left_is_for_kv() -> None:
    one = on("llama-8b", Split())
    used = one.weights + one.activations + one.kv_tokens * one.kv_bytes_per_token
    assert 0 <= 0.9 * DEMAND.memory - used < 16 * one.kv_bytes_per_token
    assert one.sequences == one.kv_tokens // 8192
    assert one.works
    assert on("llama-8b", Split(), kv_item=1).kv_tokens == pytest.approx(2 * one.kv_tokens, abs=16)


def test_what_does_not_fit() -> None:
    assert not on("llama-70b", Split()).works
    assert on("llama-70b", Split()).kv_tokens == 0
    assert on("llama-70b", Split(4)).works
    assert not on("llama-8b", Split(), memory=17 * GIB, context=131_072).works
    assert on("tiny", Split(64)).faults


def test_shards_have_sequences_of_their_own() -> None:
    """With 8 ranks for the experts and 2 for the heads there are 4."""
    config = shape("qwen3-30b-a3b")
    spread = fit(config, Split(2, 8), DEMAND)
    used = spread.weights + spread.activations
    a_shard = (DEMAND.memory * DEMAND.share - used) // spread.kv_bytes_per_token // 16 * 16
    assert spread.kv_tokens == 4 * a_shard
    assert spread.sequences == 4 * (a_shard // 8192)


def test_rows_are_sizes_worth_a_look() -> None:
    dense = splits(shape("llama-8b"), Split(6))
    assert Split(6) in dense
    assert all(split.experts == 1 for split in dense)
    mixture = splits(shape("mixtral-8x7b"), Split(2, 4))
    assert {Split(2, 4), Split(2, 8), Split(1, 8), Split(8)} <= set(mixture)
    assert len(mixture) == len(set(mixture))


def test_activations_grow_with_steps_and_shrink_with_ranks() -> None:
    config = shape("llama-8b")

    def peak(step_tokens: int, tensor: int = 1) -> int:
        return activation_peak(config, Split(tensor), 2, step_tokens=step_tokens, max_seqs=1)

    # hidden 4096: the stream, what is added, and 3 x 14336 for gate, up and their product.
    assert peak(8192) == 8192 * (2 * 4096 + 3 * 14_336) * 2
    assert peak(8192, 4) == 8192 * (2 * 4096 + 3 * 3584) * 2
    # hidden 2048, 8 of 128 experts of width 768: rows are sent and arrive, and go through one.
    mixture = shape("qwen3-30b-a3b")
    for split, rows in ((Split(), 8), (Split(1, 8), 8), (Split(2, 8), 4)):
        found = activation_peak(mixture, split, 2, step_tokens=8192, max_seqs=1)
        assert found == 8192 * (2 * 2048 + rows * (2 * 2048 + 3 * 768)) * 2
    # A small step's peak is sampling: logits of every sequence.
    few = activation_peak(config, Split(), 2, step_tokens=1, max_seqs=64)
    assert few == 64 * (4096 * 2 + 128_256 * (2 + 8))


def test_the_rule_of_thumb() -> None:
    assert rule_of_thumb(70_000_000_000, 2) == pytest.approx(70e9 * 16 / 8 * 1.2)


def test_sizes_need_no_torch() -> None:
    code = (
        "import sys, workers.models.plan, workers.models.config, workers.models.shapes\n"
        "import cluster.commands.size\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
