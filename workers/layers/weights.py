"""How a layer says which checkpoint tensors it wants, and where each one goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Target:
    """`view` is part of a parameter: the tensor `name` of the checkpoint, of `shape` there, is
    broadcast into it; only its `part` is read (one slice for each leading dimension that is not
    wanted whole), and then its last two dimensions swapped if `transposed`."""

    name: str
    view: Tensor
    shape: tuple[int, ...]
    part: tuple[slice, ...] = ()
    transposed: bool = False


# Fused weights are rows of one parameter; a tensor may go to several places.
Targets = list[Target]


def whole(name: str, parameter: Tensor) -> Target:
    return Target(name, parameter.data, tuple(parameter.shape))


def nothing_of(name: str, shape: tuple[int, ...]) -> Target:
    """A tensor that other ranks hold: known, but not read."""
    return Target(name, torch.empty(0), shape, (slice(0, 0),))


@runtime_checkable
class Packs(Protocol):
    """A module that does something with its weights once they are loaded."""

    def pack(self) -> None: ...
