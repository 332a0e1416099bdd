"""Starts a router with four instant workers: HTTP mocks behind those that pass bytes on, Dynamo's
own mock engines behind its frontend, real workers over a runner that takes no time behind ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.backends.ports import free_ports
from cluster.redis_server import server_spec, wait_until_up
from load_tests.peers.process import running
from load_tests.peers.router_client import MODEL, Answer, Messages, connection, http_request
from load_tests.peers.router_direct import Send, worker_connection
from load_tests.peers.systems import System
from workers.wire.redis_endpoint import RedisEndpoint

WORKERS = 4
START_S = 10.0  # of Redis
# What workers behind a router that tokenises have, besides KV: tokens.
BLOCK_SIZE, STEP_TOKENS, MAX_SEQS = 16, 1 << 17, 256
# Dynamo as it is, and with the fastest of the tokenizers it brings along.
DYNAMO = {"dynamo": "default", "dynamo-fastokens": "fastokens"}


@dataclass(frozen=True, slots=True)
class Router:
    """`direct()`: a connection to one of its workers, past the router; None where nobody but the
    router can talk to them. `tokenises`: and so knows how many tokens a prompt has."""

    pid: int
    port: int
    admin: int | None
    direct: Callable[[], AbstractAsyncContextManager[Send]] | None
    tokenises: bool


@dataclass(frozen=True, slots=True)
class Place:
    """`peers`: the folder that install_routers.sh was given. `model`: see router_model.py.
    `kv_tokens`: that each worker of a router that tokenises caches, which bounds its index."""

    peers: Path
    model: Path
    logs: Path
    kv_tokens: int = 1 << 20


@asynccontextmanager
async def started(name: str, place: Place) -> AsyncIterator[Router]:
    """Raises PeerFailed."""
    async with AsyncExitStack() as stack:
        start = _kvasir if name == "kvasir" else _dynamo if name in DYNAMO else _peer
        yield await start(name, place, stack)


async def _peer(name: str, place: Place, stack: AsyncExitStack) -> Router:
    port, metrics, *workers = free_ports(2 + WORKERS)
    for number, worker in enumerate(workers):
        command = (sys.executable, "-m", "load_tests.peers.router_mock", str(worker))
        mock = System(f"{name} mock {number}", command)
        await stack.enter_async_context(running(mock, worker, place.logs / "mock.log"))
    urls = [f"http://127.0.0.1:{worker}" for worker in workers]
    home = place.peers / name / "bin"
    options = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    options += ["--policy", "cache_aware", "--worker-urls", *urls]
    if name == "sglang-router":
        launch = [str(home / "python"), "-m", "sglang_router.launch_router", "--log-level", "warn"]
    else:
        launch = [str(home / "vllm-router"), "--log-level", "warning"]
    router = System(name, (*launch, *options))
    up = await stack.enter_async_context(running(router, port, place.logs / f"{name}.log"))

    @asynccontextmanager
    async def direct() -> AsyncIterator[Send]:
        async with connection(workers[0]) as ask:

            async def send(messages: Messages, tokens: int) -> Answer:
                return await ask(http_request(messages, tokens))

            yield send

    return Router(up.pid, port, None, direct, tokenises=False)


async def _dynamo(name: str, place: Place, stack: AsyncExitStack) -> Router:
    """Files instead of etcd, TCP and ZeroMQ instead of NATS."""
    port, health = free_ports(2)
    # Of its own for each start: those who are gone would still stand in one that is used again.
    found = stack.enter_context(TemporaryDirectory())
    env = {
        "DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": found, "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq", "DYN_LOG": "error", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    python, block = str(place.peers / "dynamo/bin/python"), str(BLOCK_SIZE)
    engine = ["--model-path", str(place.model), "--model-name", MODEL, "--block-size", block]
    engine += ["--num-workers", str(WORKERS), "--speedup-ratio", "1000000"]
    engine += ["--num-gpu-blocks-override", str(place.kv_tokens // BLOCK_SIZE)]
    engine += ["--max-num-seqs", str(MAX_SEQS), "--max-num-batched-tokens", str(STEP_TOKENS)]
    command = (python, "-m", "dynamo.mocker", *engine)
    mocks = System(f"{name} mocks", command, env | {"DYN_SYSTEM_PORT": str(health)}, "/metrics")
    await stack.enter_async_context(running(mocks, health, place.logs / "dynamo-mocks.log"))
    options = ["--http-host", "127.0.0.1", "--http-port", str(port), "--router-mode", "kv"]
    options += ["--kv-cache-block-size", block, "--tokenizer", DYNAMO[name]]
    command = (python, "-m", "dynamo.frontend", *options)
    frontend = System(name, command, env, ready=f"/v1/models/{MODEL}")
    up = await stack.enter_async_context(running(frontend, port, place.logs / f"{name}.log"))
    return Router(up.pid, port, None, None, tokenises=True)


async def _kvasir(name: str, place: Place, stack: AsyncExitStack) -> Router:
    redis, http, grpc, admin, *ports = free_ports(4 + 2 * WORKERS)
    url = f"redis://127.0.0.1:{redis}"
    stack.enter_context(_redis(redis, place.logs))
    await wait_until_up(RedisEndpoint(url=url), START_S)
    for number in range(WORKERS):
        port, metrics = ports[2 * number : 2 * number + 2]
        worker = {
            "replica": f"worker-{number}", "pool": "workers", "role": "aggregated", "port": port,
            "model": str(place.model), "metrics_port": metrics, "redis": url,
            "hardware": "h100",
            "engine": {
                "step_tokens": STEP_TOKENS, "max_seqs": MAX_SEQS, "kv_tokens": place.kv_tokens,
                "block_size": BLOCK_SIZE,
            },
            "transport": {"backend": "inline"},
        }  # fmt: skip
        config = place.logs / f"worker-{number}.json"
        config.write_text(json.dumps(worker))
        command = (sys.executable, "-m", "load_tests.instant_worker", "--config", str(config))
        instant = System(f"worker {number}", command, ready="/metrics")
        await stack.enter_async_context(running(instant, metrics, place.logs / "worker.log"))
    router = {
        "model": str(place.model), "served_name": MODEL, "redis": url,
        "grpc": {"port": grpc}, "http": {"port": http}, "admin": {"port": admin},
    }  # fmt: skip
    config = place.logs / "router.json"
    config.write_text(json.dumps(router))
    launch = (sys.executable, "-m", "router", "--config", str(config), "--log-level", "WARNING")
    system = System(name, launch)
    up = await stack.enter_async_context(running(system, http, place.logs / "kvasir.log"))
    return Router(up.pid, http, admin, lambda: worker_connection(place.model, ports[0]), True)


class _redis:
    """A server for as long as the block runs."""

    def __init__(self, port: int, folder: Path) -> None:
        self._spec = server_spec(port, folder)
        self._log = folder / "redis.log"

    def __enter__(self) -> None:
        for path, text in self._spec.files.items():
            path.write_text(text)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._spec.argv, stdout=log, stderr=log)

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()
