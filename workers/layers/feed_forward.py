"""The gated feed-forward network (SwiGLU and its like; Shazeer, 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from workers.core.span import share, whole
from workers.layers.build import Build
from workers.layers.linear import Linear, stacked
from workers.layers.weights import Targets
from workers.models.architecture import DenseFeedForward, Names


class FeedForward(nn.Module):
    """A rank holds a share of the inner width."""

    def __init__(self, config: DenseFeedForward, hidden: int, names: Names, build: Build) -> None:
        super().__init__()
        self._ranks = ranks = build.ranks.tensor
        outer, inner = whole(hidden), share(config.width, ranks.rank, ranks.size)
        outputs = stacked(names.gate_up, (inner, inner))
        self.gate_up = Linear(outer, outputs, build, bias=config.bias)
        self.down = Linear(inner, [(names.down, outer)], build, bias=config.bias)
        self._activation = config.activation
        self._kernels = build.kernels

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        inner = self._kernels.gated(self.gate_up(x), self._activation)
        return self._ranks.all_reduce(self.down(inner))

    def targets(self, prefix: str) -> Targets:
        return self.gate_up.targets(prefix) + self.down.targets(prefix)
