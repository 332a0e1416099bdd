"""Tracing as the config wants it."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from router.tracing.config import TelemetryConfig, read_headers
from router.tracing.tracer import Tracer
from workers.core.clock import Clock

# A thread encodes what is sent. The event loop gets the GIL back so soon, where Python's own 5 ms
# would be what every token behind it waits (load_tests/bench_tracing.py).
SWITCH_S = 0.0005


@asynccontextmanager
async def tracing(
    config: TelemetryConfig, clock: Clock, registry: CollectorRegistry, *, cluster: str, port: int
) -> AsyncIterator[Tracer]:
    """What the tracer keeps is sent as long as the block lasts. `port`: tells routers of a host
    apart. Raises ConfigError."""
    if config.otlp_endpoint is None:
        yield Tracer(config, clock, random.Random())
        return
    # Here and not above: who exports nothing needs nothing of OpenTelemetry.
    from router.tracing.otlp import OtlpExporter

    file, who = config.otlp_headers_file, f"{socket.gethostname()}:{port}"
    headers = {} if file is None else read_headers(file)
    exporter = OtlpExporter(config.otlp_endpoint, headers, clock, cluster, who)
    registry.register(exporter)
    sys.setswitchinterval(SWITCH_S)
    async with exporter.running():
        yield Tracer(config, clock, random.Random(), exporter)
