"""What takes longer on a real local Ray: rolling updates, and replicas of several ranks."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.backends.ports import free_ports
from load_tests.chaos_work import same_tokens, works
from tests.cluster.processes import gone
from tests.e2e.ray_serving import CONFIG, RayServing, answers, ray_serve, under_load
from tests.e2e.serving import KVASIR
from tests.redis_server import redis_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KINDS = 8
MORE = 4
POOLS = [
    {"name": "prefill", "role": "prefill", "replicas": 1},
    {"name": "decode", "role": "decode", "replicas": 2},
]


def head_of(serving: RayServing) -> str:
    """Where others join its Ray."""
    titles = serving.titled("--gcs-address=").values()
    (head,) = {found for title in titles for found in re.findall(r"--gcs-address=(\S+)", title)}
    return head


async def deployed(path: Path, config: dict[str, Any], serving: RayServing, *more: str) -> str:
    path.write_text(yaml.safe_dump(config))
    done = await asyncio.create_subprocess_exec(
        *KVASIR, "deploy", str(path), f"--address={head_of(serving)}", *more,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await done.communicate()
    assert done.returncode == 0, err.decode()
    return out.decode() + err.decode()


async def test_a_rolling_update_drops_no_request(tmp_path: Path) -> None:
    with redis_server() as redis:
        grpc, http, admin = free_ports(3)
        config = {
            **CONFIG,
            "redis": {"url": redis.url},
            "router": {**CONFIG["router"], "grpc": grpc, "http": http, "admin": admin},
        }
        with ray_serve(tmp_path, POOLS, changes=config) as serving:
            work = works(random.Random(3))[:KINDS]
            work = await same_tokens(serving.grpc, serving.model, work)
            router = serving.titled(":router")
            async with under_load(serving, work) as load:
                changed = {**config, "pools": POOLS, "engine": {**CONFIG["engine"], "max_seqs": 5}}
                await deployed(tmp_path / "changed.yaml", changed, serving)
                await serving.until(
                    lambda now: [r.load.max_seqs for r in now.replicas if r.up] == [5, 5, 5]
                )
                await answers(load, MORE)
            assert serving.titled(":router") == router, "its ports never closed"


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
