"""Rates of the past, in bins of equal width, for as long as they may tell something."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

LEAST_CYCLE = 12  # bins
SURE = 0.5  # autocorrelation from which a cycle is one
ALIKE = 0.9  # part of the highest peak
NEAR = 3  # bins
WIDE = 0.12  # part of a period: the top of a peak


class History:
    """Mean rates of bins of `bin_s`, the newest `kept`; a bin without a sample has its
    predecessor's."""

    def __init__(self, bin_s: float, kept: int) -> None:
        self.bin_s = bin_s
        self._kept = kept
        self._rates: deque[float] = deque(maxlen=kept)
        self._last = 0  # number of the newest bin
        self._sum, self._count = 0.0, 0

    def add(self, rate: float, now: float) -> None:
        place = int(now // self.bin_s)
        if not self._rates:
            self._last = place
            self._rates.append(rate)
        for _ in range(min(place - self._last, self._kept)):
            self._rates.append(rate)
            self._sum, self._count = 0.0, 0
        self._last = max(self._last, place)
        self._sum += rate
        self._count += 1
        self._rates[-1] = self._sum / self._count

    @property
    def most(self) -> float:
        return max(self._rates, default=0.0)

    def around(self, when: float, bins: int) -> float | None:
        """Mean of so many bins on either side and the one of that time, as far as they are known;
        None where that one is not."""
        here = self.at(when)
        if here is None or not bins:
            return here
        known = [self.at(when + step * self.bin_s) for step in range(-bins, bins + 1)]
        rates = [rate for rate in known if rate is not None]
        return sum(rates) / len(rates)

    def at(self, when: float) -> float | None:
        """At that time, a line between two bins; None where nothing is known."""
        place = when / self.bin_s - 0.5 - (self._last - len(self._rates) + 1)
        if not -0.5 <= place <= len(self._rates) - 0.5:
            return None
        place = min(max(place, 0.0), len(self._rates) - 1.0)
        low = min(int(place), len(self._rates) - 2)
        if low < 0:
            return None
        part = place - low
        return self._rates[low] * (1 - part) + self._rates[low + 1] * part

    def known(self, until: float) -> int:
        """Bins up to that time."""
        return int(until // self.bin_s) - (self._last - len(self._rates))

    def mean(self, until: float, bins: int) -> float | None:
        """Of so many bins that end there; None where one is not known."""
        last = self.known(until) - 1
        if bins < 1 or last - bins + 1 < 0 or last >= len(self._rates):
            return None
        return sum(self._rates[place] for place in range(last - bins + 1, last + 1)) / bins

    def cycle_s(self) -> float | None:
        """The period that the load repeats with, seen one and a half times; None where there is
        none. By autocorrelation: its highest peak beyond its first dip below zero, or the first
        one that is nearly as high, as twice a period is a period too."""
        count = len(self._rates)
        if count < 4 * LEAST_CYCLE:
            return None
        rates = np.array(self._rates)
        rates -= rates.mean()
        spectrum = np.fft.rfft(rates, 2 * count)
        both = np.fft.irfft(spectrum * np.conj(spectrum))[: 2 * count // 3 + 1]
        both *= count / np.arange(count, count - len(both), -1)  # as many products at each lag
        if both[0] <= 0:
            return None
        both /= both[0]
        below = np.flatnonzero(both < 0)
        if not len(below):
            return None
        first = max(LEAST_CYCLE, int(below[0]))
        if first >= len(both) - 1:
            return None
        best = first + int(np.argmax(both[first:]))
        # A peak, not the edge of what is known.
        if both[best] < SURE or best == len(both) - 1:
            return None
        for part in range(best // first, 1, -1):
            near = range(max(first, best // part - NEAR), best // part + NEAR + 1)
            if near and both[near].max() > ALIKE * both[best]:
                best = near[int(np.argmax(both[near]))]
                break
        wide = max(2, round(WIDE * best))
        period = _vertex(both, best, wide)
        for times in (2, 3):  # an error of the peak is so much smaller a part of more periods
            later = round(times * period)
            if later + wide < len(both) and both[later] > ALIKE * both[best]:
                period = _vertex(both, later, wide) / times
        return period * self.bin_s


def _vertex(values: NDArray[np.float64], peak: int, wide: int) -> float:
    """Where the parabola around a noisy peak is highest."""
    low, high = max(0, peak - wide), min(len(values), peak + wide + 1)
    bent, slope, _ = np.polyfit(np.arange(low, high) - peak, values[low:high], 2)
    moved = -slope / (2 * bent) if bent < 0 else 0.0
    return peak + min(wide, max(-wide, moved))
