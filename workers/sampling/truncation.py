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
from workers.sampling.largest import top_values

ONE = 1 << 40  # weight of the likeliest token; 2^22 tokens of it still fit an int64
_LIKELIEST = 256  # top-p looks at so many tokens before it looks at all


def token_weights(logits: Tensor, params: list[SamplingParams]) -> Tensor:
    """logits: float32 [n, vocab], used up -> int64 [n, vocab]: 0 for what may not be drawn."""
    temperature = _column([p.temperature for p in params], logits.device)
    logits.sub_(logits.amax(-1, keepdim=True)).div_(temperature[:, None])
    # float32 has 24 bits: scaling by a power of two loses none, the floor is the only rounding
    scaled = logits.exp_().mul_(ONE)
    weights = scaled.long()
    threshold = _floor(scaled, params)
    if threshold is not None:
        _drop_below(threshold, weights)
    top_p = [row for row, p in enumerate(params) if p.top_p < 1.0]
    if top_p:
        share = _column([params[row].top_p for row in top_p], weights.device)
        threshold = weights.new_zeros(len(params))
        threshold[top_p] = _top_p(pick_rows(scaled, top_p), pick_rows(weights, top_p), share)
        _drop_below(threshold, weights)
    return weights


def _drop_below(threshold: Tensor, weights: Tensor) -> None:
    """Set to 0 what is less than its row's threshold [n]."""
    weights.masked_fill_(weights < threshold[:, None], 0)


def _floor(scaled: Tensor, params: list[SamplingParams]) -> Tensor | None:
    """The smallest weight that min-p and top-k leave each row, [n]. Each filter sees only the rows
    that ask for it: a neighbour may cost time, never a token. scaled: weights before rounding."""
    min_p = [row for row, p in enumerate(params) if p.min_p > 0.0]
    top_k = [row for row, p in enumerate(params) if 0 < p.top_k < scaled.shape[-1]]
    if not (min_p or top_k):
        return None
    threshold = torch.zeros(len(params), dtype=torch.int64, device=scaled.device)
    if min_p:
        share = _column([params[row].min_p for row in min_p], scaled.device)
        threshold[min_p] = (share.double() * ONE).ceil().long()
    if top_k:
        counts = [params[row].top_k for row in top_k]
        values = top_values(pick_rows(scaled, top_k), max(counts)).long()
        last = torch.tensor(counts, device=scaled.device)[:, None] - 1
        threshold[top_k] = torch.maximum(threshold[top_k], values.gather(1, last)[:, 0])
    return threshold


def pick_rows(matrix: Tensor, rows: list[int]) -> Tensor:
    """matrix[rows], or the matrix itself where that is all of it: a copy costs more than topk.
    `rows` ascend and do not repeat."""
    return matrix if len(rows) == len(matrix) else matrix[rows]


def _top_p(scaled: Tensor, weights: Tensor, share: Tensor) -> Tensor:
    """The largest thresholds [n] that keep `share` of each row's mass. weights: scaled, rounded and
    perhaps without its smallest, which other filters dropped."""
    mass = weights.sum(-1)
    need = (mass.double() * share.double()).ceil().long().clamp_(min=1)
    width = min(_LIKELIEST, weights.shape[-1])
    likeliest = top_values(scaled, width).long()  # [n, width] descending
    short = (likeliest.cumsum(-1) < need[:, None]).sum(-1)  # so many do not suffice
    threshold = likeliest.gather(1, short.clamp(max=width - 1)[:, None])[:, 0]
    for row, count in enumerate(short.tolist()):
        if count == width:
            threshold[row] = _search(scaled[row], weights[row], int(need[row]))
    return threshold


def _search(scaled: Tensor, weights: Tensor, need: int) -> int:
    """The largest threshold that keeps a mass of `need`, for one flat distribution [vocab].

    Floats above 0 are ordered as their bits are, so the leading bits sort them into buckets, eight
    an octave. Their masses, rounded, say where to look; integers decide.
    """
    bucket = scaled.view(torch.int32) >> 20
    mass = torch.bincount(bucket, weights=scaled.double()).flip(0).cumsum(0)
    at = len(mass) - 1 - int((mass < need).sum())
    while True:
        above = int(weights[bucket > at].sum())
        inside = weights[bucket == at].sort(descending=True).values
        total = inside.cumsum(0) + above
        if above >= need:
            at += 1
        elif len(inside) == 0 or int(total[-1]) < need:
            at -= 1
        else:
            return int(inside[(total < need).sum()])


def _column(values: list[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
