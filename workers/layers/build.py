"""How the parts of a model are made: in which precision, where, and computed by what."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from workers.kernels.api import Kernels


@dataclass(frozen=True, slots=True)
class Build:
    dtype: torch.dtype
    device: torch.device
    kernels: Kernels

    def parameter(self, *shape: int) -> nn.Parameter:
        """Memory for weights that a loader fills; serving never needs gradients."""
        empty = torch.empty(shape, dtype=self.dtype, device=self.device)
        return nn.Parameter(empty, requires_grad=False)
