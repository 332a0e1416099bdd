"""`kvasir scale`: a size for a pool, asked for by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from cluster.autoscaler.published import Published
from cluster.config import ClusterConfig, Overrides, example_config, load_config
from cluster.redis_server import ask_by_hand
from workers.core.errors import ConfigError


def scale(
    pool: Annotated[str, typer.Argument(help="its name in the config")],
    replicas: Annotated[int, typer.Argument(min=0, help="that it shall have")],
    config: Annotated[
        Path | None, typer.Option(help="cluster.yaml; without it the shipped example")
    ] = None,
    redis_url: Annotated[
        str | None, typer.Option(help="the Redis server, where the config names none")
    ] = None,
) -> None:
    """Bring a pool to a size within its bounds. It holds until a planner that applies its plans
    makes the next one; without such a planner, for good."""
    settings = load_config(config or example_config(), Overrides(redis_url=redis_url))
    _check(settings, pool, replicas)
    plan = asyncio.run(ask_by_hand(settings.redis, settings.name, pool, replicas))
    print(f"{pool}: {replicas} replicas are asked for{_until(plan)}")


def _check(settings: ClusterConfig, name: str, replicas: int) -> None:
    if not settings.redis.given:
        raise ConfigError("redis: name the server of the cluster, in the config or by --redis-url")
    names = [pool.name for pool in settings.pools]
    if name not in names:
        raise ConfigError(f"no pool {name!r} in the config; there are {', '.join(names)}")
    pool = settings.pools[names.index(name)]
    if not pool.least <= replicas <= pool.most:
        near = max(pool.least, min(pool.most, replicas))
        raise ConfigError(
            f"{name} has {pool.least} to {pool.most} replicas (pools[].min, pools[].max), not "
            f"{replicas}; the nearest is {near}"
        )


def _until(plan: Published | None) -> str:
    if plan is None or plan.mode != "apply":
        return ""
    return f", until the planner's next plan (every {plan.every_s:g} s)"
