"""The line in front of the twin's prefill servers, in the order of the router's."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace

from cluster.simulator.scaling.load import Arrival, Shape
from cluster.simulator.scaling.sizes import Site


@dataclass(slots=True)
class Waiting:
    at_s: float
    shape: Shape
    work_s: float


class PrefillLine:
    """Who can still be in time goes first, the most urgent of them; the others while nobody is,
    until they give up. A server that leaves ends what it does."""

    def __init__(self, site: Site, servers: int, now: float) -> None:
        self.refused: list[Waiting] = []
        self._site = site
        self._free_at = [now] * servers
        self._coming: deque[Waiting] = deque()
        self._on_time: list[tuple[float, int, Waiting]] = []  # heaps: by when they must begin,
        self._late: list[tuple[float, int, Waiting]] = []  # and by when they came
        self._number = 0
        self._work: dict[Shape, float] = {}

    def __len__(self) -> int:
        return len(self._coming) + len(self._on_time) + len(self._late)

    def running(self, now: float) -> int:
        return sum(free_at > now for free_at in self._free_at)

    def add(self, now: float) -> None:
        heappush(self._free_at, now)

    def remove(self, now: float) -> float:
        """The one that is free first; when that is."""
        return max(now, heappop(self._free_at))

    def join(self, arrival: Arrival) -> None:
        """In the order in which they come; one that is yet to come waits outside."""
        shape = arrival.shape
        work_s = self._work.get(shape)
        if work_s is None:
            model, cached = self._site.pools["prefill"].model, shape.prompt - shape.uncached
            work_s = self._site.latency.prefill_s(model, shape.uncached, cached)
            self._work[shape] = work_s
        self._coming.append(Waiting(arrival.at_s, shape, work_s))

    def next_at(self, after: float) -> float:
        """When the next one may begin, not before `after`; infinite while nobody can."""
        if not self._free_at:
            return math.inf
        at = max(self._free_at[0], after)
        if self._on_time or self._late:
            return at
        return max(at, self._coming[0].at_s) if self._coming else math.inf

    def begin(self, now: float) -> tuple[float, Waiting] | None:
        """Whose turn it is, and when he has his first token; None if all gave up."""
        self.pass_until(now)
        line = self._on_time or self._late
        if not line:
            return None
        each = heappop(line)[2]
        over = now + each.work_s
        heapreplace(self._free_at, over)
        return over, each

    def pass_until(self, now: float) -> None:
        """Who came by then stands in line; who became late is behind the others, or gave up."""
        promise = self._site.promise
        while self._coming and self._coming[0].at_s <= now:
            each = self._coming.popleft()
            self._number += 1
            start_by = each.at_s + promise.ttft_s - each.work_s
            heappush(self._on_time, (start_by, self._number, each))
        while self._on_time and self._on_time[0][0] < now:
            _, number, each = heappop(self._on_time)
            heappush(self._late, (each.at_s, number, each))
        while self._late and now - self._late[0][0] > promise.max_wait_s:
            self.refused.append(heappop(self._late)[2])
