"""Puts the planner process together and runs it."""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from prometheus_client import CollectorRegistry

from cluster.access import own_access
from cluster.autoscaler.applier import Applier
from cluster.autoscaler.config import PlannerConfig
from cluster.autoscaler.loop import Autoscaler
from cluster.autoscaler.metrics import PlannerMetrics
from cluster.autoscaler.offered import Offered
from cluster.autoscaler.routers import Routers
from cluster.autoscaler.sight import Sight
from cluster.autoscaler.store import Store
from cluster.autoscaler.watched import Watched
from cluster.planner.planner import Planner
from router.config import Address
from router.latency import FittedLatency
from router.latency.feed import LatencyFeed
from router.pool import Pool
from router.registry_reader import RegistryReader
from router.worker_client import WorkerClient
from workers.core.clock import SystemClock
from workers.core.errors import ConfigError
from workers.core.waits import let_go
from workers.models.config import load_config as load_model_config
from workers.wire.redis_client import connect_redis
from workers.wire.tls import client_tls

ANY_HOST = ("0.0.0.0", "::")


async def serve(
    config: PlannerConfig,
    stop: asyncio.Event,
    listening: Callable[[int], None],
    applier_of: Callable[[CollectorRegistry], Applier] | None = None,
) -> None:
    """Runs until `stop` is set; `listening` gets the port of its metrics, `applier_of` where it may
    register some of its own. Raises ConfigError and CheckpointError when it cannot start."""
    section, clock, metrics = config.planner, SystemClock(), PlannerMetrics()
    latency = FittedLatency(load_model_config(Path(config.model)))
    specs = [pool.spec for pool in config.pools]
    planner = Planner(specs, config.slo, latency, section.options())
    watched = Watched(
        specs,
        {pool.spec.name: pool.starts_as for pool in config.pools},
        {pool.spec.name: pool.hardware for pool in config.pools},
        config.step_tokens,
        latency,
    )
    offered = Offered(config.slo.classes)
    async with AsyncExitStack() as parts:
        try:
            port, close = metrics.serve(section.host, section.metrics_port)
        except OSError as error:
            raise ConfigError(
                f"planner.metrics_port: cannot listen on {section.host}, port "
                f"{section.metrics_port}: {error.strerror}"
            ) from None
        parts.callback(close)
        access = functools.partial(own_access, config.tls, config.api_keys)
        client_of = functools.partial(WorkerClient, tls=client_tls(config.worker_tls))
        client = await parts.enter_async_context(connect_redis(config.redis))
        registry = RegistryReader(client, str(config.redis), config.cluster)
        records = await registry.read_first()
        replicas = await parts.enter_async_context(
            Pool(config.silence_s, [LatencyFeed(latency), watched], client_of=client_of)
        )
        replicas.sync(records)
        routers = Routers(config.routers, offered.note, clock, access)
        autoscaler = Autoscaler(
            planner,
            Sight(watched, replicas, offered, routers),
            Store(client, config.cluster, _my_name(), _reached_at(section.host, port)),
            metrics,
            clock,
            applier_of(metrics.registry) if applier_of is not None else None,
            mode=section.mode,
            every_s=section.every_s,
            first={pool.spec.name: pool.replicas for pool in config.pools},
        )
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(registry.run(replicas.sync, replicas.redis_lost))
            running = tasks.create_task(autoscaler.run())
            listening(port)
            await stop.wait()
            following.cancel()
            await let_go(running)


def _my_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


def _reached_at(host: str, port: int) -> str:
    """Empty where nobody says by which of its addresses others know this host."""
    return "" if host in ANY_HOST else str(Address(host=host, port=port))
