"""The cluster on a real local Ray, while replicas come, go, flip and die: no request is lost, and
every answer has the tokens of an undisturbed run."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator

import pytest
from httpx import AsyncClient
from openai import AsyncOpenAI

from cluster.admin_client import AdminClient
from cluster.autoscaler.published import Published
from load_tests.chaos_work import Work, same_tokens, works
from tests.cluster.processes import gone
from tests.e2e.ray_serving import NAME, RayServing, answers, ray_serve, under_load
from tests.e2e.serving import kvasir
from workers.core.errors import PlanNotFound
from workers.wire import common_pb2 as common
from workers.wire.redis_client import connect_redis, read_replicas
from workers.wire.redis_endpoint import RedisEndpoint

POOLS = [
    {"name": "prefill", "role": "prefill", "replicas": 1, "min": 1, "max": 2},
    {"name": "decode", "role": "decode", "replicas": 1, "min": 1, "max": 2},
    {"name": "flex", "role": "flex", "starts_as": "decode", "replicas": 1, "min": 1, "max": 2},
]
KINDS = 8
MORE = 4  # answers that must come after a fault
PAUSE_S = 0.3  # of a client, which leaves room for what is being started

pytestmark = pytest.mark.timeout(600)  # Ray takes its time on a busy machine


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServing]:
    with ray_serve(tmp_path_factory.mktemp("ray"), POOLS) as serving:
        yield serving


@pytest.fixture(scope="module")
def work(cluster: RayServing) -> list[Work]:
    asked = works(random.Random(3))[:KINDS]
    return asyncio.run(same_tokens(cluster.grpc, cluster.model, asked))


async def test_the_openai_client_streams(cluster: RayServing) -> None:
    async with AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=cluster.model,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            stream=True,
            temperature=0.0,
        )
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "Paris" in "".join(parts) and len(parts) > 2


async def test_each_worker_says_where_its_metrics_are(cluster: RayServing) -> None:
    """What a router tells Prometheus at /metrics/targets, which tests/telemetry has."""
    async with connect_redis(RedisEndpoint(url=cluster.redis_url)) as redis:
        records = await read_replicas(redis, NAME)
    assert len(records) == len(POOLS)
    async with AsyncClient() as http:
        for record in records:
            text = (await http.get(f"http://{record.metrics}/metrics")).text
            assert "kvasir_worker_kv_blocks " in text, record


@pytest.mark.parametrize(
    "pool",
    ["decode", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("prefill", "flex"))],
)
async def test_a_pool_is_scaled_up_and_down_by_hand_under_load(
    cluster: RayServing, work: list[Work], pool: str
) -> None:
    async with under_load(cluster, work, pause_s=PAUSE_S) as load:
        await cluster.scale(**{pool: 2})
        await cluster.sizes(**{pool: 2})
        await answers(load, MORE)
        await cluster.scale(**{pool: 1})
        await cluster.sizes(**{pool: 1})
        await answers(load, MORE)


async def test_the_planner_advises_and_serve_heals_it(cluster: RayServing) -> None:
    first = await advice(cluster, but_of="")
    assert first.mode == "advise" and first.seen["decode"].up == 1
    assert first.as_prefill.keys() == {"flex"}
    (pid,) = cluster.titled(":planner")
    os.kill(pid, signal.SIGKILL)
    assert (await advice(cluster, but_of=first.by)).seen["decode"].up == 1


async def advice(cluster: RayServing, but_of: str) -> Published:
    """The newest plan, once another planner than that one has made one."""
    while True:
        try:
            with AdminClient(cluster.grpc) as client:
                found = Published.model_validate_json(client.explain_scale().json)
            if found.by != but_of:
                return found
        except PlanNotFound:
            pass
        await asyncio.sleep(0.2)


async def test_a_flex_replica_flips_to_prefill_and_back_under_load(
    cluster: RayServing, work: list[Work]
) -> None:
    (name,) = [name for name in cluster.roles() if name.startswith("flex-")]
    pid = cluster.replica("flex")
    async with under_load(cluster, work, pause_s=PAUSE_S) as load:
        for role, wire in (("prefill", common.ROLE_PREFILL), ("decode", common.ROLE_DECODE)):
            told = await asyncio.to_thread(kvasir, "flip", name, role, f"--router={cluster.grpc}")
            assert role in told
            assert cluster.roles()[name] == wire, "placement knows it when the command returns"
            await answers(load, MORE)
    assert cluster.replica("flex") == pid, "the same process, with the weights it had"


@pytest.mark.parametrize(
    "titles",
    [
        pytest.param([":decode"], id="decode"),
        pytest.param([":prefill"], id="prefill", marks=pytest.mark.slow),
        pytest.param([":decode", ":flex"], id="all that decode", marks=pytest.mark.slow),
        pytest.param(["ServeController"], id="controller"),
    ],
)
async def test_killed_processes_cost_no_request(
    cluster: RayServing, work: list[Work], titles: list[str]
) -> None:
    async with under_load(cluster, work, pause_s=PAUSE_S) as load:
        await answers(load, 1)
        killed = [pid for title in titles for pid in cluster.titled(title)]
        assert len(killed) == len(titles)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        await gone(*killed)
        await answers(load, MORE)
        while not all(cluster.titled(title) for title in titles):
            await asyncio.sleep(0.1)
        await cluster.sizes(prefill=1, decode=1, flex=1)
    await cluster.idle()


@pytest.mark.slow
async def test_a_replica_that_hangs_is_replaced(cluster: RayServing, work: list[Work]) -> None:
    """Its process is there and does not move; its connections stay open."""
    async with under_load(cluster, work, pause_s=PAUSE_S) as load:
        await answers(load, 1)
        hangs = cluster.replica("decode")
        os.kill(hangs, signal.SIGSTOP)
        await answers(load, MORE)
        await gone(hangs)
        await cluster.sizes(prefill=1, decode=1, flex=1)
        await answers(load, MORE)
    await cluster.idle()


@pytest.mark.slow
async def test_a_new_controller_scales_pools_too(cluster: RayServing) -> None:
    (pid,) = cluster.titled("ServeController")
    others = cluster.titled(":router") | cluster.titled(":planner") | cluster.titled(":prefill")
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    for replicas in (2, 1):
        await cluster.scale(decode=replicas)
        await cluster.sizes(decode=replicas)
    assert others.keys() <= cluster.titled("Serve").keys(), "it found them as they were"
