"""How the parts of a model are made: in which precision, where, by what and by which ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from workers.kernels.api import Kernels
from workers.parallel.group import SINGLE, Ranks


@dataclass(frozen=True, slots=True)
class Build:
    dtype: torch.dtype
    device: torch.device
    kernels: Kernels
    ranks: Ranks = SINGLE
    redundant_experts: int = 0  # slots for copies of hot experts, over the ranks that share them

    def parameter(self, *shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
        """Memory for weights that a loader fills; serving never needs gradients. `dtype`: other
        than that of most."""
        empty = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        return nn.Parameter(empty, requires_grad=False)
