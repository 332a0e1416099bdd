"""gRPC health checks of a worker, as Kubernetes' probes ask them.

``                   it lives: the event loop has its turn
`kvasir.v1.Worker`   it may get requests: warmed up and paired, and not draining
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

WORKER = "kvasir.v1.Worker"
LOOK_S = 0.1
Status = health_pb2.HealthCheckResponse.ServingStatus


class Health(health_pb2_grpc.HealthServicer):
    """Looks at `ready` when it is asked: nobody has to tell."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        status = self._status(request.service)
        if status == Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: Any, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Now, and with each change."""
        last = None
        while True:
            status = self._status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(LOOK_S)

    def _status(self, service: str) -> Any:
        if service == "":
            return Status.SERVING
        if service != WORKER:
            return Status.SERVICE_UNKNOWN
        return Status.SERVING if self._ready() else Status.NOT_SERVING
