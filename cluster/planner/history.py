"""Rates of the past, in bins of equal width, for as long as they may tell something."""

from __future__ import annotations

from collections import deque

import numpy as np

LEAST_CYCLE = 12  # bins
SURE = 0.5  # autocorrelation from which a cycle is one


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

    def at(self, when: float) -> float | None:
        """Around that time, a line between two bins; None where nothing is known."""
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
        none. By autocorrelation: its highest peak beyond its first dip below zero."""
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
        return best * self.bin_s
