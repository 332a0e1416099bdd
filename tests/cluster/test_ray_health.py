"""What a replica on Ray answers when Serve asks for its health; without a Ray."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve import Application
from ray.serve.exceptions import RayServeException

from cluster import app
from cluster.autoscaler.config import planner_slice
from cluster.backends.own_loop import OwnLoop
from cluster.backends.ray_apps import pools_app
from cluster.config import ClusterConfig
from cluster.model_source import demo_model
from tests.redis_server import redis_server
from workers.core.errors import Unavailable
from workers.wire.redis_endpoint import RedisEndpoint


class Replica(app.WorkerReplica.func_or_class):  # type: ignore[misc, name-defined]
    def __del__(self) -> None:
        """Nobody here awaits one."""


def replica() -> Any:
    """One that serves, without an engine."""
    made: Any = object.__new__(Replica)
    made._own = OwnLoop("test")
    made._life = Future()
    made._worker = Future()
    made._worker.set_result(SimpleNamespace(hung=asyncio.Event()))
    made._config = SimpleNamespace(replica="decode-x")
    return made


async def test_it_answers_while_its_engine_works() -> None:
    made = replica()
    working = threading.Event()
    made._own.run(asyncio.to_thread(working.wait, 10.0))
    await made.check_health()
    working.set()


async def test_a_loop_that_has_no_turn_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BEAT_S", 0.1)
    made = replica()
    blocked = threading.Event()

    async def block() -> None:
        blocked.wait(10.0)

    made._own.run(block())
    with pytest.raises(Unavailable, match="nothing moves"):
        await made.check_health()
    blocked.set()
    monkeypatch.setattr(app, "BEAT_S", 10.0)
    await made.check_health()


async def test_a_step_that_never_ends_is_noticed() -> None:
    made = replica()
    made._worker.result().hung.set()
    with pytest.raises(Unavailable, match="a step does not end"):
        await made.check_health()


async def test_a_dead_engine_is_noticed_with_its_reason() -> None:
    made = replica()
    made._life.set_exception(Unavailable("rank 1 is lost"))
    with pytest.raises(Unavailable, match="rank 1 is lost"):
        await made.check_health()


class Planner(app.PlannerReplica.func_or_class):  # type: ignore[misc, name-defined]
    def __del__(self) -> None:
        """Nobody here awaits one."""


async def test_a_planner_follows_the_router_that_serve_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there: list[str | None] = [None, "127.0.0.1:1"]  # it is not there at first

    async def address() -> str:
        return there[0] or ""

    def handle(name: str) -> Any:
        assert name == "kvasir-router"
        if there[0] is None:
            del there[0]
            raise RayServeException("no such application")
        return SimpleNamespace(address=SimpleNamespace(remote=address))

    monkeypatch.setattr(app.serve, "get_app_handle", handle)
    monkeypatch.setattr(app, "ASK_AGAIN_S", 0.01)
    with redis_server() as redis:
        config = ClusterConfig.model_validate(
            {"model": "demo", "planner": {"mode": "advise", "metrics_port": 0}}
        )
        slice_ = planner_slice(
            config, model=str(demo_model()), redis=RedisEndpoint(url=redis.url), routers=()
        )
        arguments = {"planner": slice_.model_dump(mode="json"), "router_app": "kvasir-router"}
        assert isinstance(app.planner(arguments), Application)
        made = object.__new__(Planner)
        await made.__init__(slice_.model_dump_json(), "kvasir-router")
        assert made._config.routers == ("127.0.0.1:1",)
        await made.check_health()
        there[0] = "127.0.0.1:2"
        with pytest.raises(Unavailable, match="the router has moved"):
            await made.check_health()
        await made._own.end()
        with pytest.raises(Unavailable, match="it has left"):
            await made.check_health()


def test_serve_calls_a_replica_for_nothing_but_its_health() -> None:
    """So no token goes through a handle."""
    members = vars(app.WorkerReplica.func_or_class)
    assert {n for n, m in members.items() if callable(m) and not n.startswith("_")} == {
        "check_health"
    }


def test_a_replica_may_drain_as_long_as_the_config_says_and_has_a_bundle_for_each_rank() -> None:
    pools = [
        {"name": "prefill", "role": "prefill"},
        {"name": "decode", "role": "decode", "tensor_parallel": 2},
    ]
    config = ClusterConfig.model_validate({"model": "demo", "grace_s": 33.0, "pools": pools})
    redis = RedisEndpoint(url="redis://r:1/0")
    told = pools_app(config, "demo", demo_model(), redis, host=None, surge=0)
    made: Any = app.pools(told["args"])._bound_deployment
    (decode,) = [each for each in made.init_args if isinstance(each, Application)]
    for deployment, bundles in ((made, None), (decode._bound_deployment, [{"CPU": 1.0}] * 2)):
        assert deployment._deployment_config.graceful_shutdown_timeout_s == 33.0 + app.MARGIN_S
        assert deployment._replica_config.placement_group_bundles == bundles
