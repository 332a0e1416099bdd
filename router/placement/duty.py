"""The part of its time that each replica spends on prompts, as far as this router gave them."""

from __future__ import annotations

import math

from workers.core.clock import Clock

MEMORY_S = 20.0  # about as long as an answer decodes: who joins now lives with this
FIRST_S = 2.0  # before that nothing is known
MOST = 0.95  # of its time; a queue beyond that is told by its length


class Duty:
    """A sum of work that fades, for each replica. Work counts from the moment it is given."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock.now()
        self._work: dict[str, tuple[float, float]] = {}  # seconds of work, and as of when

    def given(self, replica: str, work_s: float) -> None:
        now = self._clock.now()
        self._work[replica] = self._left(replica, now) + work_s, now

    def part(self, replica: str, more_s: float = 0.0) -> float:
        """0..MOST, with `more_s` of work given now."""
        now = self._clock.now()
        window_s = MEMORY_S * -math.expm1(-max(FIRST_S, now - self._began) / MEMORY_S)
        return min(MOST, (self._left(replica, now) + more_s) / window_s)

    def keep(self, replicas: set[str]) -> None:
        """Forget all others."""
        self._work = {name: work for name, work in self._work.items() if name in replicas}

    def __len__(self) -> int:
        return len(self._work)

    def _left(self, replica: str, now: float) -> float:
        work_s, then = self._work.get(replica, (0.0, now))
        return work_s * math.exp((then - now) / MEMORY_S)
