"""The cluster as Ray Serve applications: a router, one deployment for each pool, and a planner.

Serve owns the life of replicas: where they are, how many, and that the dead are replaced. It sees
no request: each replica has a gRPC server of its own on an event loop of its own, registers in
Redis, and drains when Serve awaits its destructor. That has `graceful_shutdown_timeout_s` for it.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import ray.util
from pydantic import BaseModel
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException

from cluster.access import Access, own_access
from cluster.admin_client import AdminClient
from cluster.autoscaler.app import ANY_HOST
from cluster.autoscaler.app import serve as serve_planner
from cluster.autoscaler.config import PlannerConfig
from cluster.backends.own_loop import BEAT_S, OwnLoop, OwnService, check_alive, first_of
from cluster.backends.ray_ranks import RayLauncher
from cluster.config_planner import PlannerSection
from cluster.model_source import resolve_model
from router.app import Ports
from router.app import serve as serve_router
from router.config import RouterConfig
from workers.allocator import keep_freed_memory
from workers.config import WorkerConfig
from workers.core.errors import Unavailable
from workers.launch import Departure, load_model, run_worker
from workers.logs import log_to_stderr
from workers.runner.model_runner import ModelRunner
from workers.worker import Worker

HEALTH_EVERY_S = 2.0
HEALTH_TIMEOUT_S = 10.0
MARGIN_S = 10.0  # beside the drain: the last words, and a forward that cannot be stopped
STARTS = 3  # failures before Serve gives a deployment up
ASK_AGAIN_S = 1.0
LOOK_S = 0.1  # how often Serve looks whether a replica has ended what it never knew of


class PoolArgs(BaseModel):
    """Everything that makes a new version of its replicas, and nothing else: bounds are applied
    to those that run. `cpus`, `gpus` and `resources` (Ray's custom ones, by which a rank finds a
    node that was made for it) are those of one rank; `host` None: each node's own."""

    worker: WorkerConfig
    cpus: float
    gpus: float
    resources: dict[str, float] = {}
    host: str | None
    stamp: str  # of the checkpoint: new weights in the same place are a new version


class PoolsArgs(BaseModel):
    pools: list[PoolArgs]


class RouterArgs(BaseModel):
    """`stamp`: of what the router reads of the model."""

    router: RouterConfig
    cpus: float
    resources: dict[str, float] = {}
    stamp: str


class PlannerArgs(BaseModel):
    """`router_app`: the application of the router that it follows where its slice names none."""

    planner: PlannerConfig
    router_app: str


def planner(arguments: dict[str, Any]) -> Application:
    """PlannerArgs. It takes no CPU that a replica could have."""
    args = PlannerArgs.model_validate(arguments)
    deployment = PlannerReplica.options(  # type: ignore[attr-defined]
        name="planner", num_replicas=1, ray_actor_options={"num_cpus": 0}
    )
    return deployment.bind(args.planner.model_dump_json(), args.router_app)


def pools(args: dict[str, Any]) -> Application:
    """PoolsArgs. The first pool stands for all: an application is what hangs together."""
    first, *others = PoolsArgs.model_validate(args).pools
    return _pool(first, *(_pool(other) for other in others))


def router(arguments: dict[str, Any]) -> Application:
    """RouterArgs."""
    args = RouterArgs.model_validate(arguments)
    deployment = RouterReplica.options(  # type: ignore[attr-defined]
        name="router",
        num_replicas=1,
        max_replicas_per_node=1,  # its ports are fixed
        ray_actor_options={"num_cpus": args.cpus, "resources": args.resources},
        graceful_shutdown_timeout_s=args.router.limits.shutdown_s + MARGIN_S,
    )
    return deployment.bind(args.router.model_dump_json())


def _pool(args: PoolArgs, *others: Application) -> Application:
    config = args.worker
    ranks = max(config.engine.tensor_parallel, config.engine.expert_parallel)
    options: dict[str, Any] = {
        "name": config.pool,
        "ray_actor_options": {
            "num_cpus": args.cpus,
            "num_gpus": args.gpus,
            "resources": args.resources,
        },
        "graceful_shutdown_timeout_s": config.grace_s + MARGIN_S,
    }
    if ranks > 1:
        bundle = args.resources | {"CPU": args.cpus} | ({"GPU": args.gpus} if args.gpus else {})
        options["placement_group_bundles"] = [bundle] * ranks
        options["placement_group_strategy"] = "PACK"
    deployment = WorkerReplica.options(**options)  # type: ignore[attr-defined]
    return deployment.bind(config.model_dump_json(), args.host, args.cpus, *others)


# How Serve looks after each of them.
_watched = partial(
    serve.deployment,
    health_check_period_s=HEALTH_EVERY_S,
    health_check_timeout_s=HEALTH_TIMEOUT_S,
    graceful_shutdown_wait_loop_s=LOOK_S,
)


