"""One worker process: load, listen, register, serve, drain, leave."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn

from workers.config import WorkerConfig
from workers.core.clock import SystemClock
from workers.core.errors import ConfigError
from workers.core.waits import let_go
from workers.engine import Engine
from workers.logs import Voice
from workers.metrics import Meter
from workers.models.resolve import resolve_model
from workers.parallel.launcher import RankLauncher
from workers.peer_client import GrpcPeers
from workers.prewarm import Prewarmer
from workers.registry import Registry
from workers.runner.model_runner import ModelRunner
from workers.runner.ranks import RankedRunner, load_replica
from workers.server import start_server
from workers.text import Tokenizer
from workers.transfer.link import Transport
from workers.transfer.pick import pick_transports
from workers.transfer.port import Ports
from workers.transfer.threads import on_thread
from workers.wire import common_pb2 as common
from workers.wire.codec import role_to_wire
from workers.wire.redis_keys import ReplicaRecord
from workers.wire.tls import client_tls
from workers.worker import STEP_LIMIT_S, Worker, WorkerState

log = logging.getLogger("kvasir.worker")
STEP_GRACE_S = 3.0  # a forward cannot be stopped; a worker told to stop waits so long for it
LAST_WORDS_S = 0.5  # for the streams of those whom a leaving worker still serves


def leave(code: int) -> NoReturn:
    """End the process now. Not sys.exit: a thread may still compute, or wait in Gloo for a peer
    that does not answer, and C++ aborts when its statics are torn down under it."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Departure:
    """How a worker is told to go: asked once it drains, asked again it goes at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()

    def ask(self) -> None:
        (self.at_once if self.asked.is_set() else self.asked).set()


def on_signals() -> Departure:
    """Asked by SIGTERM and SIGINT."""
    departure = Departure()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, departure.ask)
    return departure


async def run_worker(
    config: WorkerConfig,
    load: Callable[[WorkerConfig], Any] | None = None,
    *,
    departure: Departure | None = None,
    serving: Callable[[Worker], object] = lambda worker: None,
) -> None:
    """Serve until `departure`, by default SIGTERM or SIGINT; `load` makes another runner than a
    model's, `serving` is called once requests may come. Raises ConfigError and CheckpointError
    before it listens, and whatever broke the engine after. A step that does not end is left behind:
    see leave()."""
    for port in (config.port, config.metrics_port):
        _check_port(config.host, port)  # before minutes are spent on loading
    transports = pick_transports(config.transport, config.host)
    runner = await on_thread(load or load_model, config)
    ports = await runner.ports(transports, config.transport, config.host)
    worker, peers = _compose(config, runner, ports, transports)
    try:
        server, port = await start_server(worker, config.host, config.port, config.tls)
        metrics_port, stop_metrics = worker.meter.serve(
            config.host, config.metrics_port, lambda: worker.state is WorkerState.READY
        )
    except OSError as error:
        raise ConfigError(str(error)) from error
    log.info("metrics on http://%s:%d/metrics", config.host, metrics_port)
    worker.me.address = f"{config.host}:{port}"
    record = _record(config, worker, f"{config.host}:{metrics_port}")
    registry = Registry(config.redis, config.cluster, record, worker.events)
    worker.on_role = registry.set_role
    there = _be_there(config, worker, registry, peers, serving)
    stuck = False
    try:
        stuck = await _serve(config, worker, peers, there, departure or on_signals())
    finally:
        await registry.leave()
        await server.stop(grace=LAST_WORDS_S)
        stop_metrics()
        await peers.close()
        await worker.close()
    if stuck:
        leave(1 if worker.hung.is_set() else 0)


async def _serve(
    config: WorkerConfig,
    worker: Worker,
    peers: GrpcPeers,
    there: Coroutine[Any, Any, None],
    departure: Departure,
) -> bool:
    """Until it has drained and departs, or something breaks. True if a step would not end."""
    running = [
        asyncio.create_task(worker.run()),
        asyncio.create_task(peers.tend()),
        asyncio.create_task(there),
    ]
    ends: list[asyncio.Task[Any]] = [asyncio.create_task(worker.hung.wait())]
    runner, balance_s = worker.engine.runner, config.engine.balance_experts_s
    if isinstance(runner, RankedRunner):
        ends.append(asyncio.create_task(runner.fail()))
    if balance_s is not None and isinstance(runner, ModelRunner):
        running.append(asyncio.create_task(_balance_experts(runner, worker.meter, balance_s)))
    await _first((*running, *ends), departure.asked.wait())
    if departure.asked.is_set():
        drain = asyncio.create_task(worker.drain(config.grace_s))
        ends.append(drain)
        await _first((*running, *ends), departure.at_once.wait())
        log.info("leaving with %d requests or tickets open", worker.num_busy)
        worker.end()
    elif worker.hung.is_set():
        log.critical("a step has been running for %.0f s: giving up", STEP_LIMIT_S)
    worker.leaving.set()
    for task in (*running, *ends):
        task.cancel()
    done, stuck = await asyncio.wait([*running, *ends], timeout=STEP_GRACE_S)
    for task in done:
        if not task.cancelled():
            task.result()
    return bool(stuck)


async def _first(tasks: tuple[asyncio.Task[Any], ...], event: Coroutine[Any, Any, object]) -> None:
    """Until one of `tasks` has ended, or `event` has come."""
    waiting = asyncio.ensure_future(event)
    await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
    await let_go(waiting)


async def _be_there(
    config: WorkerConfig,
    worker: Worker,
    registry: Registry,
    peers: GrpcPeers,
    serving: Callable[[Worker], object],
) -> None:
    """Paired with those whose KV it will fetch, it is ready, and tells the cluster."""
    prewarmer = Prewarmer(
        registry,
        worker.receiver_pairs,
        worker.me,
        worker.engine.info.kv_abi,
        most=config.transport.prewarm,
        fetches=lambda: worker.role == common.ROLE_DECODE,
        gone=peers.gone,
    )
    await prewarmer.look()
    worker.ready = True
    log.info("%s (%s) ready on %s", config.replica, config.role, worker.me.address)
    serving(worker)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(registry.run())
        tasks.create_task(prewarmer.run())


async def _balance_experts(runner: ModelRunner, meter: Meter, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        found = await runner.balance_experts()
        if found is not None:
            meter.balanced(found.hottest, found.before, found.after, found.moved)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"port {port} on {host}: {error.strerror}") from None


def load_model(config: WorkerConfig, launcher: RankLauncher | None = None) -> ModelRunner:
    """Blocks. `launcher`: of its other ranks; None = processes beside this one."""
    last = ""

    def progress(what: str, share: float) -> None:
        nonlocal last
        line = f"{what} {share:.0%}"
        if line != last:
            log.info("%s", line)
            last = line

    voice = Voice(config.logs, config.replica)
    return load_replica(
        config.model, config.engine, progress=progress, launcher=launcher, voice=voice
    )


def _compose(
    config: WorkerConfig, runner: ModelRunner, ports: Ports, transports: Sequence[Transport]
) -> tuple[Worker, GrpcPeers]:
    engine = Engine(
        runner,
        block_size=config.engine.block_size,
        step_tokens=config.engine.step_tokens,
        max_seqs=config.engine.max_seqs,
        tokenizer=Tokenizer.load(str(resolve_model(config.model))),
        overlap=config.engine.overlaps(runner.on_gpu),
        eviction=config.engine.eviction,
    )
    peers = GrpcPeers(SystemClock(), tls=client_tls(config.tls))
    worker = Worker(
        engine,
        common.ReplicaRef(id=config.replica, incarnation=secrets.token_hex(8)),
        role_to_wire(config.role),
        peer_at=peers.at,
        ports=ports,
        transports=transports,
        config=config.transport,
        ttl_s=config.ticket_ttl_s,
        offload=on_thread,
    )
    worker.ready = False
    return worker, peers


def _record(config: WorkerConfig, worker: Worker, metrics: str) -> ReplicaRecord:
    return ReplicaRecord(
        id=worker.me.id,
        incarnation=worker.me.incarnation,
        address=worker.me.address,
        pool=config.pool,
        role=config.role,
        model=config.model,
        kv_abi=worker.engine.info.kv_abi,
        block_size=config.engine.block_size,
        context_length=worker.engine.info.context_length,
        kv_tokens=worker.engine.pool.num_blocks * config.engine.block_size,
        tensor_ranks=worker.me.tensor_ranks,
        expert_ranks=config.engine.expert_parallel,
        hardware=config.hardware,
        metrics=metrics,
    )
