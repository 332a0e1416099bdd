"""Kernels compiled for this machine's CPU; see build.py and cpu/."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from workers.kernels.api import GroupedProduct, Product
from workers.kernels.grouped import Looped
from workers.kernels.huge_pages import Slabs
from workers.kernels.library import columns
from workers.kernels.torch_kernels import TorchKernels
from workers.models.architecture import Activation

DTYPES = (torch.float32, torch.bfloat16)


class CompiledKernels:
    """For float32 and bfloat16 on a CPU."""

    name = "compiled"

    def __init__(self) -> None:
        self._slabs = Slabs()

    def add_rms_norm(
        self, x: Tensor | None, residual: Tensor, weight: Tensor, eps: float
    ) -> Tensor:
        return torch.ops.kvasir.add_rms_norm(x, residual, weight, eps)

    def rotate(
        self, heads: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, eps: float
    ) -> Tensor:
        if 2 * cos.shape[-1] != heads.shape[-1]:
            return TorchKernels().rotate(heads, cos, sin, weight, eps)
        torch.ops.kvasir.rotate(heads, cos, sin, weight, eps)
        return heads

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        if activation != "silu":
            return TorchKernels().gated(gate_up, activation)
        return torch.ops.kvasir.silu_mul(gate_up)

    def pack(self, weight: Tensor, bias: Tensor | None) -> Product | None:
        """oneDNN's where the CPU multiplies bfloat16, else ours, which widens it in registers:
        torch's own product is 30 times slower there from 8 rows on."""
        if weight.dtype is not torch.bfloat16:
            return None
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return TorchKernels().pack(weight, bias)
        outputs, inputs = weight.shape
        panels = -(-outputs // columns())
        packed = self._slabs.take((panels, inputs, columns()), weight.dtype)
        torch.ops.kvasir.pack(weight, packed)
        if bias is not None:
            bias = F.pad(bias, (0, panels * columns() - outputs))
        return partial(_product, packed, bias, outputs)

    def pack_experts(self, weight: Tensor, bias: Tensor | None) -> GroupedProduct:
        """Ours where pack's is."""
        if weight.dtype is not torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return TorchKernels().pack_experts(weight, bias)
        experts, outputs, inputs = weight.shape
        panels = -(-outputs // columns())
        packed = self._slabs.take((experts, panels, inputs, columns()), weight.dtype)
        for plain, own in zip(weight, packed, strict=True):
            torch.ops.kvasir.pack(plain, own)
        if bias is not None:
            bias = F.pad(bias, (0, panels * columns() - outputs))
        return Looped(outputs, packed, bias, partial(_expert_product, outputs))

    def combine(self, rows: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        return TorchKernels().combine(rows, places, weights)


def _expert_product(outputs: int, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.kvasir.linear(x, packed, bias, outputs)


def _product(packed: Tensor, bias: Tensor | None, outputs: int, x: Tensor) -> Tensor:
    return torch.ops.kvasir.linear(x, packed, bias, outputs)
