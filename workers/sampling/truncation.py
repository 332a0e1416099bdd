"""Which tokens may be drawn: min-p, top-k, top-p over integer weights, never sorting a vocabulary.

A weight is floor(exp((logit - max) / temperature) * 2^40). Sums of integers are exact, so neither
the order of addition nor the rest of the batch can change a row's result. Every filter is a
threshold; tokens that tie with the last one kept are kept too, so the set does not depend on how
a device orders equal values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from workers.core.request import SamplingParams
from workers.sampling.buffer import Packer, Span
from workers.sampling.largest import top_values

ONE = 1 << 40  # weight of the likeliest token; 2^22 tokens of it still fit an int64
_LIKELIEST = 256  # top-p looks at so many tokens before it looks at all
_SHIFTS = (20, 10, 0)  # of a float's bits: eleven digits first (eight an octave), then ten, ten

# (scaled, weights, need) -> the largest thresholds [n] that keep a mass of need [n] in each row.
# weights: int64 [n, vocab], perhaps without the smallest; scaled: float32, before rounding
TopP: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Filters:
    """Of the n rows of a group that draw. `top_k_rows` and `top_p_rows` are indices among them,
    ascending; each filter sees only the rows that ask for it: a neighbour may cost time, never a
    token."""

    temperature: Span  # [n]
    min_p: Span | None  # [n]
    top_k_rows: Span
    last: Span  # top_k - 1
    most_k: int
    top_p_rows: Span
    share: Span


def plan_filters(params: list[SamplingParams], vocab: int, packer: Packer) -> Filters:
    top_k = [row for row, p in enumerate(params) if 0 < p.top_k < vocab]
    top_p = [row for row, p in enumerate(params) if p.top_p < 1.0]
    some_min_p = any(p.min_p > 0.0 for p in params)
    return Filters(
        temperature=packer.floats(p.temperature for p in params),
        min_p=packer.floats(p.min_p for p in params) if some_min_p else None,
        top_k_rows=packer.ints(top_k),
        last=packer.ints(params[row].top_k - 1 for row in top_k),
        most_k=max((params[row].top_k for row in top_k), default=0),
        top_p_rows=packer.ints(top_p),
        share=packer.floats(params[row].top_p for row in top_p),
    )


def token_weights(
    logits: Tensor, largest: Tensor, filters: Filters, data: Tensor, top_p: TopP
) -> Tensor:
    """logits: float32 [n, vocab], used up; largest: of each row -> int64 [n, vocab], 0 for what may
    not be drawn. `data`: the plan's buffer. A row whose largest is not finite gets any weights."""
    logits.sub_(largest[:, None]).div_(filters.temperature.of(data)[:, None])
    # float32 has 24 bits: scaling by a power of two loses none, the floor is the only rounding
    scaled = logits.exp_().mul_(ONE)
    weights = scaled.long()
    threshold = None
    if filters.min_p is not None:
        threshold = (filters.min_p.of(data).double() * ONE).ceil().long()
    if filters.top_k_rows.size:
        threshold = _top_k(scaled, threshold, filters, data)
    if threshold is not None:
        _drop_below(threshold, weights)
    if filters.top_p_rows.size:
        rows = filters.top_p_rows.of(data)
        wanted = pick_rows(weights, rows)
        need = _needed(wanted, filters.share.of(data))
        threshold = weights.new_zeros(len(weights))
        threshold[rows] = top_p(pick_rows(scaled, rows), wanted, need)
        _drop_below(threshold, weights)
    return weights


def pick_rows(matrix: Tensor, rows: Tensor) -> Tensor:
    """matrix[rows], or the matrix itself where that is all of it: a copy costs more than topk.
    `rows` ascend and do not repeat."""
    return matrix if len(rows) == len(matrix) else matrix.index_select(0, rows)


def likeliest_first(scaled: Tensor, weights: Tensor, need: Tensor) -> Tensor:
    """The TopP of a CPU: most distributions need few tokens. The host looks at what came out, so on
    a device it would have to wait."""
    width = min(_LIKELIEST, weights.shape[-1])
    values = top_values(scaled, width)  # [n, width] descending
    likeliest = values.long()
    short = (likeliest.cumsum(-1) < need[:, None]).sum(-1)  # so many do not suffice
    threshold = likeliest.gather(1, short.clamp(max=width - 1)[:, None])[:, 0]
    flat = (short == width) & (values[:, 0] == ONE)  # where logits are unusable it is not
    for row in flat.nonzero()[:, 0].tolist():
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


def digit_by_digit(scaled: Tensor, weights: Tensor, need: Tensor) -> Tensor:
    """The TopP of a device: the same work for every distribution, and nothing is read back. (On a
    CPU it takes four times as long as a search that looks.)

    A weight has 24 significant bits, so it is a float too, and ordered as its bits are. Integers
    sum up the mass of each leading digit, in any order; the digit in which the need is met is the
    threshold's, and the next ones are found among the weights that share it.
    """
    keys = weights.to(torch.float32).view(torch.int32)
    found = torch.zeros_like(need)
    for shift in _SHIFTS:
        digit = (keys >> shift).bitwise_and_(0x7FF if shift == _SHIFTS[0] else 0x3FF).long()
        mass = weights.new_zeros(len(weights), 1 << 11).scatter_add_(1, digit, weights)
        reached = mass.flip(-1).cumsum(-1).flip(-1)  # [n, digits]: by a digit and all above it
        # Not to fall below 0 where logits are unusable and the sums arbitrary.
        at = (reached >= need[:, None]).sum(-1, keepdim=True).sub_(1).clamp_(min=0)
        need = need - (reached - mass).gather(1, at)[:, 0]
        weights = weights.masked_fill(digit != at, 0)
        found += at[:, 0] << shift
    return found.to(torch.int32).view(torch.float32).long()


def _needed(weights: Tensor, share: Tensor) -> Tensor:
    """The mass [n] that top-p must keep of each row: at least 1, at most all."""
    mass = weights.sum(-1)
    need = (mass.double() * share.double()).ceil().long().clamp_(min=1)
    return torch.minimum(need, mass)  # a double may round a mass up


def _top_k(scaled: Tensor, floor: Tensor | None, filters: Filters, data: Tensor) -> Tensor:
    """`floor` [n], raised to the k-th largest weight of each row that asks for it."""
    rows = filters.top_k_rows.of(data)
    values = top_values(pick_rows(scaled, rows), filters.most_k).long()
    last = values.gather(1, filters.last.of(data)[:, None])[:, 0]
    threshold = last.new_zeros(len(scaled)) if floor is None else floor
    threshold[rows] = torch.maximum(threshold[rows], last)
    return threshold


def _drop_below(threshold: Tensor, weights: Tensor) -> None:
    """Set to 0 what is less than its row's threshold [n]."""
    weights.masked_fill_(weights < threshold[:, None], 0)
