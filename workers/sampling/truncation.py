"""Which tokens may be drawn: min-p, top-k, top-p over integer weights, never sorting a vocabulary.

A weight is floor(exp((logit - max) / temperature) * 2^40). Sums of integers are exact, so neither
the order of addition nor the rest of the batch can change a row's result. Every filter is a
threshold; tokens that tie with the last one kept are kept too, so the set does not depend on how
a device orders equal values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.core.request import SamplingParams

ONE = 1 << 40  # weight of the likeliest token; 2^22 tokens of it still fit an int64
_LADDER = (64, 512, 8192)  # top-p looks at so many of the likeliest tokens before it bisects


def token_weights(logits: Tensor, params: list[SamplingParams]) -> Tensor:
    """logits: float32 [n, vocab], used up -> int64 [n, vocab]: 0 for what may not be drawn."""
    temperature = _column([p.temperature for p in params], logits.device)
    logits.sub_(logits.amax(-1, keepdim=True)).div_(temperature[:, None])
    # float32 has 24 bits: scaling by a power of two loses none, the floor is the only rounding
    weights = logits.exp_().mul_(ONE).long()
    threshold = _thresholds(weights, params)
    if threshold is None:
        return weights
    return torch.where(weights >= threshold[:, None], weights, 0)


def _thresholds(weights: Tensor, params: list[SamplingParams]) -> Tensor | None:
    """The smallest weight that each row keeps, [n]. Each filter sees only the rows that ask for it:
    a neighbour may cost time, never a token. Top-p counts the mass that the two others leave."""
    min_p = [row for row, p in enumerate(params) if p.min_p > 0.0]
    top_k = [row for row, p in enumerate(params) if 0 < p.top_k < weights.shape[-1]]
    top_p = [row for row, p in enumerate(params) if p.top_p < 1.0]
    if not (min_p or top_k or top_p):
        return None
    threshold = weights.new_zeros(len(params))
    if min_p:
        share = _column([params[row].min_p for row in min_p], weights.device)
        threshold[min_p] = (share.double() * ONE).ceil().long()
    if top_k:
        counts = torch.tensor([params[row].top_k for row in top_k], device=weights.device)
        kth = _kth_largest(pick_rows(weights, top_k), counts)
        threshold[top_k] = torch.maximum(threshold[top_k], kth)
    if top_p:
        share = _column([params[row].top_p for row in top_p], weights.device)
        threshold[top_p] = _top_p(pick_rows(weights, top_p), threshold[top_p], share)
    return threshold


def pick_rows(matrix: Tensor, rows: list[int]) -> Tensor:
    """matrix[rows], or the matrix itself where that is all of it: a copy costs more than topk.
    `rows` ascend and do not repeat."""
    return matrix if len(rows) == len(matrix) else matrix[rows]


def _kth_largest(weights: Tensor, k: Tensor) -> Tensor:
    """k: int64 [n], each in 1..vocab."""
    largest = weights.topk(int(k.max()), dim=-1).values
    return largest.gather(1, k[:, None] - 1)[:, 0]


def _top_p(weights: Tensor, floor: Tensor, share: Tensor) -> Tensor:
    """The largest thresholds, not below `floor` [n], that keep `share` of the mass above it."""
    kept = torch.where(weights >= floor[:, None], weights, 0) if bool(floor.any()) else weights
    mass = kept.sum(-1)
    need = (mass.double() * share.double()).ceil().long().clamp_(min=1)
    threshold = torch.zeros_like(need)
    undecided = list(range(len(weights)))
    for width in _LADDER:
        width = min(width, weights.shape[-1])
        largest = pick_rows(weights, undecided).topk(width, dim=-1).values  # [m, width] descending
        short = (largest.cumsum(-1) < need[undecided, None]).sum(-1)  # so many do not suffice
        threshold[undecided] = largest.gather(1, short.clamp(max=width - 1)[:, None])[:, 0]
        undecided = [row for row, n in zip(undecided, short.tolist(), strict=True) if n == width]
        if not undecided:
            return threshold
    for row in undecided:
        threshold[row] = _bisect(weights[row], int(need[row]), high=int(threshold[row]))
    return threshold


def _bisect(weights: Tensor, need: int, high: int) -> int:
    """The largest threshold in [0, high] that keeps a mass of `need`. weights: [vocab], of a
    distribution too flat for the ladder; each step leaves only those not decided yet."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        above = weights >= middle
        mass = int(weights[above].sum())
        if mass >= need:
            low, weights = middle, weights[above]
        else:
            high, weights, need = middle - 1, weights[~above], need - mass
    return low


def _column(values: list[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
