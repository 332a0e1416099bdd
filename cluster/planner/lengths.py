"""Histograms of token counts, in bins of equal ratio."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

BINS = 3.0  # for each factor of 2: a quarter wide


class Point(NamedTuple):
    tokens: float
    weight: float


class _Bin(NamedTuple):
    weight: float
    total: float


@dataclass(frozen=True)
class Lengths:
    """`bins`: weight and sum of tokens of each, so that means are exact."""

    bins: Mapping[int, _Bin] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Iterable[int]) -> Lengths:
        """Raises ValueError for a negative length."""
        bins: dict[int, _Bin] = {}
        for value in values:
            if value < 0:
                raise ValueError(f"{value} tokens")
            place = math.floor(math.log2(value) * BINS) if value else -1
            weight, total = bins.get(place, (0.0, 0.0))
            bins[place] = _Bin(weight + 1.0, total + value)
        return cls(bins)

    def plus(self, other: Lengths, keep: float = 1.0) -> Lengths:
        """Of both, where what stands here counts for `keep` of what it did."""
        bins = {place: _Bin(w * keep, t * keep) for place, (w, t) in self.bins.items()}
        for place, (weight, total) in other.bins.items():
            old = bins.get(place, _Bin(0.0, 0.0))
            bins[place] = _Bin(old.weight + weight, old.total + total)
        return Lengths(bins)

    def times(self, factor: float) -> Lengths:
        """Each longer by that."""
        return Lengths({place: _Bin(w, t * factor) for place, (w, t) in self.bins.items()})

    @property
    def weight(self) -> float:
        return sum(each.weight for each in self.bins.values())

    @property
    def mean(self) -> float:
        """0 while nothing was counted."""
        weight = self.weight
        return sum(each.total for each in self.bins.values()) / weight if weight else 0.0

    @property
    def mean_square(self) -> float:
        weight = self.weight
        return sum(p.weight * p.tokens * p.tokens for p in self) / weight if weight else 0.0

    def __iter__(self) -> Iterator[Point]:
        """Shortest first."""
        for _, (weight, total) in sorted(self.bins.items()):
            if weight > 0:
                yield Point(total / weight, weight)

    def quantile(self, part: float) -> float:
        """Within a bin; 0 while nothing was counted."""
        left, tokens = part * self.weight, 0.0
        for tokens, weight in self:
            left -= weight
            if left <= 0:
                return tokens
        return tokens
