"""The last minutes, a point a second: what sparklines and attainment are made of."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass
from typing import Any

from router.flow.book import REFUSALS, Outcome, Result
from router.flow.control import FlowControl
from router.metrics import RouterMetrics

EVERY_S = 1.0
KEPT = 180  # points
WINDOW = 60  # of these, for rates that are told as one number
SMOOTH = 10  # of these, for what part of requests was good


@dataclass(frozen=True, slots=True)
class Ended:
    """Of one class, since the router started. Refused ones are among those that ended."""

    admitted: int
    refused: int
    good: int
    ended: int


@dataclass(frozen=True, slots=True)
class Point:
    """Counts since the router started, but for in_flight and queued."""

    requests: int
    tokens: int
    handoffs: int
    num_bytes: int
    in_flight: int
    queued: int
    classes: dict[str, Ended]


class History:
    """run() until cancelled; counters are read, nothing is asked of anybody."""

    def __init__(self, flow: FlowControl, metrics: RouterMetrics) -> None:
        self._flow = flow
        self._metrics = metrics
        self._points: deque[Point] = deque([self._point()], maxlen=KEPT + 1)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            self.note()

    def note(self) -> None:
        self._points.append(self._point())

    def series(self) -> dict[str, Any]:
        """Oldest first, a value for each second; `*_s`: per second."""
        points = list(self._points)
        steps = list(itertools.pairwise(points))
        return {
            "every_s": EVERY_S,
            "kept": KEPT,
            "requests_s": [b.requests - a.requests for a, b in steps],
            "tokens_s": [b.tokens - a.tokens for a, b in steps],
            "handoffs_s": [b.handoffs - a.handoffs for a, b in steps],
            "bytes_s": [b.num_bytes - a.num_bytes for a, b in steps],
            "in_flight": [b.in_flight for _, b in steps],
            "queued": [b.queued for _, b in steps],
        }

    def rates(self) -> dict[str, Any]:
        """Per second over the last minute, or as long as there are points."""
        old, new, seconds = self._window()
        return {
            "window_s": seconds,
            "requests_s": (new.requests - old.requests) / seconds,
            "tokens_s": (new.tokens - old.tokens) / seconds,
            "handoffs_s": (new.handoffs - old.handoffs) / seconds,
            "bytes_s": (new.num_bytes - old.num_bytes) / seconds,
        }

    def recent(self, slo_class: str) -> dict[str, Any]:
        """Of one class over the same time. `goodput_s`: within both targets, per second;
        `attained`: at each point what part of those that ended lately was good, null if none did.
        """
        old, new, seconds = self._window()
        before, now = old.classes.get(slo_class, _NONE), new.classes.get(slo_class, _NONE)
        return {
            "ended": now.ended - before.ended,
            "good": now.good - before.good,
            "goodput_s": (now.good - before.good) / seconds,
            "attained": self._attained(slo_class),
        }

    def _attained(self, slo_class: str) -> list[float | None]:
        found = [point.classes.get(slo_class, _NONE) for point in self._points]
        olds = [found[max(0, place - SMOOTH)] for place in range(1, len(found))]
        return [
            (new.good - old.good) / (new.ended - old.ended) if new.ended > old.ended else None
            for old, new in zip(olds, found[1:], strict=True)
        ]

    def _window(self) -> tuple[Point, Point, float]:
        points = self._points
        steps = min(WINDOW, len(points) - 1)
        return points[-1 - steps], points[-1], max(1, steps) * EVERY_S

    def _point(self) -> Point:
        metrics, flow = self._metrics, self._flow
        return Point(
            metrics.total,
            metrics.tokens,
            metrics.pairs.handoffs,
            metrics.pairs.num_bytes,
            flow.in_flight,
            sum(flow.book.queued.values()),
            {name: ended(flow, name) for name in flow.slo.classes},
        )


_NONE = Ended(0, 0, 0, 0)


def ended(flow: FlowControl, slo_class: str) -> Ended:
    outcomes, results = flow.book.outcomes(slo_class), flow.book.results(slo_class)
    return Ended(
        outcomes[Outcome.ADMITTED],
        sum(outcomes[outcome] for outcome in REFUSALS),
        results[Result.GOOD],
        results.total(),
    )
