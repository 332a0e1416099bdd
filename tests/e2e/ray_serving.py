"""`kvasir serve --backend ray` and `kvasir deploy` for tests, and nodes of Ray for them: processes
known by a mark, replicas by title."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.backends.ports import free_ports
from load_tests.chaos_live import Load
from load_tests.chaos_work import Work
from tests.chaos.report import Tally
from tests.e2e.serving import ANY_PORTS, KVASIR, PATIENCE_S, Serving, kvasir, until_ready
from workers.wire import admin_pb2 as admin
from workers.wire import common_pb2 as common

NAME = "raytest"
MARK, NODE = "KVASIR_TEST_RAY", "KVASIR_TEST_NODE"
STOP_S = 90.0
START_S = 240.0  # of a replica on Ray, where much else starts beside it
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

    @classmethod
    def deployed(cls, path: Path, node: RayNode) -> RayServing:
        """What `kvasir deploy` made of a config that names its ports."""
        config = yaml.safe_load(path.read_text())
        http, grpc = (f"127.0.0.1:{config['router'][door]}" for door in ("http", "grpc"))
        workers = sum(pool["replicas"] for pool in config["pools"])
        return cls(
            None, f"http://{http}", grpc, config["served_name"], path.parent, workers, node.mark
        )

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
            lambda now: all(_ready(now, p) == n == _all(now, p) for p, n in pools.items()),
            START_S,
        )

    def roles(self) -> dict[str, common.Role]:
        return {r.load.replica.id: r.load.role for r in self.status().replicas}


def _all(now: admin.StatusResponse, pool: str) -> int:
    return sum(replica.pool == pool for replica in now.replicas)


def _ready(now: admin.StatusResponse, pool: str) -> int:
    return sum(r.pool == pool and r.up and r.load.state == "ready" for r in now.replicas)


def marked(mark: str, name: str = MARK) -> dict[int, str]:
    """Title of each process that has it in its environment, without this one."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if f"{name}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip()
                found[int(entry.name)] = title.decode()
        except OSError:
            continue
    return found


@contextmanager
def ray_serve(
    folder: Path,
    pools: list[dict[str, Any]],
    changes: Mapping[str, Any] | None = None,
    node: RayNode | None = None,
) -> Iterator[RayServing]:
    """Runs until the block ends; then none of its processes may be left. `changes`: sections of
    the config; where they have ports, these are taken. `node`: whose Ray is joined."""
    path = folder / "cluster.yaml"
    config = {**CONFIG, **(changes or {}), "pools": pools}
    if any(pool["role"] == "aggregated" for pool in pools):
        del config["planner"]  # it sizes no such pools
    path.write_text(yaml.safe_dump(config))
    mark = node.mark if node else secrets.token_hex(8)
    argv = [*KVASIR, "serve", "--backend=ray", f"--config={path}"]
    argv += () if "grpc" in config["router"] else ANY_PORTS
    argv += [f"--address={node.address}"] if node else []
    with until_ready(folder, argv, env=_environ(mark), stop_s=STOP_S) as (process, ready):
        yield RayServing(process, *ready, folder, len(pools), mark)
    assert process.returncode == 0, (folder / "serve.err").read_text()
    left = {pid: title for pid, title in marked(mark).items() if title}
    if node:  # others' processes stay
        left = {pid: title for pid, title in left.items() if "Serve" in title}
    assert not left, left


@dataclass
class RayNode:
    """`address`: of its cluster's head, whose mark all nodes of the cluster have; `own`: the mark
    of what runs on this one."""

    address: str
    mark: str
    own: str

    def lose(self) -> None:
        """As if its power failed."""
        for pid in marked(self.own, NODE):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def ray_node(folder: Path, num_cpus: int, head: RayNode | None = None) -> Iterator[RayNode]:
    """A head of a new cluster, or one more node of that one; it ends with the block."""
    own = secrets.token_hex(8)
    address = head.address if head else f"127.0.0.1:{free_ports(1)[0]}"
    node = RayNode(address, head.mark if head else own, own)
    port = address.split(":")[1]
    heads = ["--head", f"--port={port}", "--include-dashboard=false"]
    joins = [f"--address={address}"] if head else heads
    with (
        tempfile.TemporaryDirectory(prefix="kvasir-node-", ignore_cleanup_errors=True) as short,
        (folder / f"node-{own}.log").open("w+") as log,
    ):
        argv = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *joins,
            "--node-ip-address=127.0.0.1", f"--num-cpus={num_cpus}",
            f"--object-store-memory={100 << 20}", f"--temp-dir={short}",
            "--dashboard-agent-listen-port=0",
        ]  # fmt: skip
        env = _environ(node.mark) | {NODE: own, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=env)
        try:
            while "Ray runtime started" not in Path(log.name).read_text():
                assert process.poll() is None, Path(log.name).read_text()
                time.sleep(0.1)
            yield node
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            finally:
                node.lose()
                process.wait()


def _environ(mark: str) -> dict[str, str]:
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", MARK: mark}
    # Else what runs on Ray is nice to everybody (15), and starves beside other tests; and each CPU
    # that Ray counts with is a process that is started before anybody wants it.
    quick = {"RAY_worker_niceness": "0", "RAY_prestart_worker_first_driver": "0"}
    return os.environ | settings | quick


async def deployed(path: Path, config: Mapping[str, Any], node: RayNode, *more: str) -> str:
    """`kvasir deploy`; what it says."""
    path.write_text(yaml.safe_dump(dict(config)))
    done = await asyncio.create_subprocess_exec(
        *KVASIR, "deploy", str(path), f"--address={node.address}", *more,
        env=_environ(node.mark),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await done.communicate()
    return said.decode()


@asynccontextmanager
async def under_load(
    serving: Serving, work: list[Work], clients: int = 2, pause_s: float = 0.0
) -> AsyncIterator[Load]:
    """Clients ask one request after the other; none may be lost, nor a token be wrong."""
    load = Load(serving.grpc, serving.model, work, random.Random(7), Tally(), pause_s)
    asking = [asyncio.create_task(load.client()) for _ in range(clients)]
    try:
        yield load
        load.stop.set()
        await asyncio.gather(*asking)
    finally:
        for task in asking:
            task.cancel()
    assert not load.problems, load.problems[:3]
    assert load.tally.answered > 0


async def answers(load: Load, more: int) -> None:
    """Until so many more have come."""
    enough = load.tally.answered + more
    while load.tally.answered < enough:
        await asyncio.sleep(0.05)
