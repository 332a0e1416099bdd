"""The seam: operations on a step's T tokens that a device may fuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from torch import Tensor

# x [T, inputs] -> x W^T + b, for a weight that was laid out once. Called thousands of times.
Product: TypeAlias = Callable[[Tensor], Tensor]


class Kernels(Protocol):
    """Results are rounded to the dtype of x once; what is in between is float32 at least."""

    name: str

    def add_rms_norm(
        self, x: Tensor | None, residual: Tensor, weight: Tensor, eps: float
    ) -> Tensor:
        """residual [T, W] += x, in place, unless x is None; returns the RMS norm of its rows, times
        weight [W]."""

    def rotate(
        self, heads: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, eps: float
    ) -> Tensor:
        """heads [T, H, D] rotated by cos and sin [T, D / 2] (float32), each head first RMS-normed
        and multiplied by its row of weight [H, D] if there is one. May change `heads` in place;
        halves are paired, as Hugging Face checkpoints expect."""

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2 I] -> [T, I]: silu of the first half times the second (SwiGLU)."""

    def pack(self, weight: Tensor, bias: Tensor | None) -> Product | None:
        """The product with weight [outputs, inputs], laid out as it is read fastest; the caller
        lets the plain weight go. None: the plain one is as good."""
