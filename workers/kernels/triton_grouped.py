"""Products of rows sorted by expert on any GPU that Triton compiles for."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from workers.kernels import triton_ops

LEAST_ROWS, MOST_ROWS = 16, 128  # of a tile: what matrix units take, and what registers hold


class TritonGrouped:
    """One launch; the host need not know where rows end."""

    capturable = True

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        assert weight.is_contiguous() and (bias is None or bias.is_contiguous())
        self._weight, self._bias = weight, bias
        self.parts: tuple[Tensor, ...] = (weight,) if bias is None else (weight, bias)

    def __call__(self, x: Tensor, ends: Tensor) -> Tensor:
        experts, outputs, inputs = self._weight.shape
        assert x.is_contiguous() and x.shape[1] == inputs
        out = x.new_empty(len(x), outputs)
        shape = tiles(len(x), experts, x.dtype)
        # Each expert can leave one tile part empty, and has none without a row.
        count = min(len(x), triton.cdiv(len(x), shape["ROWS"]) + experts)
        if count == 0:
            return out
        triton_ops.grouped_product[(count, triton.cdiv(outputs, shape["COLUMNS"]))](
            *(x, self._weight, x if self._bias is None else self._bias, ends, out),
            EXPERTS=experts,
            INPUTS=inputs,
            OUTPUTS=outputs,
            BIAS=self._bias is not None,
            **shape,
        )
        return out


def tiles(rows: int, experts: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles as high as an expert has rows on average. They fit the shared memory that every GPU
    since 2020 has."""
    height = triton.next_power_of_2(triton.cdiv(rows, experts))
    height = max(LEAST_ROWS, min(height, MOST_ROWS))
    width = 64 if height <= 32 else 128
    return {
        "ROWS": height,
        "COLUMNS": width,
        "DEPTH": 128 // dtype.itemsize,
        "TABLE": triton.next_power_of_2(experts),
        "num_warps": 4 if height * width <= 64 * 128 else 8,
        "num_stages": 3,
    }
