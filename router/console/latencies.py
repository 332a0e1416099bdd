"""What requests of late had to wait for: percentiles by class, of trails that are kept anyway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from router.explain.trail import Trail
from router.explain.trails import Trails

WINDOW_S = 300.0
MOST = 500  # trails looked at, newest first


def latencies(trails: Trails) -> dict[str, dict[str, Any]]:
    """By class, of requests that ended within WINDOW_S, at most MOST of them."""
    since = trails.now() - WINDOW_S
    found: dict[str, list[Trail]] = {}
    for trail in trails.served(MOST):
        if trail.ended_at is not None and trail.ended_at >= since:
            found.setdefault(trail.slo_class, []).append(trail)
    return {name: _told(each) for name, each in found.items()}


def _told(trails: Sequence[Trail]) -> dict[str, Any]:
    ttft_s = [t.first_at - t.started for t in trails if t.first_at is not None]
    itl_s = [each for t in trails if (each := _itl_s(t)) is not None]
    return {
        "requests": len(trails),
        "ttft_p50_s": percentile(ttft_s, 0.5),
        "ttft_p95_s": percentile(ttft_s, 0.95),
        "itl_p50_s": percentile(itl_s, 0.5),
        "itl_p95_s": percentile(itl_s, 0.95),
    }


def _itl_s(trail: Trail) -> float | None:
    """Mean between its tokens, to its end."""
    if trail.first_at is None or trail.ended_at is None or trail.output_tokens < 2:
        return None
    return (trail.ended_at - trail.first_at) / (trail.output_tokens - 1)


def percentile(values: Sequence[float], part: float) -> float | None:
    """The nearest rank; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]
