"""A planner as a process of its own: signals, logs, event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from cluster.autoscaler.app import serve
from cluster.autoscaler.applier import Applier
from cluster.autoscaler.config import PlannerConfig
from cluster.backends.local import first_fault
from workers.logs import log_to_stderr

EXIT_CONFIG = 2
ApplierOf = Callable[[CollectorRegistry], Applier]


def run(config: PlannerConfig, applier_of: ApplierOf | None = None) -> None:
    """Until SIGTERM or SIGINT. Raises ConfigError and CheckpointError."""
    log_to_stderr(config.logs, "planner")
    try:
        asyncio.run(_main(config, applier_of))
    except BaseExceptionGroup as group:
        raise first_fault(group) from None


async def _main(config: PlannerConfig, applier_of: ApplierOf | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(config, stop, _listening, applier_of)


def _listening(port: int) -> None:
    print(f"kvasir planner runs, metrics on port {port}", flush=True)
