"""`kvasir planner`: the planner, beside routers that run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from prometheus_client import CollectorRegistry

from cluster.autoscaler.applier import Applier
from cluster.autoscaler.config import planner_slice
from cluster.autoscaler.process import ApplierOf, run
from cluster.config import ClusterConfig, load_config
from cluster.model_source import resolve_model
from workers.core.errors import ConfigError


def planner(
    config: Annotated[Path, typer.Option(help="cluster.yaml")],
    kubernetes: Annotated[
        str | None, typer.Option(help="NAMESPACE/RELEASE whose Deployments it brings to size")
    ] = None,
) -> None:
    """Plan how many replicas each pool should have, as the config's `planner` says, until SIGTERM.
    Where the plan is to be applied, Ray Serve, `kvasir serve` or --kubernetes does so."""
    settings = load_config(config)
    if not settings.redis.given:
        raise ConfigError("redis: a planner needs the Redis of routers and workers")
    slice_ = planner_slice(
        settings,
        model=str(resolve_model(settings.model)),
        redis=settings.redis,
        routers=[str(settings.router.grpc)],
    )
    run(slice_, _on_kubernetes(settings, kubernetes) if kubernetes is not None else None)


def _on_kubernetes(settings: ClusterConfig, release: str) -> ApplierOf:
    try:
        from cluster.backends.kubernetes.applier import KubernetesApplier, Target
    except ImportError as error:
        raise ConfigError("the Kubernetes client is not here: install kvasir[k8s]") from error
    target = Target.parse(release)
    identity = os.environ.get("POD_NAME")

    def applier(registry: CollectorRegistry) -> Applier:
        return KubernetesApplier(settings, target, registry, identity=identity)

    return applier
