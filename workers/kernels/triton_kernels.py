"""Kernels for GPUs, in Triton: one pass over memory each, where torch takes three to six."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from workers.kernels import triton_ops
from workers.kernels.api import GroupedProduct, Product
from workers.kernels.grouped import GroupedMM, serves
from workers.kernels.torch_kernels import TorchKernels
from workers.kernels.triton_grouped import TritonGrouped
from workers.models.architecture import Activation

ROTATED_HEADS = 8  # of one token in one program
ACTIVATED = 1024  # elements of one program
COMBINED = 1024


class TritonKernels:
    name = "triton"

    def add_rms_norm(
        self, x: Tensor | None, residual: Tensor, weight: Tensor, eps: float
    ) -> Tensor:
        tokens, width = residual.shape
        assert residual.is_contiguous() and (x is None or x.is_contiguous())
        out = torch.empty_like(residual)
        tile = triton.next_power_of_2(width)
        triton_ops.add_rms_norm[(tokens,)](
            *(residual if x is None else x, residual, weight, out, eps),
            WIDTH=width,
            TILE=tile,
            ADD=x is not None,
            num_warps=_warps(tile),
        )
        return out

    def rotate(
        self, heads: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, eps: float
    ) -> Tensor:
        """In place; `heads` may be a slice of the heads of a wider tensor."""
        if 2 * cos.shape[-1] != heads.shape[-1]:
            return TorchKernels().rotate(heads, cos, sin, weight, eps)
        tokens, count, width = heads.shape
        assert heads.stride()[1:] == (width, 1) and cos.is_contiguous() and sin.is_contiguous()
        triton_ops.rotate[(tokens, triton.cdiv(count, ROTATED_HEADS))](
            *(heads, cos, sin, heads if weight is None else weight, eps, heads.stride(0)),
            HEADS=count,
            WIDTH=width,
            ROWS=ROTATED_HEADS,
            TILE=triton.next_power_of_2(width // 2),
            NORM=weight is not None,
            num_warps=4,
        )
        return heads

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        tokens, both = gate_up.shape
        assert gate_up.is_contiguous()
        out = gate_up.new_empty(tokens, both // 2)
        tile = min(ACTIVATED, triton.next_power_of_2(both // 2))
        triton_ops.gated[(tokens, triton.cdiv(both // 2, tile))](
            gate_up, out, WIDTH=both // 2, TILE=tile, ACTIVATION=activation, num_warps=4
        )
        return out

    def pack(self, weight: Tensor, bias: Tensor | None) -> Product | None:
        """cuBLAS reads plain weights."""
        return None

    def pack_experts(self, weight: Tensor, bias: Tensor | None) -> GroupedProduct:
        """torch's where it is one launch."""
        return GroupedMM(weight, bias) if serves(weight) else TritonGrouped(weight, bias)

    def combine(self, rows: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        width = rows.shape[1]
        tokens, active = places.shape
        assert rows.is_contiguous() and places.is_contiguous() and weights.is_contiguous()
        out = rows.new_empty(tokens, width)
        tile = min(COMBINED, triton.next_power_of_2(width))
        triton_ops.combine[(tokens, triton.cdiv(width, tile))](
            *(rows, places, weights, out), WIDTH=width, TILE=tile, ACTIVE=active, num_warps=4
        )
        return out


def _warps(tile: int) -> int:
    """So many that a thread holds 8 to 16 elements of a row."""
    return max(1, min(16, tile // 512))
