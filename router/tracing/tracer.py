"""The start of every trace and its end: whose it is, and whether anybody will see it.

Whether a request is sampled is decided once, at the door: as the client's own trace says, else by
the trace id, so that all who share a ratio decide alike. It is looked at again when all is over:
what went wrong, was tried again or was slow is kept too, a few of them in a second. No span is made
before then, so a request that nobody keeps costs a few names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from router.tracing.config import TelemetryConfig
from router.tracing.visit import Attributes, Visit, new_id
from workers.core.clock import Clock
from workers.core.trace import TraceContext, parse_traceparent

KEPT_PER_S = 10.0  # beside the sample: a flood of errors must not flood who stores traces
RATIO_BITS = 56  # of a trace id that are random by the standard


class Exporter(Protocol):
    def offer(self, visit: Visit) -> None:
        """It is over. Never waits."""


class Tracer:
    def __init__(
        self,
        config: TelemetryConfig,
        clock: Clock,
        rng: random.Random,
        exporter: Exporter | None = None,
    ) -> None:
        """Without an exporter requests have ids, and nothing is kept."""
        self._clock = clock
        self._rng = rng
        self._exporter = exporter
        self._below = round(config.sample_ratio * 2**RATIO_BITS) if exporter is not None else 0
        self._slow_s = config.slow_s
        self._notable = _Allowance(KEPT_PER_S, clock.now)

    @contextmanager
    def visit(
        self,
        name: str,
        operation: str,
        traceparent: str,
        attributes: Attributes = (),
        *,
        tracestate: str = "",
    ) -> Iterator[Visit]:
        """Over when the block ends. `traceparent`, `tracestate`: the client's, or nothing."""
        given = parse_traceparent(traceparent, tracestate) if traceparent else None
        span_id = new_id(self._rng, 8)
        if given is not None:
            context, parent = given._replace(span_id=span_id), given.span_id
        else:
            trace_id, parent = new_id(self._rng, 16), b""
            sampled = int.from_bytes(trace_id[-7:], "big") < self._below
            context = TraceContext(trace_id, span_id, sampled)
        visit = Visit(context, parent, name, operation, attributes, self._clock.now())
        try:
            yield visit
        finally:
            visit.ended = self._clock.now()
            if self._exporter is not None and self._keeps(visit):
                self._exporter.offer(visit)

    def _keeps(self, visit: Visit) -> bool:
        return visit.context.sampled or (visit.notable(self._slow_s) and self._notable.take())


class _Allowance:
    """So many in a second, those of one second at once."""

    def __init__(self, per_s: float, now: Callable[[], float]) -> None:
        self._per_s = per_s
        self._now = now
        self._left = per_s
        self._at = now()

    def take(self) -> bool:
        now = self._now()
        self._left = min(self._per_s, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
