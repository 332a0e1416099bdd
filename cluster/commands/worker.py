"""`kvasir worker`: one replica of a pool, in a container of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.config import ClusterConfig, PoolConfig, load_config
from cluster.container import become, check_transfer_ports, cores
from cluster.model_source import resolve_model
from workers.config import WorkerConfig
from workers.core.errors import ConfigError
from workers.wire.redis_endpoint import RedisEndpoint


def worker(
    config: Annotated[Path, typer.Option(help="cluster.yaml")],
    pool: Annotated[str, typer.Option(help="one of its pools")],
    replica: Annotated[
        str, typer.Option(envvar="POD_NAME", help="its name in the cluster, no other has it")
    ],
    host: Annotated[
        str, typer.Option(envvar="POD_IP", help="the address that it listens on and others reach")
    ],
) -> None:
    """Run one worker until SIGTERM, which drains it; a second one ends it at once.

    It listens on the config's `ports` and registers in `redis`, which a config for containers must
    name."""
    settings = load_config(config)
    check_transfer_ports(settings.ports)
    slice_ = worker_slice(settings, pool, replica, host)
    become(
        "workers",
        slice_,
        "--role",
        slice_.role,
        env={"OMP_NUM_THREADS": str(slice_.engine.threads)},
    )


def worker_slice(settings: ClusterConfig, pool: str, replica: str, host: str) -> WorkerConfig:
    """All cores of its container are the replica's. Raises ConfigError, and CheckpointError where
    the model cannot be had."""
    chosen = pool_named(settings, pool)
    threads = settings.engine.threads or max(1, cores() // settings.layout(chosen).world)
    model = str(resolve_model(settings.model))
    slice_ = settings.worker_slice(
        chosen, replica, model, redis_of(settings), threads, settings.ports.worker
    )
    return slice_.model_copy(update={"host": host, "metrics_port": settings.ports.metrics})


def pool_named(settings: ClusterConfig, name: str) -> PoolConfig:
    for pool in settings.pools:
        if pool.name == name:
            return pool
    raise ConfigError(
        f"no pool {name!r} in the config; there are {', '.join(p.name for p in settings.pools)}"
    )


def redis_of(settings: ClusterConfig) -> RedisEndpoint:
    if not settings.redis.given:
        raise ConfigError("redis: processes in containers of their own need a server for all")
    return settings.redis
