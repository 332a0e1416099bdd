"""How many prefill servers keep the TTFT targets at some rate."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from cluster.planner.mix import Mix
from cluster.planner.queueing import Wait
from router.flow.classes import SloConfig
from router.latency import LatencyModel

MARGIN = 0.05  # of a TTFT target: the way there, and a step that is under way
MOST_BUSY = 0.95  # background work included


class _Point(NamedTuple):
    """Requests that are alike. `patience_s`: how long they may wait; None = for ever."""

    share: float
    seconds: float
    patience_s: float | None


class PrefillModel:
    """Requests wait in one line; each is computed by one server. `ceiling`: part that would be in
    time with a server of its own; the others are planned for as if their target was as much longer
    as they need, or their wait would not matter at all."""

    def __init__(self, mix: Mix, latency: LatencyModel, replica: str, slo: SloConfig) -> None:
        self._points: list[_Point] = []
        self.background_s = 0.0  # of work, for one request of any class
        waiting_share = work_s = square = hopeless = 0.0
        for each in mix.classes:
            target = slo.classes.get(each.slo_class)
            ttft = None if target is None or target.ttft is None else target.ttft * (1 - MARGIN)
            weight = each.uncached.weight
            for tokens, count in each.uncached:
                seconds = latency.prefill_s(replica, max(1, round(tokens)), round(each.cached))
                share = each.share * count / weight
                if target is not None and target.background:
                    self.background_s += share * seconds
                    continue
                patience_s = ttft
                if ttft is not None and seconds <= ttft:
                    patience_s = ttft - seconds
                elif ttft is not None:
                    hopeless += share
                self._points.append(_Point(share, seconds, patience_s))
                waiting_share += share
                work_s += share * seconds
                square += share * seconds * seconds
        self._share = waiting_share
        self.service_s = work_s / waiting_share if waiting_share else 0.0
        mean2 = self.service_s**2
        self._cs2 = max(0.0, square / waiting_share / mean2 - 1.0) if mean2 else 0.0
        self._ca2 = mix.bursts
        self.ceiling = 1.0 - hopeless / waiting_share if waiting_share else 1.0
        self.attainment = cache(self._attainment)

    def busy(self, servers: int, rate: float) -> float:
        """Part of the servers' time, background work included."""
        return rate * self.work_s / servers if servers else float(rate > 0)

    @property
    def work_s(self) -> float:
        """Of a request of any class."""
        return self.service_s * self._share + self.background_s

    def wait(self, servers: int, rate: float) -> Wait:
        return Wait(servers, rate * self._share, self.service_s, self._ca2, self._cs2)

    def _attainment(self, servers: int, rate: float) -> float:
        """Part of requests whose TTFT is within its target; it falls with the rate and rises with
        the servers."""
        if rate <= 0:
            return 1.0
        if self.busy(servers, rate) >= MOST_BUSY:
            return 0.0
        return self._part(self.wait(servers, rate).beyond)

    def _part(self, beyond: Callable[[float], float]) -> float:
        if not self._share:
            return 1.0
        late = sum(
            point.share * beyond(point.patience_s)
            for point in self._points
            if point.patience_s is not None
        )
        return 1.0 - late / self._share
