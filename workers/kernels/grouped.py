"""Products of rows sorted by expert, each with the weights of its expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

ALIGNED = 16  # bytes that rows of torch's grouped product on CUDA must be a multiple of

# x [n, inputs], weights and bias of one expert -> [n, outputs]
ExpertProduct: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Looped:
    """One product for each expert that has rows. On CPUs the fastest: a product of a few rows waits
    for its weights, not for the loop."""

    capturable = False

    def __init__(
        self, outputs: int, weight: Tensor, bias: Tensor | None, product: ExpertProduct
    ) -> None:
        self.outputs, self._weight, self._bias, self._product = outputs, weight, bias, product
        self.parts: tuple[Tensor, ...] = (weight,) if bias is None else (weight, bias)

    def __call__(self, x: Tensor, ends: Tensor) -> Tensor:
        out = x.new_empty(len(x), self.outputs)
        start = 0
        for expert, end in enumerate(ends.tolist()):
            if end > start:
                bias = None if self._bias is None else self._bias[expert]
                out[start:end] = self._product(x[start:end], self._weight[expert], bias)
            start = end
        return out


class GroupedMM:
    """torch's grouped product: one launch."""

    capturable = True

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self.parts: tuple[Tensor, ...] = (weight,) if bias is None else (weight, bias)

    def __call__(self, x: Tensor, ends: Tensor) -> Tensor:
        if len(x) == 0:
            return x.new_empty(0, self._weight.shape[1])
        out = F.grouped_mm(x, self._weight.transpose(1, 2), offs=ends)
        if self._bias is not None:
            rows = torch.arange(len(x), dtype=ends.dtype, device=x.device)
            out += self._bias[torch.searchsorted(ends, rows, right=True)]
        return out


def serves(weight: Tensor) -> bool:
    """Whether torch's grouped product with these weights is one launch: elsewhere it is a loop that
    waits for the GPU. In torch from 2.10 on, for GPUs from Hopper on."""
    if not (weight.is_cuda and weight.dtype is torch.bfloat16 and hasattr(F, "grouped_mm")):
        return False
    aligned = all(width * weight.element_size() % ALIGNED == 0 for width in weight.shape[1:])
    return aligned and torch.cuda.get_device_capability(weight.device) >= (9, 0)


def plain(weight: Tensor, bias: Tensor | None) -> Looped | GroupedMM:
    """With weights [experts, outputs, inputs] as they are."""
    if serves(weight):
        return GroupedMM(weight, bias)
    return Looped(weight.shape[1], weight, bias, F.linear)
