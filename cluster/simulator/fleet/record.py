"""What requests saw, as it happens: when their tokens came, in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from cluster.simulator.fleet.steps import Line

BINS = 200.0  # of a histogram, for each factor of e: half a percent wide


class Histogram:
    """Seconds, counted in bins of equal ratio."""

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0
        self._bins: Counter[int] = Counter()

    def add(self, seconds: float, weight: int = 1) -> None:
        self.count += weight
        self.total_s += seconds * weight
        self._bins[_bin(seconds)] += weight

    def add_line(self, line: Line, weight: int = 1) -> None:
        """Every step of it."""
        first_s, growth_s, count = line
        if growth_s <= 0 or count == 1:
            self._bins[_bin(first_s)] += count * weight
        else:
            place = 0
            while place < count:
                at = _bin(first_s + place * growth_s)
                edge_s = math.exp((at + 1) / BINS)
                beyond = min(count, max(place + 1, math.ceil((edge_s - first_s) / growth_s)))
                self._bins[at] += (beyond - place) * weight
                place = beyond
        self.count += count * weight
        self.total_s += (count * first_s + growth_s * (count * (count - 1) // 2)) * weight

    @property
    def mean(self) -> float:
        return self.total_s / self.count if self.count else 0.0

    def quantile(self, part: float) -> float:
        """Within half a percent; 0 while it is empty."""
        left = part * self.count
        for place in sorted(self._bins):
            left -= self._bins[place]
            if left < 0 or left == 0 == part:
                return math.exp((place + 0.5) / BINS)
        return math.exp((max(self._bins) + 0.5) / BINS) if self._bins else 0.0

    def points(self, most: int = 200) -> list[tuple[float, float]]:
        """(seconds, part of all that is not longer), for a plot."""
        seen, found = 0, []
        for place in sorted(self._bins):
            seen += self._bins[place]
            found.append((math.exp((place + 1) / BINS), seen / self.count))
        return found[:: max(1, len(found) // most)] + found[-1:]


def _bin(seconds: float) -> int:
    return math.floor(math.log(seconds) * BINS) if seconds > 0 else -10_000


@dataclass(slots=True)
class Timeline:
    """When one request's tokens came. `gaps`: where the times between them go."""

    arrived: float
    gaps: Histogram
    first: float | None = None
    last: float = 0.0
    tokens: int = 0

    def token(self, at: float) -> None:
        if self.first is None:
            self.first = at
        else:
            self.gaps.add(at - self.last)
        self.last = at
        self.tokens += 1

    @property
    def ttft_s(self) -> float:
        return math.inf if self.first is None else self.first - self.arrived

    @property
    def itl_s(self) -> float | None:
        """The mean; None for an answer of one token."""
        if self.first is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1)


@dataclass(slots=True)
class Journal:
    """`gaps` by class; `lines` of the requests under way, by their id."""

    gaps: dict[str, Histogram] = field(default_factory=dict)
    lines: dict[str, Timeline] = field(default_factory=dict)

    def begin(self, request_id: str, slo_class: str, now: float) -> Timeline:
        gaps = self.gaps.setdefault(slo_class, Histogram())
        line = self.lines[request_id] = Timeline(now, gaps)
        return line
