"""How much work comes in a second, and how much the replicas take: exponential averages."""

from __future__ import annotations

import math

from router.flow.classes import FlowKey

OVER_S = 30.0  # how far back
PRIOR_S = 1.0  # a pace weighs as much as the number of replicas when so long was measured,
PRIOR_JOBS = 2.0  # and as many of the longest requests of late: one under way is not counted yet


class Offered:
    """Seconds of work that arrive in a second."""

    def __init__(self, now: float) -> None:
        self._sum = 0.0
        self._at = now

    def add(self, work_s: float, now: float) -> None:
        self._sum = self.per_s(now) * OVER_S + work_s
        self._at = now

    def per_s(self, now: float) -> float:
        return self._sum * math.exp((self._at - now) / OVER_S) / OVER_S


class LateShare:
    """Of the work that is granted while somebody waits, the part of those who are late. All that is
    on time goes before them: what is granted, not what is asked for, as who is refused or comes too
    late for his target overtakes nobody."""

    def __init__(self, now: float) -> None:
        self._on_time_s = 0.0
        self._all_s = 0.0
        self._at = now

    def granted(self, work_s: float, now: float, *, on_time: bool) -> None:
        kept = math.exp((self._at - now) / OVER_S)
        self._all_s = self._all_s * kept + work_s
        self._on_time_s = self._on_time_s * kept + (work_s if on_time else 0.0)
        self._at = now

    def part(self, prior_s: float) -> float:
        """0..1; all of it weighs as much as `prior_s` of measured work."""
        return 1.0 - self._on_time_s / (self._all_s + prior_s)


class Pace:
    """Seconds of work that are granted in a second in which somebody waits. As many as there are
    replicas, unless predictions are off or decoding is what holds requests up."""

    def __init__(self, now: float) -> None:
        self._work_s = 0.0
        self._busy_s = 0.0
        self._longest_s = 0.0
        self._at = now

    def passed(self, now: float, *, busy: bool) -> None:
        """`busy`: somebody waited since the last call."""
        elapsed = now - self._at
        kept = math.exp(-elapsed / OVER_S)
        self._work_s *= kept
        self._longest_s *= kept
        self._busy_s = self._busy_s * kept + (elapsed if busy else 0.0)
        self._at = now

    def granted(self, work_s: float, *, waited: bool) -> None:
        self._longest_s = max(self._longest_s, work_s)
        if waited:
            self._work_s += work_s

    def per_s(self, servers: int) -> float:
        prior_s = self.prior_s
        return (self._work_s + servers * prior_s) / (self._busy_s + prior_s)

    @property
    def prior_s(self) -> float:
        return PRIOR_S + PRIOR_JOBS * self._longest_s


class Promises:
    """When those who were refused are told to come back: one after the other, no faster than what
    is left of the replicas takes them. Promises are kept for each flow, so that who floods puts
    off only himself; of more flows than KEPT those refused longest ago are forgotten."""

    KEPT = 4096

    def __init__(self) -> None:
        self._until: dict[FlowKey, float] = {}  # who was refused last stands last

    def next_s(
        self, flow: FlowKey, work_s: float, wait_s: float, spare: float, most_s: float, now: float
    ) -> float:
        """Seconds from now, at least `wait_s` and at most `most_s`."""
        at = min(max(now + wait_s, self._until.pop(flow, 0.0)), now + most_s)
        self._until[flow] = at + work_s / spare
        if len(self._until) > self.KEPT:
            del self._until[next(iter(self._until))]
        return at - now
