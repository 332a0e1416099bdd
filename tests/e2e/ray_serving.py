"""`kvasir serve --backend ray` for tests: its processes known by a mark, its replicas by title."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from load_tests.chaos_live import Load
from load_tests.chaos_work import Work
from tests.chaos.report import Tally
from tests.e2e.serving import ANY_PORTS, KVASIR, PATIENCE_S, READY, Serving, kvasir
from workers.wire import admin_pb2 as admin
from workers.wire import common_pb2 as common

NAME = "raytest"
MARK = "KVASIR_TEST_RAY"
STOP_S = 90.0
CONFIG: Mapping[str, Any] = {
    "name": NAME,
    "model": "demo",
    "served_name": "kvasir-demo",
    "engine": {
        "dtype": "float32", "kv_tokens": 16384, "max_seqs": 16, "threads": 1,
    },
    "planner": {"mode": "advise", "every_s": 2, "metrics_port": 0},
    "router": {"limits": {"worker_wait_s": PATIENCE_S, "retry_s": PATIENCE_S}},
}  # fmt: skip


@dataclass
class RayServing(Serving):
    mark: str = ""

    def titled(self, what: str) -> dict[int, str]:
        """Titles by process id of those of ours that have `what` in it."""
        return {pid: title for pid, title in marked(self.mark).items() if what in title}

    def replica(self, pool: str) -> int:
        """The process of its only replica."""
        (pid,) = self.titled(f":{pool}")
        return pid

    async def scale(self, **pools: int) -> None:
        """By hand."""
        for pool, replicas in pools.items():
            config = f"--config={self.log_dir / 'cluster.yaml'}"
            await asyncio.to_thread(
                kvasir, "scale", pool, str(replicas), config, f"--redis-url={self.redis_url}"
            )

    async def sizes(self, **pools: int) -> None:
        """Until so many replicas of each of these pools serve, and no other is known of it."""
        await self.until(
            lambda now: all(_ready(now, p) == n == _all(now, p) for p, n in pools.items())
        )

    def roles(self) -> dict[str, common.Role]:
        return {r.load.replica.id: r.load.role for r in self.status().replicas}


def _all(now: admin.StatusResponse, pool: str) -> int:
    return sum(replica.pool == pool for replica in now.replicas)


def _ready(now: admin.StatusResponse, pool: str) -> int:
    return sum(r.pool == pool and r.up and r.load.state == "ready" for r in now.replicas)


def marked(mark: str) -> dict[int, str]:
    """Title of each process that has it in its environment, without this one."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip()
                found[int(entry.name)] = title.decode()
        except OSError:
            continue
    return found


@contextmanager
def ray_serve(
    folder: Path, pools: list[dict[str, Any]], changes: Mapping[str, Any] | None = None
) -> Iterator[RayServing]:
    """Runs until the block ends; then none of its processes may be left. `changes`: sections of
    the config; where they have ports, these are taken."""
    path = folder / "cluster.yaml"
    config = {**CONFIG, **(changes or {}), "pools": pools}
    if any(pool["role"] == "aggregated" for pool in pools):
        del config["planner"]  # it sizes no such pools
    path.write_text(yaml.safe_dump(config))
    mark = secrets.token_hex(8)
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", MARK: mark}
    ports = () if changes else ANY_PORTS
    argv = [*KVASIR, "serve", "--backend=ray", *ports, f"--config={path}"]
    with (folder / "serve.err").open("w") as errors:
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | settings
        )
    assert process.stdout is not None
    try:
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, (folder / "serve.err").read_text()
            found = READY.match(line.rstrip("\n"))
        yield RayServing(process, found[1], found[2], found[3], folder, len(pools), mark)
    finally:
        process.terminate()
        try:
            code = process.wait(STOP_S)
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
    assert code == 0, (folder / "serve.err").read_text()
    left = {pid: title for pid, title in marked(mark).items() if title}
    assert not left, left


@asynccontextmanager
async def under_load(serving: Serving, work: list[Work], clients: int = 2) -> AsyncIterator[Load]:
    """Clients ask one request after the other; none may be lost, nor a token be wrong."""
    load = Load(serving.grpc, serving.model, work, random.Random(7), Tally())
    asking = [asyncio.create_task(load.client()) for _ in range(clients)]
    try:
        yield load
        load.stop.set()
        await asyncio.gather(*asking)
    finally:
        for task in asking:
            task.cancel()
    assert not load.problems, load.problems
    assert load.tally.answered > 0


async def answers(load: Load, more: int) -> None:
    """Until so many more have come."""
    enough = load.tally.answered + more
    while load.tally.answered < enough:
        await asyncio.sleep(0.05)
