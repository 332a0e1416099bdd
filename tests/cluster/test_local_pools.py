"""Worker processes that join and leave a cluster of plain processes while it runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.backends import local_pools
from cluster.backends.local_pools import LocalPools
from cluster.backends.process import ChildSpec
from cluster.backends.supervisor import Supervisor
from cluster.config import ClusterConfig
from cluster.redis_server import ask_by_hand
from tests.cluster.processes import gone, is_alive
from tests.redis_server import RedisServer, redis_server
from tests.router.fleet import until
from workers.config import WorkerConfig
from workers.wire.redis_endpoint import RedisEndpoint

POOLS = [
    {"name": "prefill", "role": "prefill"},
    {"name": "decode", "role": "decode", "min": 1, "max": 3},
]
# Told to leave it says so, and goes when nothing keeps it.
FILES = ("busy", "told", "ready")
SLEEPER = """
import os, signal, sys, time
busy, told, ready = sys.argv[1:]
def leave(*_):
    open(told, "w").close()
signal.signal(signal.SIGTERM, leave)
open(ready, "w").close()
while not os.path.exists(told) or os.path.exists(busy):
    time.sleep(0.02)
"""


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


class Sleepers(LocalPools):
    """Processes without a model."""

    def _spec(self, slice_: WorkerConfig) -> ChildSpec:
        files = [str(self._folder / f"{slice_.replica}.{what}") for what in FILES]
        return ChildSpec(slice_.replica, [sys.executable, "-c", SLEEPER, *files])


def pids(supervisor: Supervisor) -> dict[str, int]:
    found = {name: child.pid for name, child in supervisor.children.items()}
    return {name: pid for name, pid in found.items() if is_alive(pid)}


async def test_replicas_come_and_go_as_ordered_within_bounds(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_pools, "READ_EVERY_S", 0.05)
    config = ClusterConfig.model_validate({"model": "demo", "pools": POOLS, "grace_s": 60})
    at = RedisEndpoint(url=redis.url)
    supervisor = Supervisor(tmp_path / "logs", lambda line: None)
    pools = Sleepers(config, tmp_path, at, tmp_path, supervisor)
    async with pools.running() as tier:
        supervisor.ready = True
        following = asyncio.create_task(pools.follow(tier))
        try:
            await until(lambda: set(pids(supervisor)) == {"prefill-0", "decode-0"})
            first = pids(supervisor)
            await ask_by_hand(at, config.name, "decode", 9)
            await until(lambda: len(pids(supervisor)) == 4)
            assert tier.names == {"prefill-0", "decode-0", "decode-1", "decode-2"}
            (tmp_path / "decode-2.busy").touch()
            await until((tmp_path / "decode-2.ready").exists)
            leaving = pids(supervisor)["decode-2"]
            await ask_by_hand(at, config.name, "decode", 2)
            await until((tmp_path / "decode-2.told").exists)
            await ask_by_hand(at, config.name, "decode", 3)
            await until((tmp_path / "decode-3.ready").exists)
            assert is_alive(leaving), "it drains, and has its name until it has gone"
            await ask_by_hand(at, config.name, "decode", 0)
            await until(lambda: tier.names == {"prefill-0", "decode-0", "decode-2"})
            (tmp_path / "decode-2.busy").unlink()
            await until(lambda: tier.names == {"prefill-0", "decode-0"})
            assert pids(supervisor) == first, "the others were left alone"
        finally:
            following.cancel()
            await asyncio.wait([following])
    await gone(*first.values(), leaving)
