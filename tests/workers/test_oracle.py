"""Logits of the decoder over pages, against Hugging Face transformers in float32."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import Oracle, make_checkpoint
from tests.decoding import BLOCK, load, logits, new_sequence, tokens_of


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **fields}}


LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN = rope("yarn", factor=8.0, original_max_position_embeddings=64)

LONGROPE = rope(
    "longrope",
    long_factor=[1.5, 3.0, 6.0, 20.0],
    short_factor=[1.0, 1.1, 1.2, 1.5],
    partial_rotary_factor=0.5,
)

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama all biases, mha": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    ),
    "llama head 24, llama3 rope": ("llama", {"head_dim": 24} | LLAMA3),
    "llama tied, linear rope": (
        "llama",
        {"tie_word_embeddings": True} | rope("linear", factor=4.0),
    ),
    "qwen2": ("qwen2", {}),
    "qwen2 mqa, head 40, yarn": ("qwen2", {"head_dim": 40, "num_key_value_heads": 1} | YARN),
    "qwen3": ("qwen3", {}),
    "qwen3 tied, head 24, biases": (
        "qwen3",
        {"head_dim": 24, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "qwen3 dynamic rope": ("qwen3", rope("dynamic", factor=4.0)),
    "qwen3 upper window": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 21, "max_window_layers": 1},
    ),
    "mistral window": ("mistral", {}),
    "gemma3": ("gemma3", {}),
    "phi3 window": ("phi3", {"sliding_window": 24}),
    "phi3 long factors, half rotated": (
        "phi3",
        {"original_max_position_embeddings": 5} | LONGROPE,
    ),
    "gpt_oss": ("gpt_oss", {}),
    "deepseek_v3": ("deepseek_v3", {}),
}


@pytest.fixture(scope="module", params=SHAPES, ids=lambda name: name.replace(" ", "-"))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    family, fields = SHAPES[request.param]
    directory = make_checkpoint(tmp_path_factory.mktemp("model"), family, **fields)
    return load(directory), Oracle(directory)


@pytest.mark.parametrize("sizes", [[150], [1, 2, 3, 144], [64, 64, 21, 1], [149, 1]])
def test_chunked_prefill(pair: Any, sizes: list[int]) -> None:
    model, oracle = pair
    tokens = tokens_of(1, sum(sizes))
    sequence = new_sequence(tokens, random.Random(0).sample(range(300), 60))
    got, at = [], 0
    for size in sizes:
        got.append(logits(model, (sequence, at, at + size)))
        at += size
    torch.testing.assert_close(torch.cat(got), oracle.logits(tokens), atol=2e-4, rtol=1e-4)


def test_mixed_step_over_a_shared_prefix(pair: Any) -> None:
    """One step with decodes, first chunks and later chunks; two sequences read the same pages."""
    model, oracle = pair
    prefix = tokens_of(2, 5 * BLOCK)
    long = new_sequence(prefix + tokens_of(3, 14), list(range(100, 115)))
    sharing = new_sequence(prefix + tokens_of(4, 9), [*range(100, 105), *range(200, 210)])
    fresh = new_sequence(tokens_of(5, 11), list(range(50, 60)))
    decoding = new_sequence(tokens_of(6, 7), list(range(20, 30)))
    logits(model, (long, 0, 20), (decoding, 0, 6))
    step = [(decoding, 6, 7), (long, 20, 21), (fresh, 0, 11), (sharing, 20, 29)]
    got = logits(model, *step)
    want = torch.cat([oracle.logits(s.tokens)[start:end] for s, start, end in step])
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    got = logits(model, (long, 21, 34))
    torch.testing.assert_close(got, oracle.logits(long.tokens)[21:], atol=2e-4, rtol=1e-4)


def test_a_chunk_may_read_what_the_same_step_writes(pair: Any) -> None:
    model, oracle = pair
    tokens = tokens_of(7, 23)
    sequence = new_sequence(tokens, list(range(40, 50)))
    got = logits(model, (sequence, 0, 10), (sequence, 10, 22), (sequence, 22, 23))
    torch.testing.assert_close(got, oracle.logits(tokens), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close(dtype: str, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "qwen3", initializer_range=0.1)
    model, oracle = load(directory, dtype), Oracle(directory)
    tokens = tokens_of(8, 120)
    sequence = new_sequence(tokens, list(range(30)))
    got = torch.cat([logits(model, (sequence, 0, 77)), logits(model, (sequence, 77, 120))])
    assert got.dtype is getattr(torch, dtype)
    want = oracle.logits(tokens)
    error = (got.float() - want).norm() / want.norm()
    assert error < (0.03 if dtype == "bfloat16" else 0.004)


@pytest.mark.parametrize("length", [600, 3000])
def test_long_prompts(length: int, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "llama", max_position_embeddings=4096)
    model = load(directory, kv_tokens=4096)
    tokens = tokens_of(9, length)
    sequence = new_sequence(tokens, random.Random(0).sample(range(1024), 760))
    got = [logits(model, (sequence, at, min(at + 512, length))) for at in range(0, length, 512)]
    want = Oracle(directory).logits(tokens)
    torch.testing.assert_close(torch.cat(got), want, atol=1e-3, rtol=1e-3)
