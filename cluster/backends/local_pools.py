"""Worker processes of this machine: those that the config starts with, and as many as are ordered
while they run, by the planner or by hand."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from cluster.backends.gpus import gpu_env, visible_gpus
from cluster.backends.ports import free_ports
from cluster.backends.process import ChildSpec
from cluster.backends.supervisor import Supervisor, Tier
from cluster.config import ClusterConfig, PoolConfig
from cluster.redis_server import read_orders
from workers.config import WorkerConfig
from workers.wire.redis_endpoint import RedisEndpoint

READ_EVERY_S = 0.5
STOP_MARGIN_S = 5.0  # beside the drain: a forward that cannot be stopped, the last words
# `python -m workers` shall find our package, not a folder of that name where the user stands.
INSTALLED_ONLY = {"PYTHONSAFEPATH": "1"}


class LocalPools:
    """`first`: the slices of those that start at once. Files of all go to `folder`."""

    def __init__(
        self,
        config: ClusterConfig,
        model_dir: Path,
        redis: RedisEndpoint,
        folder: Path,
        supervisor: Supervisor,
    ) -> None:
        self._config = config
        self._model = str(model_dir)
        self._redis = redis
        self._folder = folder
        self._supervisor = supervisor
        self._gpus = visible_gpus(os.environ)
        self._taken: dict[str, list[str]] = {}  # GPUs, by replica
        self._replicas: dict[str, dict[int, str]] = {pool.name: {} for pool in config.pools}
        self.first = config.worker_slices(
            model_dir=model_dir, redis=redis, ports=free_ports(config.num_workers)
        )
        self._threads = self.first[0].engine.threads or 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Tier]:
        """Those of the config run while the block does."""
        specs = []
        for slice_ in self.first:
            specs.append(self._spec(slice_))
            self._replicas[slice_.pool][_index(slice_.replica)] = slice_.replica
        async with self._supervisor.tier(specs) as tier:
            yield tier

    async def follow(self, tier: Tier) -> None:
        """What is ordered, until cancelled."""
        pools = {pool.name: pool for pool in self._config.pools if pool.least < pool.most}
        async with asyncio.TaskGroup() as leaving:
            while pools:
                ordered = await read_orders(self._redis, self._config.name) or {}
                for name in ordered.keys() & pools.keys():
                    pool = pools[name]
                    wanted = max(pool.least, min(pool.most, ordered[name]))
                    self._resize(tier, leaving, pool, wanted)
                await asyncio.sleep(READ_EVERY_S)

    def _resize(
        self, tier: Tier, leaving: asyncio.TaskGroup, pool: PoolConfig, wanted: int
    ) -> None:
        running = self._replicas[pool.name]
        while len(running) < wanted:
            # One that drains still has its name.
            index = next(i for i in count() if f"{pool.name}-{i}" not in tier.names)
            replica = running[index] = f"{pool.name}-{index}"
            self._supervisor.say(f"{replica} starts: {wanted} are ordered")
            slice_ = self._config.worker_slice(
                pool, replica, self._model, self._redis, self._threads, free_ports(1)[0]
            )
            tier.add(self._spec(slice_))
        while len(running) > wanted:
            replica = running.pop(max(running))
            self._supervisor.say(f"{replica} drains: {wanted} are ordered")
            leaving.create_task(self._retire(tier, replica))

    async def _retire(self, tier: Tier, replica: str) -> None:
        await tier.retire(replica, self._config.grace_s + STOP_MARGIN_S)
        self._taken.pop(replica, None)

    def _spec(self, slice_: WorkerConfig) -> ChildSpec:
        """Every worker keeps its port when it is started again."""
        # The file says the role too; on the command line it shows in the process list.
        path = self._folder / f"{slice_.replica}.json"
        return ChildSpec(
            slice_.replica,
            [sys.executable, "-m", "workers", "--role", slice_.role, "--config", str(path)],
            env={
                "OMP_NUM_THREADS": str(slice_.engine.threads),
                **self._gpu_env(slice_),
                **INSTALLED_ONLY,
            },
            files={path: slice_.model_dump_json(indent=2)},
        )

    def _gpu_env(self, slice_: WorkerConfig) -> Mapping[str, str]:
        """Of its own as long as there are enough, then shared in turn."""
        ranks = max(slice_.engine.tensor_parallel, slice_.engine.expert_parallel)
        taken = [gpu for gpus in self._taken.values() for gpu in gpus]
        free = [gpu for gpu in self._gpus if gpu not in taken]
        if len(free) >= ranks:
            env = gpu_env(free, 0, ranks)
        else:
            env = gpu_env(self._gpus, len(taken), ranks)
        devices = env.get("CUDA_VISIBLE_DEVICES")
        self._taken[slice_.replica] = devices.split(",") if devices else []
        return env


def _index(replica: str) -> int:
    return int(replica.rpartition("-")[2])
