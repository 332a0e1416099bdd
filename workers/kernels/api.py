"""The seam: operations on a step's T tokens that a device may fuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from torch import Tensor

from workers.models.architecture import Activation

# x [T, inputs] -> x W^T + b, for a weight that was laid out once. Called thousands of times.
Product: TypeAlias = Callable[[Tensor], Tensor]


class GroupedProduct(Protocol):
    """The products of some experts with their weights, which lie in `parts`, [experts, ...] each:
    row e is all that is expert e's, so experts are moved by writing rows between two steps."""

    parts: tuple[Tensor, ...]
    capturable: bool  # into a CUDA graph: the host need not know where rows end

    def __call__(self, x: Tensor, ends: Tensor) -> Tensor:
        """x [n, inputs] sorted by expert, of which expert e's rows end at ends[e] (int32)
        -> [n, outputs]."""


class Kernels(Protocol):
    """Results are rounded to the dtype of x once; what is in between is float32 at least."""

    name: str

    def add_rms_norm(
        self, x: Tensor | None, residual: Tensor, weight: Tensor, eps: float
    ) -> Tensor:
        """residual [T, W] += x, in place, unless x is None; returns the RMS norm of its rows, times
        weight [W] (float32)."""

    def rotate(
        self, heads: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, eps: float
    ) -> Tensor:
        """heads [T, H, D], of which the leading R are rotated by cos and sin [T, R / 2], each head
        first RMS-normed and multiplied by its row of weight [H, D] if there is one; those three are
        float32. May change `heads` in place; halves are paired, as Hugging Face checkpoints
        expect."""

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """[T, 2 I] -> [T, I]: activation of the first half times the second."""

    def pack(self, weight: Tensor, bias: Tensor | None) -> Product | None:
        """The product with weight [outputs, inputs], laid out as it is read fastest; the caller
        lets the plain weight go. None: the plain one is as good."""

    def pack_experts(self, weight: Tensor, bias: Tensor | None) -> GroupedProduct:
        """As pack, for weights [experts, outputs, inputs] and biases [experts, outputs]."""

    def combine(self, rows: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        """Each token's rows, times its weights (float32), summed in their order: rows [n, W],
        places (which rows) and weights [T, active] -> [T, W]."""
