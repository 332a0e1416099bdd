"""`kvasir deploy`: brings a Ray cluster to what cluster.yaml says, and returns."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cluster.config import ClusterConfig, load_config
from cluster.model_source import resolve_model
from cluster.redis_server import check, forget
from workers.core.errors import ConfigError


def deploy(
    config: Annotated[Path, typer.Argument(help="cluster.yaml")],
    address: Annotated[
        str, typer.Option(help="of the Ray cluster: host:port of its head, or ray://...")
    ] = "auto",
    delete: Annotated[bool, typer.Option("--delete", help="drain it and take it away")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="print the Serve config and apply nothing")
    ] = False,
) -> None:
    """Start or update the cluster of a config on Ray Serve."""
    settings = load_config(config)
    if not settings.redis.given:
        raise ConfigError("redis: a cluster on Ray needs a Redis that every node reaches")
    try:
        from cluster.backends import ray_cluster, ray_deploy
    except ImportError as error:
        raise ConfigError("Ray Serve is not here: install kvasir[ray]") from error
    model_dir = resolve_model(settings.model)
    wanted = ray_deploy.Deployment(settings, settings.model, model_dir, settings.redis, host=None)
    if write:
        parts = (wanted.pools(surge=0), wanted.router(), wanted.planner())
        written = {
            "proxy_location": "Disabled",  # our routers have doors of their own
            "applications": [app for app in parts if app is not None],
        }
        yaml.safe_dump(written, sys.stdout, sort_keys=False)
        return
    with ray_cluster.joined(address):
        asyncio.run(_delete(settings) if delete else _apply(wanted))


async def _apply(wanted: object) -> None:
    from cluster.backends import ray_cluster, ray_deploy

    assert isinstance(wanted, ray_deploy.Deployment)
    await check(wanted.redis)
    apps = ray_cluster.Applications()
    await apps.open()
    await ray_deploy.deploy(wanted, apps, _say)
    config = wanted.config
    print(f"kvasir {config.name} runs: {', '.join(f'{p.name} {p.replicas}' for p in config.pools)}")


async def _delete(config: ClusterConfig) -> None:
    from cluster.backends import ray_cluster, ray_deploy

    apps = ray_cluster.Applications()
    await apps.open()
    there = await ray_deploy.delete(config, apps)
    await forget(config.redis, config.name)
    print(f"kvasir {config.name} is gone" if there else f"no {config.name} was deployed")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
