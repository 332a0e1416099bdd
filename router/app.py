"""Puts the router together, runs it, and takes it apart in the order in which things depend."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from router.api import ModelCard
from router.config import Address, RouterConfig
from router.console.events import PoolEvents
from router.console.http import Console
from router.console.overview import Sources
from router.dispatch import Dispatcher
from router.doors.grpc import GrpcServer
from router.doors.guard import Guard
from router.doors.http import Patience, listen, serve_http
from router.doors.keys import ApiKeys
from router.explain.http import explain_routes
from router.explain.predictions import request_errors
from router.explain.scale import NoPlans, Plans
from router.explain.trails import Trails
from router.exposition import exposition
from router.flow.control import FlowControl
from router.flow.room import PoolRoom
from router.flow.tuning import EngineTuner
from router.gateway.app import create_app, health_response
from router.generation import RouterGenerator
from router.index.fsck import Fsck
from router.index.measures import IndexMeasures
from router.index.redis_log import RedisLog
from router.index.redis_reader import RedisReader
from router.latency import FittedLatency
from router.latency.feed import LatencyFeed
from router.latency.measures import LatencyMeasures
from router.metrics import RouterMetrics
from router.placement.placement import Placement
from router.placement.policies.names import make_policy
from router.pool import Pool, PoolListener
from router.rebalance import rebalance
from router.recording import Recording
from router.registry_reader import RegistryReader
from router.service import AdminService, InferenceService
from router.sharing.blocks import ToldIndex
from router.sharing.channel import Channel
from router.sharing.sharing import Sharing
from router.targets import target_route
from router.token_measures import TokenMeasures
from router.tracing.start import tracing
from router.worker_client import WorkerClient
from workers.core.clock import Clock, SystemClock, unix_time
from workers.models.config import load_config as load_model_config
from workers.text import Tokenizer
from workers.wire.redis_client import connect_redis
from workers.wire.tls import ServerTls, client_tls

LAST_WORDS_S = 0.5  # of the grace, a quarter of it at most: for telling clients that it is over
LOOK_EVERY_S = 0.1  # whether the last request has ended


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the router listens."""

    grpc: Address
    http: Address
    admin: Address


async def serve(
    config: RouterConfig, stop: asyncio.Event, listening: Callable[[Ports], None]
) -> None:
    """Runs until `stop` is set, then ends what is in flight within config.limits.shutdown_s.

    Raises ConfigError or CheckpointError when it cannot start.
    """
    model = load_model_config(Path(config.model))
    tokenizer = await asyncio.to_thread(Tokenizer.load, config.model)
    latency = FittedLatency(model)
    metrics, clock = RouterMetrics(), SystemClock()
    metrics.registry.register(TokenMeasures(tokenizer))
    index = ToldIndex(clock, config.limits.index_blocks)

    grace_s = config.limits.shutdown_s

    # Whatever may be refused comes first: ports, then Redis, then what runs until the end.
    async with AsyncExitStack() as parts:
        http_socket = parts.enter_context(listen("http", config.http))
        admin_socket = parts.enter_context(listen("admin", config.admin))
        keys = ApiKeys(config.api_keys, clock) if config.api_keys is not None else None
        tls = ServerTls(config.tls.serving) if config.tls is not None else None
        certificates = config.tls is not None and config.tls.client_ca is not None
        patience = Patience(config.limits.max_body_bytes, connections=config.limits.max_connections)
        grpc = GrpcServer(config.grpc, config.limits.max_body_bytes, tls, keys)
        recording = Recording(clock)
        events = PoolEvents()
        listeners: list[PoolListener] = [metrics, LatencyFeed(latency), recording, events]
        pool, fsck, sharing, plans = await parts.enter_async_context(
            _connected(config, index, clock, listeners)
        )
        if config.redis is not None:
            metrics.watch_redis(lambda: pool.redis_up)
        metrics.registry.register(
            IndexMeasures(index, lambda: fsck.repairs if fsck is not None else None)
        )
        rng = random.Random()
        placement = Placement(
            latency,
            rng,
            make_policy(config.policy, rng, clock),
            disaggregation=config.disaggregation,
            clock=clock,
        )
        ready = functools.partial(_ready, pool, placement)
        dispatcher = await parts.enter_async_context(
            Dispatcher(pool, placement, index, latency, config.limits, clock, metrics)
        )
        await parts.enter_async_context(_running(_cut_off(stop, grace_s, dispatcher)))
        if config.limits.rebalance:
            await parts.enter_async_context(_running(rebalance(pool, dispatcher)))
        room = PoolRoom(pool, latency, placement)
        flow = FlowControl(config.slo, room, clock, max_in_flight=config.limits.max_requests)
        metrics.registry.register(flow.book)
        await parts.enter_async_context(_running(flow.run()))
        tuner = EngineTuner(pool, latency, flow.itl_target_s)
        await parts.enter_async_context(_running(tuner.run()))
        card = ModelCard(config.served_name, model.context_length, int(unix_time()))
        generator = RouterGenerator(
            card, model.vocab_size, tokenizer, pool, flow, dispatcher, metrics, clock,
            random.Random(), recording,
        )  # fmt: skip
        trails = generator.trails
        metrics.registry.register(LatencyMeasures(latency.errors, lambda: request_errors(trails)))
        tracer = await parts.enter_async_context(
            tracing(
                config.telemetry, clock, metrics.registry, cluster=config.cluster, port=grpc.port
            )
        )
        gateway = create_app(
            generator,
            ready=ready,
            classes=lambda: flow.slo.classes,
            registry=metrics.registry if config.metrics_on_http else None,
            max_body_bytes=config.limits.max_body_bytes,
            refused=metrics.refused,
            tracer=tracer,
            keys=keys,
            certificates=certificates,
        )
        admin = AdminService(
            config.served_name, pool, index, flow, metrics, fsck, generator.trails,
            latency.errors, recording, sharing, plans,
        )  # fmt: skip
        await grpc.start(InferenceService(generator, metrics.refused, tracer, keys), admin)
        http = await parts.enter_async_context(
            serve_http(gateway, http_socket, grace_s, patience, tls)
        )
        sources = Sources(
            config.served_name, pool, index, flow, metrics, generator.trails, latency.errors,
            events, sharing, ready,
        )  # fmt: skip
        console = Console(sources, clock, gateway, plans)
        await parts.enter_async_context(_running(console.run()))
        targets = target_route(config.cluster, pool, plans)
        admin_app: ASGIApp = _admin_app(metrics, generator.trails, console, ready, targets)
        admin_app = Guard(admin_app, keys, certificates=certificates, admin=True)
        await parts.enter_async_context(serve_http(admin_app, admin_socket, grace_s, patience, tls))
        await parts.enter_async_context(_running(_tell_health(pool, grpc, ready)))
        listening(
            Ports(
                config.grpc.model_copy(update={"port": grpc.port}),
                config.http.model_copy(update={"port": http_socket.getsockname()[1]}),
                config.admin.model_copy(update={"port": admin_socket.getsockname()[1]}),
            )
        )
        try:
            await stop.wait()
        finally:
            flow.drain()
            http.should_exit = True  # both doors have the same grace, at the same time
            async with _running(_let_recorders_go(flow, recording)):
                await grpc.stop(grace_s)


