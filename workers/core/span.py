"""Which part of a dimension a rank holds."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """Places first..end-1 of a dimension that is `total` long in the checkpoint."""

    total: int
    first: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.first

    @property
    def part(self) -> slice:
        return slice(self.first, self.end)

    def of(self, unit: int) -> Span:
        """The span where each place is `unit` wide: of heads -> of their dimensions."""
        return Span(self.total * unit, self.first * unit, self.end * unit)

    def within(self, outer: Span) -> slice:
        """Its places among those of a rank that holds `outer`, which has all of them."""
        assert outer.first <= self.first and self.end <= outer.end, f"{self} is not in {outer}"
        return slice(self.first - outer.first, self.end - outer.first)


def whole(total: int) -> Span:
    return Span(total, 0, total)


def share(total: int, rank: int, size: int) -> Span:
    """An equal share of `total`, which `size` must divide; with more ranks than places, which then
    must be a multiple of them, neighbours hold the same place (KV heads)."""
    if size > total:
        assert size % total == 0, f"{total} places for {size} ranks"
        place = rank // (size // total)
        return Span(total, place, place + 1)
    assert total % size == 0, f"{total} places for {size} ranks"
    width = total // size
    return Span(total, rank * width, (rank + 1) * width)
