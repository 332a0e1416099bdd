"""`kvasir worker` and `kvasir router`, each as the only process of a container would run: told by
cluster.yaml and the environment, asked by probes, and stopped as Kubernetes stops pods."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.backends.ports import free_ports
from tests.e2e.serving import KVASIR
from tests.redis_server import redis_server
from workers.health import WORKER

PATIENCE_S = 150.0
SERVING, NOT_SERVING = 1, 2
QUESTION = {
    "model": "demo",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
}
LONG = {"model": "demo", "prompt": "one two three", "max_tokens": 800, "ignore_eos": True}


@dataclass
class Process:
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def says(self, what: str) -> bool:
        return what in self.log.read_text()

    async def until_it_says(self, what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not self.says(what):
                    assert self.process.poll() is None, self.log.read_text()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(self.log.read_text()) from None

    async def ended(self) -> int:
        try:
            return await asyncio.to_thread(self.process.wait, PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.log.read_text()) from None


class Cluster:
    """A config, and processes that read it; workers have an address each, as pods have."""

    def __init__(self, folder: Path, redis_url: str, pools: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.path = folder / "cluster.yaml"
        # On every address, and not of those that connections get.
        worker, metrics, self.http, grpc_port, admin = free_ports(5, "0.0.0.0")
        self.ports = {"worker": worker, "metrics": metrics}
        config = {
            "model": "demo",
            "served_name": "demo",
            "redis": redis_url,
            "engine": {"kv_tokens": 8192, "threads": 1},
            "pools": pools,
            "ports": self.ports,
            "grace_s": 60,
            "router": {
                "http": self.http, "grpc": grpc_port, "admin": admin,
                "disaggregation": "remote",
                "limits": {"worker_wait_s": PATIENCE_S, "shutdown_s": 30},
            },
        }  # fmt: skip
        self.path.write_text(yaml.safe_dump(config))
        self.processes: list[Process] = []

    def start(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*KVASIR, *arguments, "--config", str(self.path)],
                stdout=out,
                stderr=out,
                env={**os.environ, **(env or {})},
            )
        self.processes.append(Process(name, process, log))
        return self.processes[-1]

    def worker(self, pool: str, name: str, ip: str) -> Process:
        return self.start(name, "worker", "--pool", pool, env={"POD_NAME": name, "POD_IP": ip})

    def router(self) -> Process:
        return self.start("router", "router", "--host", "127.0.0.1")

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[httpx.AsyncClient]:
        """Of the router, once it can answer."""
        url = f"http://127.0.0.1:{self.http}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE_S) as client:
            async with asyncio.timeout(PATIENCE_S):
                while not await _healthy(client):
                    await asyncio.sleep(0.2)
            yield client


async def _healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).is_success
    except httpx.TransportError:
        return False  # not listening yet


@contextmanager
def cluster(folder: Path, pools: list[dict[str, Any]]) -> Iterator[Cluster]:
    with redis_server() as redis:
        made = Cluster(folder, redis.url, pools)
        try:
            yield made
        finally:
            for each in made.processes:
                each.process.kill()
                each.process.wait()


@asynccontextmanager
async def probing(address: str) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def check(stub: health_pb2_grpc.HealthStub, service: str) -> int:
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    return int(answer.status)


@pytest.mark.timeout(400)
async def test_a_request_is_answered_and_a_worker_that_is_told_to_stop_finishes_what_it_has(
    tmp_path: Path,
) -> None:
    with cluster(tmp_path, [{"name": "both", "role": "aggregated"}]) as up:
        worker, router = up.worker("both", "both-7d9-x2x", "127.0.0.2"), up.router()
        await worker.until_it_says("ready on")
        assert worker.says(f"both-7d9-x2x (aggregated) ready on 127.0.0.2:{up.ports['worker']}")
        async with (
            up.ready() as client,
            probing(f"127.0.0.2:{up.ports['worker']}") as probe,
        ):
            assert [await check(probe, service) for service in ("", WORKER)] == [SERVING, SERVING]
            with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
                await check(probe, "somebody.Else")
            side = f"http://127.0.0.2:{up.ports['metrics']}"
            assert "kvasir_worker_" in (await client.get(f"{side}/metrics")).text
            assert (await client.get(f"{side}/ready")).status_code == 200

            answer = await client.post("/v1/chat/completions", json=QUESTION)
            assert "Paris" in answer.json()["choices"][0]["message"]["content"]

            body = LONG | {"stream": True, "stream_options": {"include_usage": True}}
            async with client.stream("POST", "/v1/completions", json=body) as stream:
                lines = stream.aiter_lines()
                assert (await anext(lines)).startswith("data: ")
                worker.process.terminate()
                watch = probe.Watch(health_pb2.HealthCheckRequest(service=WORKER), timeout=30)
                while (await watch.read()).status != NOT_SERVING:
                    pass
                assert await check(probe, "") == SERVING, "it lives while it drains"
                assert (await client.get(f"{side}/ready")).status_code == 503
                said = [line async for line in lines if line]
            assert said[-1] == "data: [DONE]"
            assert '"completion_tokens":800' in said[-2].replace(" ", "")
        assert await worker.ended() == 0
        assert worker.says("leaving with 0 requests or tickets open")
        router.process.terminate()
        assert await router.ended() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_pods_of_two_pools_hand_requests_over_and_one_is_drained_before_it_stops(
    tmp_path: Path,
) -> None:
    pools = [
        {"name": "prefill", "role": "prefill"},
        {"name": "decode", "role": "decode", "replicas": 2},
    ]
    with cluster(tmp_path, pools) as up:
        up.router()
        await up.worker("prefill", "p-0", "127.0.0.2").until_it_says("ready on")
        leaving = up.worker("decode", "d-0", "127.0.0.3")
        await leaving.until_it_says("ready on")
        async with up.ready() as client, asyncio.TaskGroup() as tasks:
            enough = asyncio.Event()
            asking = [tasks.create_task(keep_asking(client, enough)) for _ in range(4)]
            await up.worker("decode", "d-1", "127.0.0.4").until_it_says("ready on")
            stop = up.start("stop", "drain", env={"POD_IP": "127.0.0.3"})
            assert await stop.ended() == 0
            assert stop.says("drained"), stop.log.read_text()
            metrics = await client.get(f"http://127.0.0.3:{up.ports['metrics']}/metrics")
            leaving.process.terminate()
            assert await leaving.ended() == 0
            enough.set()
        said = re.findall(r"^kvasir_worker_generated_tokens_total (\S+)$", metrics.text, re.M)
        assert float(said[0]) > 0, "it had nothing to do"
        answers = [answer for task in asking for answer in task.result()]
        assert {answer.json()["usage"]["completion_tokens"] for answer in answers} == {400}


async def keep_asking(client: httpx.AsyncClient, enough: asyncio.Event) -> list[httpx.Response]:
    """One answer after another."""
    answers = []
    while not enough.is_set():
        answers.append(await client.post("/v1/completions", json=LONG | {"max_tokens": 400}))
    return answers
