"""Triton kernels against their plain twins."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from workers.kernels.torch_kernels import TorchKernels
from workers.kernels.triton_grouped import TritonGrouped
from workers.kernels.triton_kernels import TritonKernels
from workers.models.architecture import Activation

OURS, PLAIN = TritonKernels(), TorchKernels()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def accuracy(dtype: torch.dtype, roundings: int) -> dict[str, float]:
    """The twin rounds more than once."""
    unit = max(torch.finfo(dtype).eps, 1e-6)
    return {"rtol": roundings * unit, "atol": roundings * unit}


def draw(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "width"), [(1, 64), (3, 1000), (12, 33)])
def test_add_rms_norm(tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    residual = draw(tokens, width, dtype=dtype, device=device)
    weight = draw(width, dtype=torch.float32, device=device)
    for x in (None, draw(tokens, width + 1, dtype=dtype, device=device)[:, 1:].contiguous()):
        own, plain = residual.clone(), residual.clone()
        got = OURS.add_rms_norm(x, own, weight, 1e-5)
        expected = PLAIN.add_rms_norm(x, plain, weight, 1e-5)
        torch.testing.assert_close(got, expected, **accuracy(dtype, 2))
        assert torch.equal(own, plain)
        assert x is None or not torch.equal(own, residual)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "width"),
    [(1, 4, 2, 24), (3, 7, 3, 80), (2, 6, 2, 128), (9, 3, 1, 64)],
)
def test_rotate_in_place(
    tokens: int,
    heads: int,
    kv_heads: int,
    width: int,
    dtype: torch.dtype,
    normed: bool,
    device: torch.device,
) -> None:
    qkv = draw(tokens, heads + 2 * kv_heads, width, dtype=dtype, device=device)
    before, rotated = qkv.clone(), heads + kv_heads
    angles = 10 * draw(tokens, width // 2, dtype=torch.float32, device=device)
    weight = draw(rotated, width, dtype=torch.float32, device=device) if normed else None
    exact = before[:, :rotated].float(), None if weight is None else weight.float()
    expected = PLAIN.rotate(exact[0], angles.cos(), angles.sin(), exact[1], 1e-5)
    got = OURS.rotate(qkv[:, :rotated], angles.cos(), angles.sin(), weight, 1e-5)
    torch.testing.assert_close(got.float(), expected, **accuracy(dtype, 1))
    assert got.data_ptr() == qkv.data_ptr()
    assert torch.equal(qkv[:, rotated:], before[:, rotated:])  # values stand beside


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize(("tokens", "width"), [(1, 96), (3, 1025), (30, 7)])
def test_gated(
    tokens: int, width: int, activation: Activation, dtype: torch.dtype, device: torch.device
) -> None:
    gate_up = 4 * draw(tokens, 2 * width, dtype=dtype, device=device)
    got = OURS.gated(gate_up, activation)
    assert got.shape == (tokens, width)
    expected = PLAIN.gated(gate_up.float(), activation)
    torch.testing.assert_close(got.float(), expected, **accuracy(dtype, 2))


def test_seventy_tokens(device: torch.device) -> None:
    gate_up = draw(70, 64, dtype=torch.bfloat16, device=device)
    exact = PLAIN.gated(gate_up.float(), "silu")
    torch.testing.assert_close(OURS.gated(gate_up, "silu"), exact.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "active", "width"), [(1, 1, 64), (5, 3, 1025), (0, 2, 64)])
def test_combine(
    tokens: int, active: int, width: int, dtype: torch.dtype, device: torch.device
) -> None:
    rows = draw(tokens * active, width, dtype=dtype, device=device)
    places = torch.randperm(tokens * active, device=device).view(tokens, active)
    weights = draw(tokens, active, dtype=torch.float32, device=device).abs()
    got = OURS.combine(rows, places, weights)
    assert got.shape == (tokens, width)
    torch.testing.assert_close(got, PLAIN.combine(rows, places, weights), **accuracy(dtype, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("ends", "outputs", "inputs"),
    [((0, 1, 1, 5), 48, 40), ((20, 20, 90), 130, 64), ((1,), 16, 300), ((0, 0), 16, 32)],
)
@pytest.mark.parametrize("biased", [False, True])
def test_grouped_product(
    ends: tuple[int, ...],
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    biased: bool,
    device: torch.device,
) -> None:
    weight = draw(len(ends), outputs, inputs, dtype=dtype, device=device) / inputs**0.5
    bias = draw(len(ends), outputs, dtype=dtype, device=device) if biased else None
    x = draw(ends[-1], inputs, dtype=dtype, device=device)
    at = torch.tensor(ends, dtype=torch.int32, device=device)
    got = TritonGrouped(weight, bias)(x, at)
    exact = PLAIN.pack_experts(weight.float(), None if bias is None else bias.float())
    expected = exact(x.float(), at)
    assert got.shape == expected.shape == (ends[-1], outputs)
    torch.testing.assert_close(got.float(), expected, **accuracy(dtype, 4))
