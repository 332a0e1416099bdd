"""The one place where weights multiply: what is quantised or packed is packed here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from workers.core.span import Span
from workers.kernels.api import Product
from workers.layers.build import Build
from workers.layers.weights import Target, Targets, nothing_of

# Rows of the checkpoint's tensor of that name. Several spans of one tensor: it is fused there.
Outputs: TypeAlias = Sequence[tuple[str, Span]]


def stacked(names: Sequence[str], spans: Sequence[Span]) -> Outputs:
    """Projections of the same name are rows of one tensor, one below the other."""
    named = list(zip(names, spans, strict=True))
    totals = {name: sum(span.total for other, span in named if other == name) for name in names}
    above = dict.fromkeys(names, 0)
    outputs: list[tuple[str, Span]] = []
    for name, span in named:
        start = above[name]
        outputs.append((name, Span(totals[name], start + span.first, start + span.end)))
        above[name] += span.total
    return outputs


class Linear(nn.Module):
    """y = x W^T + b. `outputs` are the projections stacked in W, top to bottom: several that read
    the same x are one matrix product. With a part of the `inputs`, y is this rank's part of a sum
    that its caller makes; the bias is in the first one's."""

    def __init__(self, inputs: Span, outputs: Outputs, build: Build, *, bias: bool) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, tuple(outputs)
        width = sum(span.size for _, span in outputs)
        self.shape = (width, inputs.size)
        self.dtype = build.dtype
        self.weight: Tensor | None = build.parameter(width, inputs.size)
        self.bias = build.parameter(width) if bias and inputs.first == 0 else None
        self._has_bias = bias
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
        assert self.weight is not None, "packed already"
        targets: Targets = []
        start = 0
        for name, span in self.outputs:
            rows = slice(start, start + span.size)
            start += span.size
            weight, shape = self.weight.data[rows], (span.total, self.inputs.total)
            part = (span.part, self.inputs.part)
            targets.append(Target(f"{prefix}{name}.weight", weight, shape, part))
            if self._has_bias:
                targets.append(self._bias_target(f"{prefix}{name}.bias", rows, span))
        return targets

    def _bias_target(self, name: str, rows: slice, span: Span) -> Target:
        if self.bias is None:  # another rank's
            return nothing_of(name, (span.total,))
        return Target(name, self.bias.data[rows], (span.total,), (span.part,))
