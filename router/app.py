"""Puts the router together, runs it, and takes it apart in the order in which things depend."""

from __future__ import annotations

import asyncio
import math
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from router.api import ModelCard
from router.config import Address, RouterConfig
from router.dispatch import Dispatcher
from router.explain.http import explain_routes
from router.explain.predictions import request_errors
from router.explain.trails import Trails
from router.flow.control import FlowControl
from router.flow.room import PoolRoom
from router.flow.tuning import EngineTuner
from router.gateway.app import create_app
from router.generation import RouterGenerator
from router.index.fsck import Fsck
from router.index.measures import IndexMeasures
from router.index.redis_log import RedisLog
from router.index.redis_reader import RedisReader
from router.latency import FittedLatency
from router.latency.feed import LatencyFeed
from router.latency.measures import LatencyMeasures
from router.metrics import CONTENT_TYPE, RouterMetrics
from router.placement.placement import Placement
from router.placement.policies.names import make_policy
from router.pool import Pool, PoolListener
from router.rebalance import rebalance
from router.recording import Recording
from router.registry_reader import RegistryReader
from router.service import AdminService, GrpcServer, InferenceService, port_taken
from router.sharing.blocks import ToldIndex
from router.sharing.channel import Channel
from router.sharing.sharing import Sharing
from router.token_measures import TokenMeasures
from workers.core.clock import Clock, SystemClock, unix_time
from workers.models.config import load_config as load_model_config
from workers.text import Tokenizer
from workers.wire.redis_client import connect_redis

BACKLOG = 2048
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
        http_socket = parts.enter_context(_listen("http", config.http))
        admin_socket = parts.enter_context(_listen("admin", config.admin))
        grpc = GrpcServer(config.grpc, config.limits.max_body_bytes)
        recording = Recording(clock)
        listeners: list[PoolListener] = [metrics, LatencyFeed(latency), recording]
        pool, fsck, sharing = await parts.enter_async_context(
            _connected(config, index, clock, listeners)
        )
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
        gateway = create_app(
            generator,
            ready=lambda: _ready(pool),
            classes=lambda: flow.slo.classes,
            registry=metrics.registry if config.metrics_on_http else None,
            max_body_bytes=config.limits.max_body_bytes,
            refused=metrics.refused,
        )
        admin = AdminService(
            config.served_name, pool, index, flow, metrics, fsck, generator.trails,
            latency.errors, recording, sharing,
        )  # fmt: skip
        await grpc.start(InferenceService(generator, metrics.refused), admin)
        http = await parts.enter_async_context(_http(gateway, http_socket, grace_s))
        admin_app = _admin_app(metrics, generator.trails)
        await parts.enter_async_context(_http(admin_app, admin_socket, grace_s))
        await parts.enter_async_context(_running(_tell_health(pool, grpc)))
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


def _ready(pool: Pool) -> bool:
    """Somebody can prefill, and somebody can decode."""
    up = {replica.role for replica in pool if replica.up}
    return "aggregated" in up or {"prefill", "decode"} <= up


@asynccontextmanager
async def _connected(
    config: RouterConfig, index: ToldIndex, clock: Clock, listeners: list[PoolListener]
) -> AsyncIterator[tuple[Pool, Fsck | None, Sharing | None]]:
    """A pool that follows the registry; without Redis, one of the replicas that config names, whose
    index knows only what was sent to them."""
    silence_s = config.limits.worker_silence_s
    if config.redis_url is None:
        async with Pool(silence_s, listeners) as pool:
            pool.sync(config.replicas)
            pool.redis_lost()
            yield pool, None, None
        return
    async with connect_redis(config.redis_url) as client:
        reader = RegistryReader(client, config.redis_url, config.cluster)
        records = await reader.read_first()
        tables = RedisReader(client, config.cluster)
        events = RedisLog(tables, index, clock)
        sharing = Sharing(Channel(client, config.cluster), clock, index)
        async with Pool(silence_s, [*listeners, events, sharing]) as pool:
            pool.sync(records)
            async with (
                _running(events.run()),
                _running(reader.run(pool.sync, pool.redis_lost)),
                _running(sharing.run()),
            ):
                yield pool, Fsck(pool, index, events, tables, clock), sharing


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


async def _tell_health(pool: Pool, grpc: GrpcServer) -> None:
    while True:
        await grpc.set_ready(_ready(pool))
        await pool.wait_changed()


@contextmanager
def _listen(key: str, address: Address) -> Iterator[socket.socket]:
    """A bound socket. Raises ConfigError that names key and port."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address.host, address.port))
            sock.listen(BACKLOG)  # now, so that a second router sees that the port is taken
        except OSError as error:
            raise port_taken(key, address, error) from None
        yield sock


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has one owner of signals, __main__."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _http(app: Any, sock: socket.socket, grace_s: float) -> AsyncIterator[uvicorn.Server]:
    """Serves `app` beside the block; at its end connections get `grace_s` to finish."""
    server = _Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=math.ceil(grace_s),
        )
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([sock]))
        try:
            yield server
        finally:
            server.should_exit = True


def _admin_app(metrics: RouterMetrics, trails: Trails) -> Starlette:
    async def render(request: HttpRequest) -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return Starlette(routes=[Route("/metrics", render), *explain_routes(trails)])