@_watched(max_constructor_retry_count=STARTS)
class WorkerReplica:
    """One replica; a lost rank is its end."""

    async def __init__(  # type: ignore[misc]
        self, config: str, host: str | None, cpus: float, *others: object
    ) -> None:
        """`others`: handles, which hold the application together and are not used."""
        keep_freed_memory()
        told = WorkerConfig.model_validate_json(config)
        name = serve.get_replica_context().replica_id.unique_id
        self._config = told.model_copy(
            update={
                "replica": f"{told.pool}-{name}",
                "model": str(resolve_model(told.model)),
                "host": host or ray.util.get_node_ip_address(),
            }
        )
        log_to_stderr(told.logs, self._config.replica)
        ranks = max(told.engine.tensor_parallel, told.engine.expert_parallel)
        self._launcher = RayLauncher(cpus=cpus) if ranks > 1 else None
        self._worker: Future[Worker] = Future()
        self._departure: Departure | None = None
        self._own = OwnLoop("kvasir-worker")
        self._life = self._own.run(self._live())
        await first_of(self._worker, self._life)

    async def _live(self) -> None:
        self._departure = Departure()
        await run_worker(
            self._config,
            self._load,
            departure=self._departure,
            serving=self._worker.set_result,
        )

    def _load(self, config: WorkerConfig) -> ModelRunner:
        return load_model(config, self._launcher)

    async def check_health(self) -> None:
        """Raises where it is of no more use: ended, hung in a step, or its loop is blocked."""
        check_alive(self._life)
        if not await self._own.beats(BEAT_S):
            raise Unavailable(f"{self._config.replica}: nothing moves")
        if self._worker.result().hung.is_set():
            raise Unavailable(f"{self._config.replica}: a step does not end")

    async def __del__(self) -> None:
        """Serve awaits it, as long as the drain may take."""
        self._own.run(self._depart())
        await asyncio.wait([asyncio.wrap_future(self._life)])

    async def _depart(self) -> None:
        if self._departure is not None:
            self._departure.ask()


@_watched(max_constructor_retry_count=STARTS)
class RouterReplica:
    """The router with its three ports."""

    async def __init__(self, config: str) -> None:  # type: ignore[misc]
        told = RouterConfig.model_validate_json(config)
        log_to_stderr(told.telemetry.logs, "router")
        self._config = told.model_copy(update={"model": str(resolve_model(told.model))})
        self._own: OwnService[Ports] = OwnService("router", partial(serve_router, self._config))
        await self._own.serves()

    async def reconfigure(self, told: dict[str, Any]) -> None:
        """`slo`: the service classes from now on, as JSON."""
        access = own_access(self._config.tls, self._config.api_keys)
        router = str(self._own.where.result().grpc)
        await asyncio.to_thread(_set_slo, router, access, told["slo"])

    async def address(self) -> str:
        """Of its gRPC port, as other nodes reach it."""
        grpc = self._own.where.result().grpc
        if grpc.host in ANY_HOST:
            grpc = grpc.model_copy(update={"host": ray.util.get_node_ip_address()})
        return str(grpc)

    async def check_health(self) -> None:
        await self._own.check_health()

    async def __del__(self) -> None:
        await self._own.end()


@_watched(graceful_shutdown_timeout_s=MARGIN_S)
class PlannerReplica:
    """The planner. A router that moves to another address ends it, and Serve starts it anew."""

    async def __init__(self, config: str, router_app: str) -> None:  # type: ignore[misc]
        told = PlannerConfig.model_validate_json(config)
        log_to_stderr(told.logs, "planner")
        self._router_app = None if told.routers else router_app
        self._router = await self._find_router()
        self._config = told.model_copy(
            update={
                "model": str(resolve_model(told.model)),
                "routers": told.routers or (self._router,),
                "planner": _on_this_node(told.planner),
            }
        )
        self._own: OwnService[int] = OwnService("planner", partial(serve_planner, self._config))
        await self._own.serves()

    async def _find_router(self) -> str | None:
        """Its address, once it has one; None where nobody needs to ask."""
        while self._router_app is not None:
            try:
                handle = await asyncio.to_thread(serve.get_app_handle, self._router_app)
                address: str = await handle.address.remote()
                return address
            except (RayServeException, RayError):
                await asyncio.sleep(ASK_AGAIN_S)
        return None

    async def check_health(self) -> None:
        await self._own.check_health()
        with suppress(TimeoutError):  # it is being replaced
            async with asyncio.timeout(BEAT_S):
                if await self._find_router() != self._router:
                    raise Unavailable("the planner: the router has moved")

    async def __del__(self) -> None:
        await self._own.end()


def _on_this_node(planner: PlannerSection) -> PlannerSection:
    """Its metrics where others look for them, rather than on every address."""
    if planner.host not in ANY_HOST:
        return planner
    return planner.model_copy(update={"host": ray.util.get_node_ip_address()})


def _set_slo(router: str, access: Access, slo: str) -> None:
    with AdminClient(router, access) as client:
        client.set_slo(slo)
