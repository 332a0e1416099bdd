"""The state of the cluster as one router sees it, in one JSON object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from router.console.events import PoolEvents
from router.console.history import History, ended
from router.console.latencies import latencies
from router.console.replicas import pools
from router.explain.predictions import request_errors
from router.explain.trails import Trails
from router.flow.book import Result
from router.flow.control import FlowControl
from router.index.prefix import PrefixMirror
from router.latency.errors import Errors
from router.metrics import RouterMetrics
from router.pool import Pool
from router.sharing.sharing import Sharing
from workers.core.clock import unix_time

MOST_PAIRS = 64  # told: those that are used most


@dataclass(frozen=True, slots=True)
class Sources:
    """The router's parts that the console reads; it changes none of them."""

    model: str
    pool: Pool
    index: PrefixMirror
    flow: FlowControl
    metrics: RouterMetrics
    trails: Trails
    errors: Errors
    events: PoolEvents
    sharing: Sharing | None
    ready: Callable[[], bool]


def overview(of: Sources, history: History, started: float) -> dict[str, Any]:
    """`started`: seconds since 1970. Counts are since then; `*_s` are seconds, or per second where
    the name is a rate."""
    sharing = of.sharing
    return {
        "at": unix_time(),
        "started": started,
        "router": sharing.id if sharing is not None else "",
        "others": [
            {"id": other.id, "heard_s": other.heard_s, "seqs": other.seqs}
            for other in (sharing.others() if sharing is not None else ())
        ],
        "model": of.model,
        "ready": of.ready(),
        "redis_up": of.pool.redis_up,
        "in_flight": of.flow.in_flight,
        "requests": of.metrics.total,
        "failed": of.metrics.failed,
        "index_blocks": len(of.index),
        "rates": history.rates(),
        "history": history.series(),
        "pools": pools(of.pool, of.errors, of.events),
        "classes": _classes(of, history),
        "pairs": _pairs(of.metrics),
        "predictions": [
            {"kind": kind, "count": track.count, "error": track.error, "bias": track.bias}
            for kind, track in request_errors(of.trails).items()
        ],
        "events": list(of.events.told()),
    }


def _classes(of: Sources, history: History) -> list[dict[str, Any]]:
    slo, book = of.flow.slo, of.flow.book
    late = latencies(of.trails)
    return [
        {
            "name": name,
            "default": name == slo.default,
            "ttft_s": each.ttft,
            "itl_s": each.itl,
            "weight": each.weight,
            "max_wait_s": each.max_wait,
            "background": each.background,
            "queued": book.queued[name],
            **asdict(ended(of.flow, name)),
            "results": {str(kind): book.results(name)[kind] for kind in Result},
            "recent": history.recent(name),
            "latency": late.get(name),
        }
        for name, each in slo.classes.items()
    ]


def _pairs(metrics: RouterMetrics) -> list[dict[str, Any]]:
    """Busiest first, since the router started."""
    told = [
        {"sender": sender, "receiver": receiver, **asdict(totals)}
        for (sender, receiver), totals in metrics.pairs
    ]
    return sorted(told, key=lambda pair: -pair["handoffs"])[:MOST_PAIRS]
