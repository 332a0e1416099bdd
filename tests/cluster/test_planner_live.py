"""The planner process's inside beside a whole router with fake workers and a real Redis: arrivals
reach it, its plan can be explained, and a router that starts again is followed again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from cluster.admin_client import AdminClient
from cluster.autoscaler import loop as loop_module
from cluster.autoscaler import routers as routers_module
from cluster.autoscaler.app import serve as serve_planner
from cluster.autoscaler.config import PlannerConfig, PlannerPool
from cluster.autoscaler.published import Published
from cluster.commands import explain
from cluster.config_planner import PlannerSection
from cluster.planner.signals import PoolSpec
from cluster.redis_server import ask_by_hand
from router.app import Ports
from router.app import serve as serve_router
from router.config import Address, Limits, RouterConfig
from router.flow.classes import SloConfig
from router.latency import HardwareClass
from tests.redis_server import RedisServer, redis_server
from tests.router.fleet import Fleet
from tests.router.test_service import NAMES, router, sampling
from tests.router.tiny_model import write_model
from workers.core.errors import PlanNotFound, Unavailable
from workers.core.waits import let_go
from workers.wire import inference_pb2 as inference
from workers.wire import inference_pb2_grpc as inference_grpc
from workers.wire.redis_client import connect_redis
from workers.wire.redis_endpoint import RedisEndpoint
from workers.wire.redis_keys import replica_key

NAME = "live"


@asynccontextmanager
async def fleet(redis: RedisServer) -> AsyncIterator[Fleet]:
    """A prefill and a decode worker, registered for as long as the test takes."""
    made = Fleet()
    for name in ("prefill-1", "decode-1"):
        await made.add(name, name.partition("-")[0])  # type: ignore[arg-type]
    async with connect_redis(redis.url) as client:
        for record in made.records():
            await client.set(replica_key(NAME, record.id), record.model_dump_json())
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def routing(model: str, redis: RedisServer, port: int = 0) -> AsyncIterator[str]:
    """The gRPC address of a router."""
    config = RouterConfig(
        cluster=NAME,
        model=model,
        served_name="tiny",
        grpc=Address(port=port),
        http=Address(port=0),
        admin=Address(port=0),
        redis=RedisEndpoint(url=redis.url),
        disaggregation="remote",
        limits=Limits(worker_wait_s=10.0, worker_silence_s=10.0, shutdown_s=0.5),
    )
    stop = asyncio.Event()
    ports: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve_router(config, stop, ports.set_result))
    await asyncio.wait([serving, ports], return_when=asyncio.FIRST_COMPLETED)
    try:
        yield str((ports if ports.done() else serving).result().grpc)  # type: ignore[union-attr]
    finally:
        stop.set()
        await serving


@asynccontextmanager
async def planning(model: str, redis: RedisServer, router: str) -> AsyncIterator[None]:
    pools = [
        PlannerPool(
            spec=PoolSpec(role, role, role, 1, 4, max_seqs=4),  # type: ignore[arg-type]
            replicas=1,
            starts_as=role,  # type: ignore[arg-type]
            hardware=HardwareClass(),
        )
        for role in ("prefill", "decode")
    ]
    config = PlannerConfig(
        cluster=NAME,
        model=model,
        redis=RedisEndpoint(url=redis.url),
        routers=(router,),
        pools=tuple(pools),
        step_tokens=512,
        silence_s=10.0,
        slo=SloConfig(),
        planner=PlannerSection(mode="advise", every_s=0.3, metrics_port=0),
    )
    stop, listens = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(serve_planner(config, stop, lambda port: listens.set()))
    try:
        await listens.wait()
        yield
        assert not running.done(), running
    finally:
        stop.set()
        await asyncio.wait([running], timeout=10)
        await let_go(running)


async def ask(router: str) -> None:
    async with grpc.aio.insecure_channel(router) as channel:
        asked = inference.GenerateRequest(
            model="tiny", token_ids=inference.TokenIds(ids=range(10, 30)), sampling=sampling()
        )
        async for _ in inference_grpc.InferenceStub(channel).Generate(asked):
            pass


async def plan_at(router: str, after: float = 0.0, *, arrivals: bool = False) -> Published:
    """One made after that, asked for while requests come. The test's time limit ends it."""
    while True:
        if arrivals:
            await ask(router)
        try:
            found = await asyncio.to_thread(explained, router)
        except (PlanNotFound, Unavailable):
            continue
        if found.at > after and (found.plan["inputs"]["offered"] or not arrivals):
            return found


def explained(router: str) -> Published:
    with AdminClient(router) as client:
        told = client.explain_scale()
    assert told.age_s < 60
    return Published.model_validate_json(told.json)


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(explain.app, ["scale", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "LOOK_S", 0.05)
    monkeypatch.setattr(routers_module, "AGAIN_S", 0.05)


async def test_what_routers_hear_becomes_a_plan_that_they_explain(
    tmp_path: Path, quick: None
) -> None:
    model = str(write_model(tmp_path))
    with redis_server() as redis:
        async with fleet(redis), AsyncExitStack() as first:
            router = await first.enter_async_context(routing(model, redis))
            with pytest.raises(PlanNotFound):
                await asyncio.to_thread(explained, router)
            async with planning(model, redis, router):
                found = await plan_at(router, arrivals=True)
                inputs = found.plan["inputs"]
                assert (inputs["prompt"], inputs["output"]) == (20, 4)
                assert {name: seen.up for name, seen in found.seen.items()} == {
                    "prefill": 1, "decode": 1,
                }  # fmt: skip
                await first.aclose()
                port = int(router.rpartition(":")[2])
                async with routing(model, redis, port) as again:
                    later = await plan_at(again, found.at, arrivals=True)
                    assert later.by == found.by, "the same planner follows the new router"
                    await ask_by_hand(RedisEndpoint(url=redis.url), NAME, "decode", 2)
                    said = await asyncio.to_thread(printed, f"--router={again}")
                    assert "it is advice" in said and "decode: 2 asked for by hand" in said
                    told = json.loads(
                        await asyncio.to_thread(printed, f"--router={again}", "--json")
                    )
                    assert told["orders"] == {"decode": 2}
                    assert told["published"]["plan"]["reasons"]
                    redis.stop()
                    with pytest.raises(Unavailable, match="Redis"):
                        await asyncio.to_thread(explained, again)


async def test_a_router_without_redis_says_so(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client:
        with pytest.raises(Unavailable, match="no Redis"):
            await asyncio.to_thread(explained, str(client.ports.grpc))
