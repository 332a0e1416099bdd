"""`kvasir router`: the router, in a container of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.worker import redis_of
from cluster.config import ClusterConfig, load_config
from cluster.container import become
from cluster.model_source import resolve_model
from router.config import RouterConfig

ANY = "0.0.0.0"


def router(
    config: Annotated[Path, typer.Option(help="cluster.yaml")],
    host: Annotated[str, typer.Option(help="the address that its three ports listen on")] = ANY,
) -> None:
    """Run one router until SIGTERM, on the ports of the config's `router`. Requests in flight then
    have `router.limits.shutdown_s` to end."""
    become("router", router_slice(load_config(config), host), env={})


def router_slice(settings: ClusterConfig, host: str) -> RouterConfig:
    """Raises ConfigError, and CheckpointError where the model cannot be had."""
    slice_ = settings.router_slice(
        model=str(resolve_model(settings.model)), redis=redis_of(settings)
    )
    doors = {
        door: getattr(slice_, door).model_copy(update={"host": host})
        for door in ("grpc", "http", "admin")
    }
    return slice_.model_copy(update=doors)
