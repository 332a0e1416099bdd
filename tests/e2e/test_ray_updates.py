"""What takes longer on a real local Ray: updates of what runs, nodes and ranks that are lost."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from cluster.backends.ports import free_ports
from cluster.model_source import demo_model
from load_tests.chaos_work import same_tokens, works
from tests.cluster.processes import gone
from tests.e2e.ray_serving import (
    CONFIG,
    NAME,
    RayServing,
    answers,
    deployed,
    ray_node,
    ray_serve,
    under_load,
)
from tests.e2e.serving import kvasir
from tests.redis_server import redis_server
from workers.wire import admin_pb2 as admin

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KINDS = 8
MORE = 4
POOLS = [
    {"name": "prefill", "role": "prefill", "replicas": 1},
    {"name": "decode", "role": "decode", "replicas": 2},
]


def joined_config(redis_url: str, **changes: Any) -> dict[str, Any]:
    """With ports that are known: who joins a Ray may come again."""
    grpc, http, admin_port = free_ports(3)
    router = {**CONFIG["router"], "grpc": grpc, "http": http, "admin": admin_port}
    return {**CONFIG, "redis": {"url": redis_url}, "router": router, **changes}


async def test_a_rolling_update_drops_no_request(tmp_path: Path) -> None:
    """First another config, then another model: the same weights in another place."""
    with redis_server() as redis, ray_node(tmp_path, 7) as head:
        config = joined_config(redis.url)
        with ray_serve(tmp_path, POOLS, changes=config, node=head) as serving:
            work = works(random.Random(3))[:KINDS]
            work = await same_tokens(serving.grpc, serving.model, work)
            router = serving.titled(":router")
            changed = {**config, "pools": POOLS, "engine": {**CONFIG["engine"], "max_seqs": 5}}
            moved = {**changed, "model": str(shutil.copytree(demo_model(), tmp_path / "other"))}
            async with under_load(serving, work) as load:
                said = await deployed(tmp_path / "changed.yaml", changed, head)
                assert "new replicas start, then the old ones drain" in said
                await serving.until(
                    lambda now: [r.load.max_seqs for r in now.replicas if r.up] == [5, 5, 5]
                )
                await answers(load, MORE)
                before = names(serving.status())
                said = await deployed(tmp_path / "moved.yaml", moved, head)
                assert f"kvasir {NAME} runs: prefill 1, decode 2" in said
                await serving.sizes(prefill=1, decode=2)
                assert not before & names(serving.status())
                await answers(load, MORE)
            assert serving.titled(":router") == router, "its ports never closed"


def names(now: admin.StatusResponse) -> set[str]:
    return {replica.load.replica.id for replica in now.replicas}


async def test_a_lost_node_costs_no_request(tmp_path: Path) -> None:
    """The head has room for the router and one replica of each; what comes later goes elsewhere."""
    pools = [POOLS[0], {"name": "decode", "role": "decode", "replicas": 1, "min": 1, "max": 3}]
    path = tmp_path / "cluster.yaml"
    with redis_server() as redis, ray_node(tmp_path, 3) as head:
        config = joined_config(redis.url, pools=pools)
        said = await deployed(tmp_path / "gpus.yaml", config | {"hardware": "h100"}, head)
        assert "too small" in said and "prefill 0 of 1, decode 0 of 1" in said
        said = await deployed(path, config, head)
        assert f"kvasir {NAME} runs: prefill 1, decode 1" in said
        serving = RayServing.deployed(path, head)
        work = await same_tokens(serving.grpc, serving.model, works(random.Random(3))[:KINDS])
        with ray_node(tmp_path, 2, head) as second:
            kvasir("scale", "decode", "3", f"--config={path}")
            await serving.sizes(decode=3)
            async with under_load(serving, work, clients=4) as load:
                await answers(load, MORE)
                second.lose()
                await answers(load, MORE)
                await serving.sizes(decode=1)
                with ray_node(tmp_path, 2, head):
                    while len(serving.titled(":decode")) < 3:
                        await asyncio.sleep(0.2)
                    await serving.sizes(decode=3)
                    await answers(load, MORE)
        said = await deployed(path, config, head, "--delete")
        assert f"kvasir {NAME} is gone" in said
        assert not serving.titled("Serve")


async def test_a_lost_rank_is_one_replicas_loss(tmp_path: Path) -> None:
    pools = [{"name": "both", "role": "aggregated", "replicas": 2, "tensor_parallel": 2}]
    with ray_serve(tmp_path, pools) as serving:
        work = await same_tokens(serving.grpc, serving.model, works(random.Random(3))[:KINDS])
        replicas = serving.titled(":both")
        assert len(replicas) == 2 and len(serving.titled("_Follower")) == 2
        async with under_load(serving, work) as load:
            await answers(load, 1)
            lost = min(serving.titled("_Follower"))
            os.kill(lost, signal.SIGKILL)
            await gone(lost)
            await serving.sizes(both=1)
            await answers(load, MORE)
            await serving.sizes(both=2)
        assert len(replicas.keys() & serving.titled(":both").keys()) == 1, "the other one stayed"
        await serving.idle()
