"""Kernels compiled for this CPU against their plain twins."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from workers.kernels import build
from workers.kernels.compiled import CompiledKernels
from workers.kernels.huge_pages import SLAB, Slabs, huge_zeros
from workers.kernels.library import columns, level, library_path, load_library
from workers.kernels.pick import pick_kernels
from workers.kernels.torch_kernels import TorchKernels

EXACT = {"rtol": 1e-5, "atol": 1e-5}
ROUNDED = {"rtol": 1e-2, "atol": 1e-2}  # to bfloat16, once


@pytest.fixture(scope="module")
def compiled() -> CompiledKernels:
    """Fails, and does not skip, where they should be there."""
    if shutil.which("g++") is None or level() is None:
        pytest.skip("no compiler, or not an x86 CPU with AVX2")
    assert load_library(), "make install has not built the kernels"
    return CompiledKernels()


def close(got: Tensor, want: Tensor) -> None:
    """`want` in float32, `got` as it was computed."""
    tolerance = EXACT if got.dtype is torch.float32 else ROUNDED
    torch.testing.assert_close(got.float(), want, **tolerance)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 13, 64, 150])
@pytest.mark.parametrize("shape", [(48, 32), (100, 72), (33, 17), (700, 1024)], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_packed_product(
    compiled: CompiledKernels, rows: int, shape: tuple[int, int], with_bias: bool
) -> None:
    torch.manual_seed(rows)
    outputs, inputs = shape
    weight = (torch.randn(shape) / inputs**0.5).bfloat16()
    bias = torch.randn(outputs).bfloat16() if with_bias else None
    x = torch.randn(rows, 2 * inputs).bfloat16()[:, :inputs]  # rows may be part of wider ones
    product = compiled.pack(weight, bias)
    assert product is not None
    got = product(x.contiguous() if torch.ops.mkldnn._is_mkldnn_bf16_supported() else x)
    assert got.dtype is torch.bfloat16
    close(got, F.linear(x.float(), weight.float(), None if bias is None else bias.float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("width", [17, 64, 1024])
def test_what_stands_between_products(
    compiled: CompiledKernels, rows: int, width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(width)
    plain = TorchKernels()
    x, residual = torch.randn(2, rows, width).to(dtype)
    weight = torch.randn(width)
    sums = residual.clone()
    got = compiled.add_rms_norm(x, sums, weight, 1e-6)
    assert torch.equal(sums, residual + x)
    close(got, plain.add_rms_norm(None, sums.float(), weight.float(), 1e-6))
    got = compiled.add_rms_norm(None, residual, weight, 1e-6)
    close(got, plain.add_rms_norm(None, residual.float(), weight.float(), 1e-6))
    gate_up = 40 * torch.randn(rows, 2 * width).to(dtype)  # far into both tails of the sigmoid
    close(compiled.gated(gate_up, "silu"), plain.gated(gate_up.float(), "silu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("head_dim", [8, 24, 64, 128])
def test_heads_are_rotated_where_they_lie(
    compiled: CompiledKernels, head_dim: int, normed: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(head_dim)
    qkv = torch.randn(5, 10, head_dim).to(dtype)
    cos, sin = torch.randn(2, 5, head_dim // 2)
    weight = torch.randn(7, head_dim) if normed else None
    before = qkv.clone()
    got = compiled.rotate(qkv[:, :7], cos, sin, weight, 1e-6)
    want = TorchKernels().rotate(
        before[:, :7].float(), cos, sin, None if weight is None else weight.float(), 1e-6
    )
    tolerance = EXACT if dtype is torch.float32 else {"rtol": 3e-2, "atol": 3e-2}  # rounded twice
    torch.testing.assert_close(got.float(), want, **tolerance)
    assert torch.equal(qkv[:, 7:], before[:, 7:])  # the values stay


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_part_of_a_head_is_rotated(compiled: CompiledKernels, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    heads = torch.randn(5, 7, 32).to(dtype)
    cos, sin = torch.randn(2, 5, 8)
    got = compiled.rotate(heads.clone(), cos, sin, None, 1e-6)
    turned = TorchKernels().rotate(heads[..., :16].contiguous(), cos, sin, None, 1e-6)
    assert torch.equal(got, torch.cat((turned, heads[..., 16:]), dim=-1))


def test_activations_are_those_of_their_papers(compiled: CompiledKernels) -> None:
    torch.manual_seed(0)
    gate_up = 8 * torch.randn(5, 2 * 48)
    gate, up = gate_up.chunk(2, dim=-1)
    gelu = F.gelu(gate, approximate="tanh") * up
    low, near = gate.clamp(max=7), up.clamp(-7, 7)
    clamped = low * torch.sigmoid(1.702 * low) * (near + 1)
    for kernels in (compiled, TorchKernels()):
        close(kernels.gated(gate_up, "silu"), F.silu(gate) * up)
        close(kernels.gated(gate_up, "gelu_tanh"), gelu)
        close(kernels.gated(gate_up, "clamped_silu"), clamped)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_broken_stays_broken(compiled: CompiledKernels, bad: float) -> None:
    x = torch.ones(1, 32, dtype=torch.bfloat16)
    x[0, 3] = bad
    product = compiled.pack(torch.ones(16, 32, dtype=torch.bfloat16), None)
    assert product is not None
    assert not product(x).isfinite().any()
    assert not compiled.gated(x, "silu").isfinite().all()
    assert not compiled.add_rms_norm(None, x, torch.ones(32), 1e-6).isfinite().all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda k: k.gated(torch.ones(2, 8, dtype=torch.float16), "silu"), "float32 or bfloat16"),
        (lambda k: k.add_rms_norm(None, torch.ones(2, 8), torch.ones(7), 1e-6), "weight"),
        (lambda k: k.add_rms_norm(torch.ones(3, 8), torch.ones(2, 8), torch.ones(8), 1e-6), "x"),
        (
            lambda k: k.rotate(torch.ones(2, 3, 8), torch.ones(3, 4), torch.ones(3, 4), None, 0.0),
            "cos and sin",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    compiled: CompiledKernels, call: Callable[[CompiledKernels], Tensor], says: str
) -> None:
    with pytest.raises(RuntimeError, match=f"kvasir: {says}|{says}"):
        call(compiled)


def test_picked_for_what_they_can(compiled: CompiledKernels) -> None:
    cpu = torch.device("cpu")
    assert pick_kernels(cpu, torch.bfloat16).name == "compiled"
    assert pick_kernels(cpu, torch.float32).name == "compiled"
    assert pick_kernels(cpu, torch.float16).name == "torch"
    assert pick_kernels(torch.device("meta"), torch.float32).name == "torch"
    assert columns() in (16, 32)


def test_without_a_compiler_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    build.main(["AVX2"])
    assert "plain torch will compute: no C++ compiler" in capsys.readouterr().err
    assert not library_path("AVX2").exists()


def test_what_the_compiler_says_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'internal compiler error' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(build.BuildError, match="internal compiler error"):
        build.build("AVX2")
    assert not list(library_path("AVX2").parent.iterdir())


def test_slabs_hand_out_memory_that_does_not_overlap() -> None:
    slabs = Slabs()
    tensors = [slabs.take((n, 3), torch.bfloat16) for n in (1, 1000, 7, SLAB // 6, 5)]
    for i, tensor in enumerate(tensors):
        tensor.fill_(i)
    assert [tensor.unique().tolist() for tensor in tensors] == [[i] for i in range(5)]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)


def test_huge_pages_are_zeros_and_aligned() -> None:
    memory = huge_zeros(3_000_001)
    assert memory.shape == (3_000_001,)
    assert memory.data_ptr() % (2 << 20) == 0
    assert not memory.any()
