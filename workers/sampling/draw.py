"""One exact random draw per row: inverse CDF over integer weights."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.core.rng import random_bits

BITS = 62  # of a random number: two limbs of 31, whose products fit an int64
_LIMB = 31
_MASK = (1 << _LIMB) - 1


def random_number(seed: int, position: int) -> int:
    """Uniform in 0 .. 2^62 - 1."""
    return random_bits(seed, position) >> (64 - BITS)


def draw(weights: Tensor, numbers: Tensor) -> Tensor:
    """One token per row, [n]. weights: int64 [n, vocab], used up; numbers: int64 [n]."""
    cumulative = weights.cumsum_(-1)
    target = share_of(numbers, cumulative[:, -1])
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]


def share_of(numbers: Tensor, totals: Tensor) -> Tensor:
    """floor(number * total / 2^62), exactly. Both int64, in 0 .. 2^62 - 1 (a total 2^62 too)."""
    high, low = numbers >> _LIMB, numbers & _MASK
    total_high, total_low = totals >> _LIMB, totals & _MASK
    # Two products below 2^62 - 2^32 + 2 and a carry below 2^31: less than 2^63.
    middle = high * total_low + low * total_high + (low * total_low >> _LIMB)
    return high * total_high + (middle >> _LIMB)
