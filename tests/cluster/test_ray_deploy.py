"""What `kvasir deploy` asks of Ray Serve, without a Ray: configs, room, and the order of things."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster.backends import ray_cluster
from cluster.backends.ray_apps import App
from cluster.backends.ray_cluster import Applications, joined
from cluster.backends.ray_deploy import Deployment, delete, deploy
from cluster.backends.ray_resources import Ask, asks, check_resources, unplaced
from cluster.commands.deploy import deploy as deploy_command
from cluster.config import ClusterConfig
from cluster.model_source import demo_model
from cluster.plan_policy import PlanPolicy
from workers.core.errors import ConfigError
from workers.wire.redis_endpoint import RedisEndpoint

CPUS = {"CPU": 64.0}
REDIS = RedisEndpoint(url="redis://r:1/0")
POOLS = [
    {"name": "prefill", "role": "prefill", "replicas": 1, "min": 0, "max": 3},
    {"name": "decode", "role": "decode", "replicas": 2},
]


def config(**changes: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({"model": "demo", "pools": POOLS} | changes)


def deployment(model_dir: Path = demo_model(), **changes: Any) -> Deployment:  # noqa: B008
    return Deployment(config(**changes), str(model_dir), model_dir, REDIS, None)


class Id(NamedTuple):
    """A DeploymentID, as far as the policy reads it."""

    name: str


class Context(NamedTuple):
    target_num_replicas: int


class Serve(Applications):
    """Ray Serve, as far as it goes: what is applied is there, and runs."""

    def __init__(self, *nodes: dict[str, float]) -> None:
        self.apps: dict[str, App] = {"somebody-elses": {"name": "somebody-elses"}}
        self.log: list[str] = []
        self._nodes = list(nodes)

    async def nodes(self) -> list[dict[str, float]]:
        return self._nodes

    async def there(self) -> dict[str, App]:
        return dict(self.apps)

    async def apply(self, new: Sequence[App], *, without: Collection[str] = ()) -> None:
        self.log += [f"apply {app['name']}" for app in new] + [f"remove {n}" for n in without]
        self.apps |= {app["name"]: app for app in new}
        for name in without:
            del self.apps[name]

    async def wait_running(self, names: Collection[str], timeout_s: float = 1.0) -> None:
        self.log.append("up")

    async def wait_gone(self, names: Collection[str], timeout_s: float) -> None:
        assert timeout_s > 20, "the drain needs its grace"

    async def close_if_empty(self) -> None:
        assert "somebody-elses" in self.apps


async def applied(serve: Serve, wanted: Deployment) -> list[str]:
    serve.log.clear()
    await deploy(wanted, serve, lambda line: None)
    return serve.log


def test_it_is_a_config_that_serve_takes() -> None:
    wanted = deployment(pools=[*POOLS, {"name": "flex", "role": "flex", "tensor_parallel": 2}])
    apps = [wanted.pools(surge=1), wanted.router()]
    schema = ServeDeploySchema.model_validate({"applications": apps})
    pools, router = schema.applications
    assert {d.name: d.num_replicas for d in pools.deployments if d.name != "prefill"} == {
        "decode": 2,
        "flex": 1,
    }
    assert pools.autoscaling_policy is not None and router.autoscaling_policy is None
    flex = pools.args["pools"][2]["worker"]
    assert (flex["role"], flex["engine"]["tensor_parallel"]) == ("decode", 2)


@pytest.mark.parametrize(
    ("cpus", "surge"), [(64.0, 100), (6.0, 1), (5.0, 0)], ids=["all", "one of each", "none"]
)
async def test_new_replicas_start_first_as_far_as_there_is_room(cpus: float, surge: int) -> None:
    serve = Serve({"CPU": cpus})
    for change in ({}, {"engine": {"max_seqs": 7}}):
        log = await applied(serve, deployment(**change))
        assert log == ["apply kvasir-pools", "apply kvasir-router", "up"]
    assert [d["max_surge_percent"] for d in serve.apps["kvasir-pools"]["deployments"]] == [
        surge
    ] * 2
    assert "somebody-elses" in serve.apps


@pytest.mark.parametrize(
    "change",
    [
        {"pools": [POOLS[0] | {"max": 5}, POOLS[1] | {"replicas": 4}]},
        {"slo": {"classes": {"standard": {"ttft": "2s"}}}},
    ],
    ids=["bounds", "service classes"],
)
async def test_what_can_change_in_place_makes_no_new_replica(change: dict[str, Any]) -> None:
    serve = Serve(CPUS)
    await applied(serve, deployment())
    before = dict(serve.apps)
    await applied(serve, deployment(**change))
    assert set(serve.apps) == set(before) and serve.apps != before
    assert [serve.apps[name].get("args") for name in before] == [
        app.get("args") for app in before.values()
    ]


async def test_new_weights_leave_a_router_alone_that_reads_the_same(tmp_path: Path) -> None:
    serve = Serve(CPUS)
    await applied(serve, deployment())
    router = serve.apps["kvasir-router"]
    other = shutil.copytree(demo_model(), tmp_path / "other")
    pools = serve.apps["kvasir-pools"]
    await applied(serve, deployment(other))
    assert serve.apps["kvasir-pools"]["args"] != pools["args"]
    assert serve.apps["kvasir-router"] == router
    (other / "tokenizer.json").write_text("{}")
    await applied(serve, deployment(other))
    assert serve.apps["kvasir-router"] != router, "another tokenizer needs another router"


async def test_delete_drains_the_pools_before_the_router_goes() -> None:
    serve = Serve(CPUS)
    await applied(serve, deployment())
    serve.log.clear()
    assert await delete(config(), serve)
    assert serve.log == ["remove kvasir-pools", "remove kvasir-router"]
    assert not await delete(config(), serve)


async def test_a_planner_comes_and_goes_without_a_new_version_of_others() -> None:
    serve, on = Serve(CPUS), {"planner": {"mode": "advise"}}
    await applied(serve, deployment())
    before = dict(serve.apps)
    log = await applied(serve, deployment(**on))
    assert log == ["apply kvasir-pools", "apply kvasir-router", "apply kvasir-planner", "up"]
    app = ServeDeploySchema.model_validate({"applications": [serve.apps["kvasir-planner"]]})
    assert app.applications[0].import_path == "cluster.app:planner"
    assert before.items() <= serve.apps.items()
    await applied(serve, deployment())
    assert serve.apps == before
    await applied(serve, deployment(**on))
    serve.log.clear()
    assert await delete(config(**on), serve)
    assert serve.log[0] == "remove kvasir-planner", "nothing may start any more"


@pytest.mark.parametrize("planner", ["off", "apply"])
def test_what_is_written_is_all_that_would_be_applied(
    planner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.yaml"
    told = {"model": "demo", "redis": {"url": REDIS.url}, "pools": POOLS}
    path.write_text(yaml.safe_dump(told | {"planner": {"mode": planner}}))
    deploy_command(path, write=True)
    written = ServeDeploySchema.model_validate(yaml.safe_load(capsys.readouterr().out))
    names = ["kvasir-pools", "kvasir-router", "kvasir-planner"]
    assert [app.name for app in written.applications] == names[: 2 if planner == "off" else 3]
    assert written.proxy_location == "Disabled", "the router has the ports"


def test_gpus_and_ranks_are_asked_for() -> None:
    asked = asks(config(pools=[POOLS[0] | {"hardware": "h100", "tensor_parallel": 4}, POOLS[1]]))
    assert asked == [
        Ask("router", 1, 1.0, 0.0), Ask("prefill", 4, 1.0, 1.0, 4), Ask("decode", 2, 1.0, 0.0),
    ]  # fmt: skip


async def test_what_the_cluster_does_not_have_is_said_with_what_it_has() -> None:
    wanted = deployment(hardware="h100", engine={"tensor_parallel": 2})
    with pytest.raises(ConfigError, match=r"decode: 4 x 1 CPU and 1 GPU") as error:
        await deploy(wanted, Serve({"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}), print)
    assert "16 CPU and 3 GPU on 2 nodes" in error.value.message
    assert "decode 1 of 4" in error.value.message, "the nearest that fits"


async def test_what_pools_have_no_room_to_grow_to_is_told_and_no_error() -> None:
    lines: list[str] = []
    await deploy(deployment(), Serve({"CPU": 6.0}), lines.append)
    assert not lines
    await deploy(deployment(), Serve({"CPU": 5.0}), lines.append)
    (line,) = lines
    assert "no room" in line and "ranks that fit: decode 1 of 2" in line


def test_a_rank_needs_one_node_that_holds_all_of_it() -> None:
    two = [Ask("big", 1, 3.0, 0.0)]
    assert unplaced(two, [{"CPU": 2.0}, {"CPU": 2.0}]) == {"big": 1}
    check_resources(two, [{"CPU": 2.0}, {"CPU": 4.0}])


def test_nobody_at_the_address_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="no Ray cluster answers"), joined(address):
            raise AssertionError("joined")


def test_a_ray_that_does_not_come_up_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(**options: Any) -> None:
        raise Exception("the node timed out during startup")

    monkeypatch.setattr(ray_cluster.ray, "init", slow)
    said = pytest.raises(ConfigError, match="no Ray can be started here: the node timed out")
    with said, ray_cluster.started(1):
        raise AssertionError("started")


def test_a_pool_that_the_plan_does_not_name_stays_as_it_is() -> None:
    policy = PlanPolicy({"url": "redis://127.0.0.1:1/0"}, "kvasir")
    pools = {Id("prefill"): Context(3), Id("decode"): Context(2)}
    assert policy(pools)[0] == {Id("prefill"): 3, Id("decode"): 2}
    policy.wanted = {"prefill": 1, "unknown": 9}
    assert policy(pools)[0] == {Id("prefill"): 1, Id("decode"): 2}
