"""The one place where weights multiply: what is quantised or packed is packed here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.layers.weights import Target, Targets, new_parameter

PACK_ROWS = 512  # rows that the packed layout is chosen for; it is as good for one


class Linear(nn.Module):
    """y = x W^T + b. `outputs` names the projections stacked in W, top to bottom, and their widths:
    several that read the same x are one matrix product."""

    def __init__(
        self,
        inputs: int,
        outputs: Mapping[str, int],
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.outputs = dict(outputs)
        width = sum(outputs.values())
        self.shape = (width, inputs)
        self.dtype = dtype
        self.weight: Tensor | None = new_parameter(width, inputs, dtype=dtype, device=device)
        self.bias = new_parameter(width, dtype=dtype, device=device) if bias else None
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., sum of the output widths]."""
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        assert self.weight is not None
        return F.linear(x, self.weight, self.bias)

    def pack(self) -> None:
        """Lay loaded weights out as oneDNN reads them, once instead of at every product, and let go
        of the plain ones: the same numbers in 0.65 to 0.9 of the time up to 512 rows. Only for
        bfloat16 on CPUs that have instructions for it."""
        weight = self.weight
        assert weight is not None, "packed twice"
        if (
            weight.device.type == "cpu"
            and weight.dtype is torch.bfloat16
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        ):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.data, PACK_ROWS)
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
