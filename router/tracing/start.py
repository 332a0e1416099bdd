"""Tracing as the config wants it."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from router.tracing.config import TelemetryConfig
from router.tracing.tracer import Tracer
from workers.core.clock import Clock


@asynccontextmanager
async def tracing(
    config: TelemetryConfig, clock: Clock, registry: CollectorRegistry, *, cluster: str, port: int
) -> AsyncIterator[Tracer]:
    """What the tracer keeps is sent as long as the block lasts. `port`: tells routers of a host
    apart."""
    if config.otlp_endpoint is None:
        yield Tracer(config, clock, random.Random())
        return
    # Here and not above: who exports nothing needs nothing of OpenTelemetry.
    from router.tracing.otlp import OtlpExporter

    who = f"{socket.gethostname()}:{port}"
    exporter = OtlpExporter(config.otlp_endpoint, clock, cluster, who)
    registry.register(exporter)
    async with exporter.running():
        yield Tracer(config, clock, random.Random(), exporter)
