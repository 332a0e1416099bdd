#!/usr/bin/env python3
"""Tokens a second through one router process: many streams from workers whose steps take no time,
by gRPC and by HTTP (server-sent events). Workers, Redis, router and client are processes of their
own; a message or event carries what came since the one before.

python -m load_tests.bench_stream --streams 64
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from cluster.backends.ports import free_ports
from cluster.redis_server import server_spec, wait_until_up
from load_tests.leaving import leave_on_sigterm
from load_tests.peers.process import running
from load_tests.peers.router_model import write_model
from load_tests.peers.systems import System
from workers.core.clock import SystemClock
from workers.wire import inference_pb2 as inference

NAME = "instant"
DOORS = ("grpc", "http")
CLIENT_S, REDIS_S = 300.0, 10.0
GENERATE = "/kvasir.v1.Inference/Generate"


@dataclass(frozen=True, slots=True)
class Load:
    """What the client does. `port`: of `door`."""

    door: str
    port: int
    streams: int
    tokens: int  # of each
    prompt: int  # words, no two prompts alike


@dataclass(frozen=True, slots=True)
class Seen:
    """`seconds` from the first message to the last; `cpu_s` of the client."""

    seconds: float
    tokens: int
    messages: int
    cpu_s: float


class Tally:
    """Counts messages of all streams."""

    def __init__(self) -> None:
        self.messages = 0
        self.tokens = 0
        self.first_at: float | None = None
        self.first_cpu_s = 0.0
        self._clock = SystemClock()

    def now(self) -> float:
        return self._clock.now()

    def came(self, messages: int) -> None:
        self.messages += messages
        if self.first_at is None:
            self.first_at = self.now()
            self.first_cpu_s = process_cpu_s()


async def by_grpc(load: Load, number: int, tally: Tally, channel: grpc.aio.Channel) -> None:
    """Messages are counted unread, but for the last one."""
    generate = channel.unary_stream(GENERATE)
    request = inference.GenerateRequest(model=NAME, text=_prompt(load, number))
    request.sampling.max_tokens = load.tokens
    request.sampling.ignore_eos = True
    last = b""
    async for message in generate(request.SerializeToString()):
        tally.came(1)
        last = message
    tally.tokens += inference.GenerateResponse.FromString(last).usage.completion_tokens


async def by_http(load: Load, number: int, tally: Tally, _: grpc.aio.Channel) -> None:
    """Events are counted by their first word; usage stands in the last but one."""
    body = {
        "model": NAME, "prompt": _prompt(load, number), "max_tokens": load.tokens,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", load.port)
    writer.write(head.encode() + data)
    end = b""
    while part := await reader.read(1 << 16):
        tally.came(part.count(b"data: "))
        end = (end + part)[-4096:]
    writer.close()
    events = [line[6:] for line in end.split(b"\n") if line.startswith(b"data: {")]
    tally.tokens += json.loads(events[-1])["usage"]["completion_tokens"]


async def client(load: Load) -> Seen:
    one: Callable[..., Awaitable[None]] = {"grpc": by_grpc, "http": by_http}[load.door]
    tally = Tally()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{load.port}") as channel:
        await asyncio.gather(*(one(load, n, tally, channel) for n in range(load.streams)))
    assert tally.first_at is not None
    took_s, spent_s = tally.now() - tally.first_at, process_cpu_s() - tally.first_cpu_s
    return Seen(took_s, tally.tokens, tally.messages, spent_s)


def process_cpu_s() -> float:
    spent = os.times()
    return spent.user + spent.system


def _prompt(load: Load, number: int) -> str:
    return " ".join(f"word {number} {i}" for i in range(load.prompt // 3))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(load: Load, pids: dict[str, list[int]]) -> dict[str, float]:
    """One client process. Microseconds of CPU a token of every kind of process."""
    before = {name: sum(map(cpu_s, some)) for name, some in pids.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "load_tests.bench_stream", "--client", json.dumps(asdict(load)),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(process.communicate(), CLIENT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    seen = Seen(**json.loads(out))
    assert seen.tokens == load.streams * load.tokens, f"{seen.tokens} tokens came"
    row = {"tokens_s": seen.tokens / seen.seconds, "tokens_message": seen.tokens / seen.messages}
    for name, some in pids.items():
        spent = sum(map(cpu_s, some)) - before[name]
        row[f"{name}_us_token"] = spent / seen.tokens * 1e6
    return row | {"client_us_token": seen.cpu_s / seen.tokens * 1e6}


@contextmanager
def _redis(port: int, folder: Path) -> Iterator[None]:
    spec = server_spec(port, folder)
    for path, text in spec.files.items():
        path.write_text(text)
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(spec.argv, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def start(
    stack: AsyncExitStack, options: argparse.Namespace, folder: Path
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Pids by kind, and the router's doors."""
    model = options.model
    write_model(model)
    redis, grpc_port, http, admin, *ports = free_ports(4 + 2 * options.workers)
    url = f"redis://127.0.0.1:{redis}"
    stack.enter_context(_redis(redis, folder))
    await wait_until_up(url, REDIS_S)
    pids: dict[str, list[int]] = {"router": [], "workers": []}
    for number in range(options.workers):
        port, metrics = ports[2 * number : 2 * number + 2]
        worker = {
            "replica": f"worker-{number}", "pool": "workers", "role": "aggregated", "port": port,
            "model": str(model), "metrics_port": metrics, "redis": url,
            "engine": {"step_tokens": 1 << 14, "max_seqs": options.streams, "kv_tokens": 1 << 20},
            "transport": {"backend": "inline"}, "hardware": "h100",
        }  # fmt: skip
        config = folder / f"worker-{number}.json"
        config.write_text(json.dumps(worker))
        command = (sys.executable, "-m", "load_tests.instant_worker", "--config", str(config))
        system = System(f"worker {number}", command, ready="/metrics")
        up = await stack.enter_async_context(running(system, metrics, folder / "worker.log"))
        pids["workers"].append(up.pid)
    router = {
        "model": str(model), "served_name": NAME, "redis": url,
        "grpc": {"port": grpc_port}, "http": {"port": http}, "admin": {"port": admin},
    }  # fmt: skip
    config = folder / "router.json"
    config.write_text(json.dumps(router))
    command = (sys.executable, *options.run_router, "--config", str(config))
    system = System("router", command)
    up = await stack.enter_async_context(running(system, http, folder / "router.log"))
    pids["router"].append(up.pid)
    return pids, {"grpc": grpc_port, "http": http}


async def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            pids, doors = await start(stack, options, Path(folder))
            for door in options.doors:
                for tokens in (100, options.tokens):  # the first warms up
                    load = Load(door, doors[door], options.streams, tokens, options.prompt)
                    row = await measure(load, pids)
                    if tokens == options.tokens:
                        print(door, *(f"{key} {value:.1f}" for key, value in row.items()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2000, help="of each stream")
    parser.add_argument("--prompt", type=int, default=99, help="words")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--doors", nargs="+", choices=DOORS, default=DOORS)
    model = Path(tempfile.gettempdir()) / "kvasir-router-model"
    parser.add_argument("--model", type=Path, default=model, help="written where it is missing")
    parser.add_argument("--run-router", nargs="+", default=["-m", "router"], help=argparse.SUPPRESS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    leave_on_sigterm()
    given = _options()
    if given.client is None:
        asyncio.run(main(given))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found: Any = runner.run(client(Load(**json.loads(given.client))))
            print(json.dumps(asdict(found)))
