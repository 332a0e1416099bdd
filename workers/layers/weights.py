"""How a layer says which checkpoint tensors it wants, and where each one goes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Target:
    """`view` is part of a parameter; a checkpoint tensor of `shape` is broadcast into it."""

    view: Tensor
    shape: tuple[int, ...]


# Checkpoint name -> where it goes. Fused weights are rows of one parameter.
Targets = dict[str, Target]


def new_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """Memory for weights that a loader fills; serving never needs gradients."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


def whole(parameter: Tensor) -> Target:
    return Target(parameter.data, tuple(parameter.shape))
