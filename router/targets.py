"""Where a scraper finds workers and the planner: /metrics/targets, as Prometheus' http_sd asks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router.explain.scale import Plans
from router.replica import Replica
from workers.core.errors import Unavailable
from workers.wire.redis_keys import ReplicaRecord


def target_route(cluster: str, replicas: Iterable[Replica], plans: Plans) -> Route:
    """GET /metrics/targets: every replica that is registered, up or not, until its lease ends; and
    the planner whose plan is the newest, where there is one."""

    async def targets(request: Request) -> Response:
        planner = ""
        with suppress(Unavailable, ValueError):
            plan: dict[str, Any] = json.loads(await plans.read_plan() or "{}")
            planner = plan.get("metrics", "")
        records = [replica.record for replica in replicas]
        found = [_worker(cluster, record) for record in records if record.metrics]
        return JSONResponse([*found, _planner(cluster, planner)] if planner else found)

    return Route("/metrics/targets", targets)


def _planner(cluster: str, at: str) -> dict[str, object]:
    labels = {"__meta_kvasir_cluster": cluster, "__meta_kvasir_role": "planner"}
    return {"targets": [at], "labels": labels}


def _worker(cluster: str, record: ReplicaRecord) -> dict[str, object]:
    """`pool` and `replica` stand on each of its series; the others may be made labels of it, but a
    role may change while it runs."""
    labels = {
        "pool": record.pool,
        "replica": record.id,
        "__meta_kvasir_cluster": cluster,
        "__meta_kvasir_role": record.role,
    }
    return {"targets": [record.metrics], "labels": labels}
