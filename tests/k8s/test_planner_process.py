"""Two `kvasir planner --kubernetes` beside each other, with a real Redis and the stand-in."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis.asyncio
import yaml

from cluster.autoscaler.published import Published
from tests.e2e.serving import KVASIR
from tests.k8s.stand_in import NAMESPACE, RELEASE, StandIn, kubeconfig, stand_in
from tests.redis_server import redis_server
from workers.wire.redis_keys import plan_key

PATIENCE_S = 150.0
CONFIG = {
    "model": "demo",
    "pools": [
        {"name": "prefill", "role": "prefill", "replicas": 2, "min": 1, "max": 4},
        {"name": "decode", "role": "decode", "replicas": 3, "min": 1, "max": 8},
    ],
    "planner": {"mode": "apply", "metrics_port": 0},
}


@contextmanager
def planner(folder: Path, server: StandIn, who: str) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{who}.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(*KVASIR, "planner", "--config", str(folder / "cluster.yaml")),
                *("--kubernetes", f"{NAMESPACE}/{RELEASE}"),
            ],
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "POD_NAME": who,
                "KUBECONFIG": str(kubeconfig(folder, server, who)),
            },
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def until_size(server: StandIn, pool: str, size: int, folder: Path) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while server.size(pool) != size:
                await asyncio.sleep(0.1)
    except TimeoutError:
        logs = "\n".join(log.read_text() for log in folder.glob("*.log"))
        raise AssertionError(f"{pool} has {server.size(pool)}\n{logs}") from None


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_of_two_processes_one_acts_and_the_other_when_it_is_killed(tmp_path: Path) -> None:
    with redis_server() as server_of_redis:
        config = CONFIG | {"redis": server_of_redis.url}
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))

        async def plan(at: float, **pools: int) -> None:
            told = Published(at=at, mode="apply", pools=pools, plan={"reasons": ["a test"]})
            async with redis.asyncio.from_url(server_of_redis.url) as client:
                await client.set(plan_key("kvasir"), told.model_dump_json())

        async with stand_in() as server:
            server.deploy("prefill", 2)
            server.deploy("decode", 3)
            await plan(1.0, prefill=3, decode=2)
            with planner(tmp_path, server, "one") as one, planner(tmp_path, server, "two") as two:
                await until_size(server, "prefill", 3, tmp_path)
                await until_size(server, "decode", 2, tmp_path)
                leader = server.holder()
                first, second = (one, two) if leader == "one" else (two, one)
                first.kill()
                await plan(2.0, prefill=1, decode=4)
                await until_size(server, "prefill", 1, tmp_path)
                await until_size(server, "decode", 4, tmp_path)
                assert {who for who, _ in server.held_by} == {"one", "two"}
                assert all(who == holder for who, holder in server.held_by)
                second.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(second.wait, PATIENCE_S) == 0
                assert server.holder() == "", "the Lease is given back"
