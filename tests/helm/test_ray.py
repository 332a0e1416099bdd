"""Mode `ray`: the RayService says what `kvasir deploy --write` says, and where each part goes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.backends.ray_apps import pools_app, router_app
from cluster.config import ClusterConfig
from router.config import RouterConfig
from router.flow.classes import SloConfig
from tests.helm.conftest import Object, Outcome, Rendered, pods_of
from workers.config import WorkerConfig
from workers.wire.redis_endpoint import RedisEndpoint

RAY = ("ray", "ray-secrets", "ray-flex", "moe-2-nodes-ray")


@pytest.fixture(params=RAY)
def rendered(request: pytest.FixtureRequest, outcome: Outcome) -> Rendered:
    return outcome.variants[request.param]


def _spec(rendered: Rendered) -> Object:
    return rendered.get("RayService", "kv")["spec"]


def _groups(rendered: Rendered) -> dict[str, Object]:
    return {
        group["groupName"]: group
        for group in _spec(rendered)["rayClusterConfig"]["workerGroupSpecs"]
    }


def test_the_serve_config_is_what_deploy_writes(rendered: Rendered, tmp_path: Path) -> None:
    served = yaml.safe_load(_spec(rendered)["serveConfigV2"])
    assert served["proxy_location"] == "Disabled"
    config = ClusterConfig.model_validate(rendered.config())
    surge = served["applications"][0]["deployments"][0]["max_surge_percent"]
    pools, router = (_plain(app) for app in served["applications"])
    where = (config.model, tmp_path, config.redis)
    assert pools == _plain(pools_app(config, *where, host=None, surge=surge))
    assert router == _plain(router_app(config, *where))


def _plain(app: Object) -> Object:
    """With every default said, without what only a machine with the model, or with groups of pods,
    can say."""
    app = json.loads(json.dumps(app))
    args = app["args"]
    for part in (args, *args.get("pools", [])):
        part.pop("stamp", None)
        part.pop("resources", None)
    for pool in args.get("pools", []):
        pool["worker"] = WorkerConfig.model_validate(pool["worker"]).model_dump(mode="json")
    if "router" in args:
        args["router"] = RouterConfig.model_validate(args["router"]).model_dump(mode="json")
        (deployment,) = app["deployments"]
        slo = SloConfig.model_validate_json(deployment["user_config"]["slo"])
        deployment["user_config"]["slo"] = slo.model_dump()
    if "autoscaling_policy" in app:
        kwargs = app["autoscaling_policy"]["policy_kwargs"]
        kwargs["redis"] = RedisEndpoint.model_validate(kwargs["redis"]).model_dump(mode="json")
    return app


def test_each_rank_finds_a_pod_that_was_made_for_it(rendered: Rendered) -> None:
    pools, router = yaml.safe_load(_spec(rendered)["serveConfigV2"])["applications"]
    groups = _groups(rendered)
    asked = {pool["worker"]["pool"]: pool for pool in pools["args"]["pools"]}
    for name, pool in asked.items():
        engine = pool["worker"]["engine"]
        ranks = max(engine.get("tensor_parallel", 1), engine.get("expert_parallel", 1))
        (resource,) = pool["resources"]
        group = groups[name]
        offered = _resources(group)[resource] * group["numOfHosts"]
        assert offered == ranks
        hosts, params = group["numOfHosts"], group["rayStartParams"]
        assert int(params["num-cpus"]) * hosts >= ranks * pool["cpus"]
        assert int(params["num-gpus"]) * hosts >= ranks * pool["gpus"]
    (resource,) = router["args"]["resources"]
    assert _resources(groups["router"])[resource] == 1


def _resources(group: Object) -> dict[str, float]:
    """As a shell makes JSON of what KubeRay writes behind --resources."""
    return json.loads(json.loads(group["rayStartParams"]["resources"]))


def test_groups_have_the_bounds_of_pools(rendered: Rendered) -> None:
    config = ClusterConfig.model_validate(rendered.config())
    groups = _groups(rendered)
    for pool in config.pools:
        group = groups[pool.name]
        assert (group["replicas"], group["minReplicas"]) == (pool.replicas, pool.least)
        assert group["maxReplicas"] >= pool.most
    assert set(groups) == {"router", *(pool.name for pool in config.pools)}


def test_a_second_version_has_room_beside_the_first(outcome: Outcome) -> None:
    groups = _groups(outcome.variants["ray-secrets"])  # maxSurgePercent: 50
    assert groups["prefill"]["maxReplicas"] == 4 + 2
    assert groups["decode"]["maxReplicas"] == 8 + 4


def test_a_replica_may_span_pods(outcome: Outcome) -> None:
    groups = _groups(outcome.variants["moe-2-nodes-ray"])
    assert (groups["decode"]["numOfHosts"], groups["prefill"]["numOfHosts"]) == (2, 1)
    for name in ("decode", "prefill"):
        (container,) = groups[name]["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
        assert container["resources"]["limits"]["rdma/hca"] == 8


def test_kuberays_operator_takes_it(rendered: Rendered) -> None:
    """What it refuses after the API server took it: utils/validation.go and common/service.go below
    ray-operator/controllers/ray of KubeRay 1.7."""
    service = rendered.get("RayService", "kv")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", service["metadata"]["name"])
    cluster = service["spec"]["rayClusterConfig"]
    version = tuple(int(part) for part in cluster["rayVersion"].split("."))
    assert cluster["authOptions"]["mode"] == "disabled" or version >= (2, 52)
    head = cluster["headGroupSpec"]
    named = {port["name"] for port in head["template"]["spec"]["containers"][0]["ports"]}
    assert {"serve", "gcs-server", "dashboard"} <= named, "it makes its Services of them"
    for group in (head, *cluster["workerGroupSpecs"]):
        assert "restartPolicy" not in group["template"]["spec"], "refused with autoscaler v2"
        assert "resources" not in group, "either these or what rayStartParams say"
        assert "labels" not in group["rayStartParams"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_rays_own_autoscaler_reads_the_groups(outcome: Outcome) -> None:
    """From the RayCluster that KubeRay makes of the RayService, by Ray's own code."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    for variant in RAY:
        spec = _spec(outcome.variants[variant])["rayClusterConfig"]
        custom = {"metadata": {"name": "kv-x", "namespace": "serving"}, "spec": spec}
        found = autoscaling_config._derive_autoscaling_config_from_ray_cr(custom)
        types = found["available_node_types"]
        assert types[found["head_node_type"]]["resources"]["CPU"] == 0, "nothing of ours runs there"
        for name, group in _groups(outcome.variants[variant]).items():
            (resource,) = _resources(group)
            assert types[name]["resources"][resource] == _resources(group)[resource]
            assert types[name]["max_workers"] == group["maxReplicas"] * group.get("numOfHosts", 1)


