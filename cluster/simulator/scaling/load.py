"""Requests whose rate changes over hours: from a curve, or a sine."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workers.core.errors import ConfigError

BIN_S = 10.0  # in which the rate is the same

Rate = Callable[[float], float]  # seconds to requests a second


class Shape(NamedTuple):
    """Lengths of one request, in tokens; `uncached`: of its prompt."""

    prompt: int
    output: int
    uncached: int


class Arrival(NamedTuple):
    at_s: float
    shape: Shape


@dataclass(frozen=True, slots=True)
class Curve:
    """Rates at equal distances, a line between two."""

    step_s: float
    rates: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> Curve:
        """A CSV with window_start_s and rps. Raises ConfigError."""
        try:
            with path.open(encoding="utf-8", newline="") as lines:
                rows = [
                    (float(r["window_start_s"]), float(r["rps"])) for r in csv.DictReader(lines)
                ]
        except (OSError, KeyError, ValueError) as error:
            raise ConfigError(f"{path} is no rate curve: {error}") from None
        if len(rows) < 2:
            raise ConfigError(f"{path} has fewer than two rates")
        return cls(rows[1][0] - rows[0][0], tuple(rate for _, rate in rows))

    def at(self, seconds: float) -> float:
        place = min(max(0.0, seconds / self.step_s), len(self.rates) - 1.0)
        low = min(int(place), len(self.rates) - 2)
        part = place - low
        return self.rates[low] * (1 - part) + self.rates[low + 1] * part

    def scaled(self, mean: float) -> Curve:
        factor = mean * len(self.rates) / sum(self.rates)
        return Curve(self.step_s, tuple(rate * factor for rate in self.rates))


def sine(low: float, high: float, period_s: float) -> Rate:
    """Begins at `low`."""
    middle, swing = (low + high) / 2, (high - low) / 2
    return lambda seconds: middle - swing * math.cos(2 * math.pi * seconds / period_s)


def arrivals(
    rate: Rate, shapes: Sequence[Shape], window_s: float, bursts: float = 1.0, seed: int = 1
) -> Iterator[Arrival]:
    """Poisson within bins of BIN_S whose rates vary so that counts of a bin have the index of
    dispersion `bursts`; lengths are drawn from `shapes`."""
    rng = np.random.default_rng(seed)
    for place in range(math.ceil(window_s / BIN_S)):
        begin = place * BIN_S
        mean = rate(begin + BIN_S / 2) * min(BIN_S, window_s - begin)
        if bursts > 1.0 and mean > 0:
            mean = rng.gamma(mean / (bursts - 1.0), bursts - 1.0)
        count = int(rng.poisson(mean))
        times = np.sort(rng.uniform(begin, min(begin + BIN_S, window_s), count))
        picks = rng.integers(0, len(shapes), count)
        for at_s, pick in zip(times.tolist(), picks.tolist(), strict=True):
            yield Arrival(at_s, shapes[pick])
