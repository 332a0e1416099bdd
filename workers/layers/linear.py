"""The one place where weights multiply: what is quantised or packed is packed here."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from workers.kernels.api import Product
from workers.layers.build import Build
from workers.layers.weights import Target, Targets


class Linear(nn.Module):
    """y = x W^T + b. `outputs` names the projections stacked in W, top to bottom, and their widths:
    several that read the same x are one matrix product."""

    def __init__(
        self, inputs: int, outputs: Mapping[str, int], build: Build, *, bias: bool
    ) -> None:
        super().__init__()
        self.outputs = dict(outputs)
        width = sum(outputs.values())
        self.shape = (width, inputs)
        self.dtype = build.dtype
        self.weight: Tensor | None = build.parameter(width, inputs)
        self.bias = build.parameter(width) if bias else None
        self._kernels = build.kernels
        self._product: Product | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., sum of the output widths]."""
        if self._product is not None:
            return self._product(x)
        assert self.weight is not None
        return F.linear(x, self.weight, self.bias)

    def pack(self) -> None:
        """Lay loaded weights out as they are read fastest, and let go of the plain ones."""
        assert self.weight is not None, "packed twice"
        self._product = self._kernels.pack(self.weight.data, self.bias)
        if self._product is not None:
            self.weight = None

    def targets(self, prefix: str) -> Targets:
        targets: Targets = {}
        start = 0
        for name, width in self.outputs.items():
            rows = slice(start, start + width)
            start += width
            for kind, parameter in (("weight", self.weight), ("bias", self.bias)):
                if parameter is not None:
                    view = parameter.data[rows]
                    targets[f"{prefix}{name}.{kind}"] = Target(view, tuple(view.shape))
        return targets
