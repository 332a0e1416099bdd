"""Root mean square normalisation (Zhang and Sennrich, 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workers.layers.build import Build
from workers.layers.weights import Targets, whole


class RMSNorm(nn.Module):
    """`unit_offset`: the checkpoint has weights as their distance from 1."""

    def __init__(self, width: int, eps: float, build: Build, *, unit_offset: bool = False) -> None:
        super().__init__()
        # In float32, as 1 + w would lose most of a small w in bfloat16.
        self.weight = build.parameter(width, dtype=torch.float32)
        self.eps = eps
        self._unit_offset = unit_offset
        self._kernels = build.kernels

    def forward(self, x: Tensor | None, residual: Tensor) -> Tensor:
        """Adds x [T, width], what the layer before has computed, to the residual stream in place,
        and normalises the sum."""
        return self._kernels.add_rms_norm(x, residual, self.weight, self.eps)

    def pack(self) -> None:
        if self._unit_offset:
            self.weight.data += 1

    def targets(self, prefix: str) -> Targets:
        return [whole(f"{prefix}.weight", self.weight)]
