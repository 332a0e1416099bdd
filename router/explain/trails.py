"""The trails of the newest requests, within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain, islice

from router.api import Call
from router.explain.trail import MOST_WORDS, Trail
from workers.core.clock import Clock

KEPT = 1000  # requests that are over; of those never let in, a quarter of it more
ROWS = 200_000  # replicas in all decisions kept: about 30 MB


class Trails:
    """Each request begins one and ends it. Those refused in front of the cluster are kept apart: a
    flood of them takes no room from those that were served."""

    def __init__(self, clock: Clock, kept: int = KEPT, rows: int = ROWS) -> None:
        """`rows` bounds what large clusters cost: fewer requests are kept then."""
        self._clock = clock
        self._kept = kept
        self._most_rows = rows
        self._running: dict[Trail, None] = {}
        self._served: deque[Trail] = deque()
        self._refused: deque[Trail] = deque(maxlen=max(1, kept // 4))
        self._rows = 0  # of those served

    def begin(self, call: Call, started: float) -> Trail:
        trail = Trail(self._clock.now, started, call.request_id, call.also, call.terms.tenant)
        if call.visit is not None:
            trail.trace = call.visit.enter(trail, call.model, call.params)
        self._running[trail] = None
        return trail

    def end(self, trail: Trail, outcome: str, error: str) -> None:
        del self._running[trail]
        trail.ended_at = self._clock.now()
        trail.outcome = outcome
        trail.error = error[:MOST_WORDS]
        if trail.let_in_at is None:
            self._refused.append(trail)
            return
        self._served.append(trail)
        self._rows += trail.rows
        while len(self._served) > self._kept or self._rows > self._most_rows:
            self._rows -= self._served.popleft().rows

    def find(self, name: str) -> list[Trail]:
        """Those with that id, newest first."""
        return [trail for trail in self.newest() if name in _names(trail)] if name else []

    def served(self, limit: int) -> list[Trail]:
        """Those let in and over, newest first."""
        return list(islice(reversed(self._served), limit))

    def newest(self) -> list[Trail]:
        """All of them, newest first, those under way too."""
        every: Iterable[Trail] = chain(self._refused, self._served, self._running)
        return sorted(every, key=lambda trail: trail.started, reverse=True)

    def now(self) -> float:
        return self._clock.now()


def _names(trail: Trail) -> tuple[str, ...]:
    return (trail.request_id, trail.worker_id, *trail.also)