def test_the_memory_that_is_for_kv_goes_to_no_object_store(rendered: Rendered) -> None:
    cluster = _spec(rendered)["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        size = int(group["rayStartParams"]["object-store-memory"])
        assert size == 100 << 20  # as cluster/backends/ray_cluster.py has it


def test_the_autoscaler_may_write_where_the_head_may(rendered: Rendered) -> None:
    cluster = _spec(rendered)["rayClusterConfig"]
    assert cluster["autoscalerOptions"]["securityContext"]["readOnlyRootFilesystem"] is True
    (mount,) = cluster["autoscalerOptions"]["volumeMounts"]
    volumes = cluster["headGroupSpec"]["template"]["spec"]["volumes"]
    assert mount["mountPath"] == "/tmp" and mount["name"] in {each["name"] for each in volumes}


def test_the_head_has_neither_weights_nor_the_secrets_of_the_doors(rendered: Rendered) -> None:
    (head,) = [pods for pods in pods_of(rendered) if pods.name == "head"]
    (router,) = [pods for pods in pods_of(rendered) if pods.name == "router"]
    has, may = ({volume["name"] for volume in pods.spec["volumes"]} for pods in (head, router))
    assert not has & {"model", "tls", "api-keys"}
    assert {"config", "tmp", "shm"} <= has <= may
    assert ("tls" in may) is (rendered.name == "ray-secrets")


def test_nobody_asks_the_serve_proxy_which_is_off(rendered: Rendered) -> None:
    for pods in pods_of(rendered):
        if "kvasir.dev/ray" not in pods.labels:
            continue
        assert pods.container["livenessProbe"]["httpGet"]["path"] == "/api/local_raylet_healthz"
        ready: dict[str, Any] = pods.container["readinessProbe"]["httpGet"]
        expected = {"head": "/api/gcs_healthz", "router": "/health"}
        assert ready["path"] == expected.get(pods.name, "/api/local_raylet_healthz")


def test_the_service_finds_the_pod_that_the_router_runs_on(rendered: Rendered) -> None:
    labels = _groups(rendered)["router"]["template"]["metadata"]["labels"]
    for name in ("kv", "kv-router"):
        assert rendered.get("Service", name)["spec"]["selector"].items() <= labels.items()
    (container,) = _groups(rendered)["router"]["template"]["spec"]["containers"]
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert named == {"http": 8000, "admin": 8001, "grpc": 9000}


def test_rays_autoscaler_adds_pods_and_the_planner_only_plans(rendered: Rendered) -> None:
    cluster = _spec(rendered)["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert not rendered.of_kind("Role")
    for pods in pods_of(rendered):
        if pods.name == "kv-planner":
            assert "--kubernetes" not in pods.container["args"]


@pytest.mark.slow  # importing Ray takes seconds
@pytest.mark.parametrize("variant", RAY)
def test_ray_serve_takes_the_config(outcome: Outcome, variant: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    from cluster.app import PoolsArgs, RouterArgs

    served = yaml.safe_load(_spec(outcome.variants[variant])["serveConfigV2"])
    assert ServeDeploySchema.model_validate(served).proxy_location.value == "Disabled"
    pools, router = served["applications"]
    assert PoolsArgs.model_validate(pools["args"]).pools
    assert RouterArgs.model_validate(router["args"]).resources == {"kvasir-router": 1}
