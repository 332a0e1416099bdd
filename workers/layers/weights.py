"""How a layer says which checkpoint tensors it wants, and where each one goes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Target:
    """`view` is part of a parameter; a checkpoint tensor of `shape` is broadcast into it."""

    view: Tensor
    shape: tuple[int, ...]


# Checkpoint name -> where it goes. Fused weights are rows of one parameter.
Targets = dict[str, Target]


def whole(parameter: Tensor) -> Target:
    return Target(parameter.data, tuple(parameter.shape))
