"""The largest of a vocabulary: what greedy decoding does at every step, and where top-k begins."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.kernels.compiled import DTYPES
from workers.kernels.library import load_library

_PIECE = 2048  # wide enough that a piece's maximum is found at the speed of memory
_SMALL_PIECE = 128  # narrow, since k of them are copied


def largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row and the first index where it stands: [n, vocab] -> two of [n]. NaN is
    larger than all. As x.max(-1), which on a CPU follows the index of every element and takes many
    times as long as reading them."""
    if x.device.type != "cpu":
        return x.max(-1)
    if x.dtype in DTYPES and x.stride(1) == 1 and load_library():
        return torch.ops.kvasir.argmax(x)
    return piecewise_largest(x)


def piecewise_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """largest() without a compiled kernel: the pieces' maxima first, then the index within one."""
    n, width = x.shape
    if width <= _PIECE:
        return x.max(-1)
    whole = width // _PIECE * _PIECE
    maxima = x[:, :whole].view(n, whole // _PIECE, _PIECE).amax(-1)
    if whole < width:
        maxima = torch.cat((maxima, x[:, whole:].amax(-1, keepdim=True)), -1)
    values, piece = maxima.max(-1)
    # The last piece is shorter: its end stands there several times, never before the first.
    columns = (piece[:, None] * _PIECE + torch.arange(_PIECE)).clamp_(max=width - 1)
    inside = x.gather(1, columns).max(-1).indices
    return values, piece * _PIECE + inside


def top_values(x: Tensor, k: int) -> Tensor:
    """The k largest of each row, descending, as x.topk(k).values: [n, vocab] -> [n, k].

    The pieces with the k largest maxima hold them all, so the rest is not looked at again.
    """
    n, width = x.shape
    pieces = width // _SMALL_PIECE
    if x.device.type == "cpu" and 2 * k <= pieces:
        whole = x[:, : pieces * _SMALL_PIECE].view(n, pieces, _SMALL_PIECE)
        likeliest = whole.amax(-1).topk(k).indices
        found = whole[torch.arange(n)[:, None], likeliest].flatten(1)
        x = torch.cat((found, x[:, pieces * _SMALL_PIECE :]), -1)
    return x.topk(k).values