def _ready(pool: Pool, placement: Placement) -> bool:
    """A request can be answered, as placement would have it: by one replica alone, or by two."""
    up = [replica for replica in pool if replica.up]
    decodes = {replica.kv_abi for replica in up if placement.serves(replica, "decode")}
    return any(
        placement.any_alone or replica.role == "aggregated" or replica.kv_abi in decodes
        for replica in up
        if placement.serves(replica, "prefill")
    )


@asynccontextmanager
async def _connected(
    config: RouterConfig, index: ToldIndex, clock: Clock, listeners: list[PoolListener]
) -> AsyncIterator[tuple[Pool, Fsck | None, Sharing | None, Plans]]:
    """A pool that follows the registry; without Redis, one of the replicas that config names, whose
    index knows only what was sent to them."""
    silence_s = config.limits.worker_silence_s
    client_of = functools.partial(WorkerClient, tls=client_tls(config.worker_tls))
    if config.redis is None:
        async with Pool(silence_s, listeners, client_of=client_of) as pool:
            pool.sync(config.replicas)
            pool.redis_lost()
            yield pool, None, None, NoPlans()
        return
    async with connect_redis(config.redis) as client:
        reader = RegistryReader(client, str(config.redis), config.cluster)
        records = await reader.read_first()
        tables = RedisReader(client, config.cluster)
        events = RedisLog(tables, index, clock)
        sharing = Sharing(Channel(client, config.cluster), clock, index)
        async with Pool(silence_s, [*listeners, events, sharing], client_of=client_of) as pool:
            pool.sync(records)
            async with (
                _running(events.run()),
                _running(reader.run(pool.sync, pool.redis_lost)),
                _running(sharing.run()),
            ):
                yield pool, Fsck(pool, index, events, tables, clock), sharing, reader


@asynccontextmanager
async def _running(work: Awaitable[None]) -> AsyncIterator[None]:
    """`work` runs beside the block and is cancelled at its end; its failure ends the block."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_await(work))
        try:
            yield
        finally:
            task.cancel()


async def _await(work: Awaitable[None]) -> None:
    await work


async def _cut_off(stop: asyncio.Event, grace_s: float, dispatcher: Dispatcher) -> None:
    """Requests that the grace is too short for end with an error, not with a broken connection."""
    await stop.wait()
    await asyncio.sleep(grace_s - min(LAST_WORDS_S, grace_s / 4))
    dispatcher.stop()


async def _let_recorders_go(flow: FlowControl, recording: Recording) -> None:
    """Once all that they wait for has ended: their streams would take the whole grace."""
    while flow.in_flight:  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(LOOK_EVERY_S)
    recording.close()


async def _tell_health(pool: Pool, grpc: GrpcServer, ready: Callable[[], bool]) -> None:
    while True:
        await grpc.set_ready(ready())
        await pool.wait_changed()


def _admin_app(
    metrics: RouterMetrics,
    trails: Trails,
    console: Console,
    ready: Callable[[], bool],
    targets: Route,
) -> Starlette:
    async def render(request: HttpRequest) -> Response:
        return exposition(metrics.registry, request)

    async def health(request: HttpRequest) -> Response:
        return health_response(ready())

    probes = [Route("/metrics", render), Route("/health", health), Route("/ready", health)]
    return Starlette(routes=[*probes, targets, *explain_routes(trails), *console.routes()])
