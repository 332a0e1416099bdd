"""Rates of arrivals in intervals that are worth keeping."""

from __future__ import annotations

from cluster.planner.forecast import COARSE_S


class Past:
    """One mean for each COARSE_S, as the forecast's own long memory has them."""

    def __init__(self) -> None:
        self._bin: float | None = None  # its number
        self._arrivals = 0
        self._seconds = 0.0

    def note(self, arrivals: int, interval_s: float, at: float) -> tuple[float, float] | None:
        """(time, requests a second) of the interval that ended with this, if one did."""
        ended, place = None, at // COARSE_S
        if self._bin is not None and place != self._bin:
            ended = ((self._bin + 0.5) * COARSE_S, self._arrivals / self._seconds)
            self._arrivals, self._seconds = 0, 0.0
        self._bin = place
        self._arrivals += arrivals
        self._seconds += interval_s
        return ended
