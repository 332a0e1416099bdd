"""The gated feed-forward network (SwiGLU; Shazeer, 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from workers.layers.build import Build
from workers.layers.linear import Linear
from workers.layers.weights import Targets
from workers.models.config import ModelConfig


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig, build: Build) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up = Linear(width, {"gate_proj": inner, "up_proj": inner}, build, bias=bias)
        self.down = Linear(inner, {"down_proj": width}, build, bias=bias)
        self._kernels = build.kernels

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self.down(self._kernels.silu_mul(self.gate_up(x)))

    def targets(self, prefix: str) -> Targets:
        return self.gate_up.targets(prefix) | self.down.targets(prefix)
