"""`kvasir drain`: a worker hands on what it has, and takes nothing new."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from cluster.config import load_config
from cluster.worker_calls import WorkerCalls
from workers.core.errors import ConfigError
from workers.wire.tls import client_tls


def drain(
    worker: Annotated[str | None, typer.Option(help="host:port of its gRPC server")] = None,
    config: Annotated[
        Path | None, typer.Option(help="in a pod: cluster.yaml, whose port and grace_s hold")
    ] = None,
    host: Annotated[str | None, typer.Option(envvar="POD_IP", help="with --config")] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="seconds it may take")] = None,
) -> None:
    """Drain a worker, and wait until it is empty or its time is over. There is no way back: it is
    to be stopped then. Kubernetes calls it before it stops a pod (preStop)."""
    settings = load_config(config) if config is not None else None
    if worker is None:
        if settings is None or host is None:
            raise ConfigError("name a --worker, or a --config and a --host")
        worker = f"{host}:{settings.ports.worker}"
    if budget is None:
        budget = settings.grace_s if settings is not None else 20.0
    tls = client_tls(settings.internal_tls) if settings is not None else None
    left = asyncio.run(WorkerCalls(tls).drain(worker, budget))
    print(f"{worker}: drained" if not left else f"{worker}: {left} requests or tickets are left")
