"""The part of its time that each replica spends on prompts, as far as this router gave them."""

from __future__ import annotations

import math

from workers.core.clock import Clock

MEMORY_S = 5.0  # longer, and prompts that come no more keep others from where they would fit
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
        self._work[replica] = self.left_s(replica, now) + work_s, now

    def part(self, replica: str, more_s: float = 0.0) -> float:
        """0..MOST, with `more_s` of work given now."""
        now = self._clock.now()
        return min(MOST, (self.left_s(replica, now) + more_s) / self.window_s(now))

    def window_s(self, now: float) -> float:
        """Seconds that what is left of work stands for."""
        return MEMORY_S * -math.expm1(-max(FIRST_S, now - self._began) / MEMORY_S)

    def left_s(self, replica: str, now: float) -> float:
        """Of the work that it was given."""
        given = self._work.get(replica)
        return 0.0 if given is None else given[0] * math.exp((given[1] - now) / MEMORY_S)

    def keep(self, replicas: set[str]) -> None:
        """Forget all others."""
        self._work = {name: work for name, work in self._work.items() if name in replicas}

    def __len__(self) -> int:
        return len(self._work)
