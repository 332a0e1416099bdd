"""Absorbed latent attention against Hugging Face's, which expands latents into keys and values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from tests.ranks import run_ranks
from tests.workers.attention_cases import new_context
from workers.attention.backend import AttentionBackend
from workers.attention.compiled_backend import CompiledBackend
from workers.attention.kv_cache import KVCache, KVShape
from workers.attention.pick import pick_backend
from workers.attention.torch_backend import TorchBackend
from workers.kernels.library import load_library
from workers.kernels.pick import pick_kernels
from workers.layers.build import Build
from workers.layers.latent_attention import LatentAttentionLayer
from workers.layers.rotary import RotaryEmbedding
from workers.models.architecture import LatentAttention, RopeConfig
from workers.parallel.group import SINGLE, Ranks

CPU = torch.device("cpu")
HIDDEN, HEADS, TOKENS, BLOCK = 48, 4, 41, 4
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "kv_lora_rank": 48,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-2,  # not of these norms
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "mscale": 0.7,
    "mscale_all_dim": 1.3,
}
ROPE = RopeConfig(theta=10_000.0)
OWN = LatentAttention(HEADS, 24, 48, 12, 16, 20, ROPE)
OWN_YARN = RopeConfig(*("yarn", 10_000.0, 4.0, 16), beta_fast=8.0, mscale=0.7, mscale_all_dim=1.3)
YARN_SCALE = 28**-0.5 * (0.1 * 1.3 * 1.3862943611198906 + 1) ** 2
# What differs in Hugging Face's configuration, and in ours.
KINDS: dict[str, tuple[type[Any], dict[str, Any], LatentAttention]] = {
    "v2": (DeepseekV2Config, {}, OWN),
    "v3": (DeepseekV3Config, {}, OWN),
    "plain queries": (DeepseekV2Config, {"q_lora_rank": None}, replace(OWN, query_rank=None)),
    "halves": (DeepseekV3Config, {"rope_interleave": False}, replace(OWN, interleaved=False)),
    "bias": (DeepseekV3Config, {"attention_bias": True}, replace(OWN, bias=True)),
    "yarn": (
        DeepseekV3Config,
        {"rope_parameters": YARN},
        replace(OWN, rope=OWN_YARN, scale=YARN_SCALE),
    ),
}


@dataclass
class Case:
    config: LatentAttention
    weights: dict[str, Tensor]
    x: Tensor  # [TOKENS, HIDDEN]
    expected: Tensor  # of all tokens in one pass


def new_case(kind: str) -> Case:
    make, fields, own = KINDS[kind]
    config = make(**SIZES | fields, attn_implementation="eager")
    family = v2 if make is DeepseekV2Config else v3
    prefix = "DeepseekV2" if make is DeepseekV2Config else "DeepseekV3"
    torch.manual_seed(1)
    layer = getattr(family, f"{prefix}Attention")(config, 0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, TOKENS, HIDDEN)
    places = torch.arange(TOKENS)[None]
    rotation = getattr(family, f"{prefix}RotaryEmbedding")(config)(x, places)
    mask = torch.full((TOKENS, TOKENS), float("-inf")).triu_(1)[None, None]
    with torch.no_grad():
        expected, _ = layer(x, attention_mask=mask, position_embeddings=rotation)
    return Case(own, dict(layer.state_dict()), x[0], expected[0])


def new_layer(case: Case, ranks: Ranks, dtype: torch.dtype) -> LatentAttentionLayer:
    """As a loader and a decoder make it: filled, then packed, the layer before its parts."""
    build = Build(dtype, CPU, pick_kernels(CPU, dtype), ranks)
    layer = LatentAttentionLayer(2, case.config, HIDDEN, build)
    targets = layer.targets("")
    for target in targets:
        tensor = case.weights[target.name]
        assert tensor.shape == target.shape
        if target.view.numel():
            target.view.copy_(tensor[target.part])
    assert {target.name for target in targets} == case.weights.keys()
    for module in layer.modules():
        if hasattr(module, "pack"):
            module.pack()
    return layer


def run(
    case: Case,
    cuts: list[int],
    ranks: Ranks = SINGLE,
    dtype: torch.dtype = torch.float32,
    backend: type[TorchBackend] | type[CompiledBackend] | None = None,
) -> Tensor:
    """All tokens, in steps that end at `cuts`, beside a second sequence that is a step behind."""
    config = case.config
    layer = new_layer(case, ranks, dtype)
    shape = KVShape(3, 1, config.kv_rank + config.rope_dim, BLOCK, dtype, sides=1)
    cache = KVCache(shape, 30, CPU)
    cache.pages.fill_(float("nan"))
    attention: AttentionBackend = pick_backend(cache) if backend is None else backend(cache)
    rotary = RotaryEmbedding(config.rope_dim, config.rope, 64, CPU)
    blocks = torch.randperm(30, generator=torch.Generator().manual_seed(3)).view(2, 15)
    found: list[list[Tensor]] = [[], []]
    spans = list(pairwise([0, *cuts]))
    for now, late in zip([*spans, None], [None, *spans], strict=True):
        chunks = [(i, span) for i, span in enumerate((now, late)) if span is not None]
        chunks.sort(key=lambda chunk: chunk[1][1] - chunk[1][0] > 1)
        places = torch.cat([torch.arange(*span) for _, span in chunks])
        owners = torch.cat([torch.full((end - start,), i) for i, (start, end) in chunks])
        slots = blocks[owners, places // BLOCK] * BLOCK + places % BLOCK
        step = [(end - start, end) for _, (start, end) in chunks]
        context = new_context(step, slots, blocks[[i for i, _ in chunks]].int())
        with torch.inference_mode():
            x = case.x[places].to(dtype)
            out = layer(x, rotary(places), attention.plan(context), None)
        for (i, _), rows in zip(chunks, out.split([n for n, _ in step]), strict=True):
            found[i].append(rows)
    first, second = (torch.cat(each) for each in found)
    accuracy = 1e-5 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(first, second, rtol=accuracy, atol=accuracy)
    return first


@pytest.mark.parametrize("backend", [TorchBackend, CompiledBackend])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_and_decodes_over_pages_are_hugging_faces_one_pass(
    kind: str, backend: type[TorchBackend] | type[CompiledBackend]
) -> None:
    if backend is CompiledBackend and not load_library():
        pytest.skip("no compiled kernels")
    case = new_case(kind)
    for cuts in ([TOKENS], [13, 14, 30, *range(31, TOKENS + 1)]):
        found = run(case, cuts, backend=backend)
        torch.testing.assert_close(found, case.expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", ["v2", "plain queries", "bias"])
def test_ranks_share_the_heads(kind: str, size: int) -> None:
    case = new_case(kind)
    cuts = [13, 30, *range(31, TOKENS + 1)]
    for found in run_ranks(size, lambda ranks: run(case, cuts, ranks), tensor=size):
        torch.testing.assert_close(found, case.expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["v3", "plain queries"])
def test_bfloat16_is_close_to_float32(kind: str) -> None:
    """Weights that are packed head by head, where this CPU needs it."""
    case = new_case(kind)
    found = run(case, [20, *range(21, TOKENS + 1)], dtype=torch.bfloat16).float()
    assert (found - case.expected).norm() < 0.02 * case.expected.norm()


def test_rows_that_are_wanted_alone() -> None:
    case = new_case("v3")
    layer = new_layer(case, SINGLE, torch.float32)
    cache = KVCache(KVShape(3, 1, 64, BLOCK, torch.float32, sides=1), 11, CPU)
    context = new_context([(TOKENS, TOKENS)], torch.arange(TOKENS), torch.arange(11).int()[None])
    rotation = RotaryEmbedding(16, ROPE, 64, CPU)(torch.arange(TOKENS))
    rows = torch.tensor([3, TOKENS - 1])
    with torch.inference_mode():
        found = layer(case.x, rotation, TorchBackend(cache).plan(context), rows)
    torch.testing.assert_close(found, case.expected[rows], rtol=1e-4, atol=2e-5)


def test_pages_hold_the_normed_latent_and_the_rotated_key_alone() -> None:
    case = new_case("halves")
    layer = new_layer(case, SINGLE, torch.float32)
    cache = KVCache(KVShape(3, 1, 64, BLOCK, torch.float32, sides=1), 3, CPU)
    context = new_context([(6, 6)], torch.arange(6), torch.tensor([[0, 1]]).int())
    rotation = RotaryEmbedding(16, ROPE, 64, CPU)(torch.arange(6))
    with torch.inference_mode():
        layer(case.x[:6], rotation, TorchBackend(cache).plan(context), None)
    compressed = case.x[:6] @ case.weights["kv_a_proj_with_mqa.weight"].T
    latent = torch.nn.functional.rms_norm(compressed[:, :48], (48,), eps=1e-6)
    latent *= case.weights["kv_a_layernorm.weight"]
    key = compressed[:, 48:]
    turned = key.unflatten(1, (2, 8))
    cos, sin = rotation.cos, rotation.sin
    key = torch.cat(
        (turned[:, 0] * cos - turned[:, 1] * sin, turned[:, 1] * cos + turned[:, 0] * sin), 1
    )
    pages = cache.pages[:, 2, 0, :, 0].reshape(-1, 64)[:6]
    torch.testing.assert_close(pages, torch.cat((latent, key), 1), rtol=1e-4, atol=1e-5)
    assert not cache.pages[:, :2].any()
