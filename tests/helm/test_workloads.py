"""What holds for every pod that the chart makes."""

from __future__ import annotations

import math

from tests.helm.conftest import Outcome, Pods, Rendered, pods_of, selects

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def test_each_variant_has_its_pods(rendered: Rendered) -> None:
    names = {pods.name.removeprefix("kv-") for pods in pods_of(rendered)}
    pools = {pool["name"] for pool in rendered.config()["pools"]}
    assert pools | {"router"} <= names


def test_pods_are_not_root_and_cannot_become_it(rendered: Rendered) -> None:
    for pods in [*pods_of(rendered), _of_helm_test(rendered)]:
        context = pods.spec["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0, pods.name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pods.spec["containers"], *pods.spec.get("initContainers", [])]:
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] is True, (pods.name, container["name"])
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}


def test_nobody_mounts_a_token_but_the_planner_that_scales(rendered: Rendered) -> None:
    for pods in pods_of(rendered):
        if pods.name == "head":  # KubeRay's own account, for Ray's autoscaler
            continue
        scales = pods.name == "kv-planner" and not rendered.of_kind("RayService")
        assert pods.spec["automountServiceAccountToken"] is scales, pods.name
        account = rendered.get("ServiceAccount", pods.spec["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False


def test_containers_have_limits(rendered: Rendered) -> None:
    for pods in [*pods_of(rendered), _of_helm_test(rendered)]:
        for container in [*pods.spec["containers"], *pods.spec.get("initContainers", [])]:
            limits = container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(limits), (pods.name, container["name"])
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])


def test_containers_have_all_three_probes(rendered: Rendered) -> None:
    for pods in pods_of(rendered):
        ports = {port["name"] for port in pods.container.get("ports", [])}
        for name in PROBES:
            probe = pods.container[name]
            way = probe.get("httpGet") or probe.get("tcpSocket") or probe.get("grpc")
            assert way or probe["exec"]["command"], (pods.name, name)
            if way and isinstance(way["port"], str):
                assert way["port"] in ports, (pods.name, name)


def test_the_grace_is_longer_than_the_drain(rendered: Rendered) -> None:
    config = rendered.config()
    grace_s = config.get("grace_s", 20)
    shutdown_s = config["router"].get("limits", {}).get("shutdown_s", 3)
    for pods in pods_of(rendered):
        needs = {"worker": 2 * grace_s, "router": shutdown_s}.get(_component(pods), 0)
        if "kvasir.dev/ray" in pods.labels:
            needs = _drained_by_ray(pods)
            assert needs >= {"worker": grace_s, "router": shutdown_s}.get(_component(pods), 0)
        assert pods.spec["terminationGracePeriodSeconds"] >= math.ceil(needs) + 10, pods.name


def test_workers_and_routers_are_drained_before_they_stop(rendered: Rendered) -> None:
    for pods in pods_of(rendered):
        if _component(pods) not in ("worker", "router"):
            continue
        if "kvasir.dev/ray" in pods.labels:  # Ray itself drains its node when it is told to stop
            assert _drained_by_ray(pods) >= 60
            continue
        command = pods.container["lifecycle"]["preStop"]["exec"]["command"]
        if _component(pods) == "worker":
            assert command[:2] == ["kvasir", "drain"]
        else:
            assert command == ["sleep", "5"]


def test_evictions_are_limited_for_all(rendered: Rendered) -> None:
    budgets = rendered.of_kind("PodDisruptionBudget")
    for pods in pods_of(rendered):
        own = [each for each in budgets if selects(each["spec"]["selector"], pods.labels)]
        assert len(own) == 1, (pods.name, own)  # two for one pod make evictions fail
        if "kvasir.dev/ray" not in pods.labels:
            assert "maxUnavailable" in own[0]["spec"]
            continue
        # A RayCluster has no scale: with maxUnavailable Kubernetes would refuse every eviction.
        assert set(own[0]["spec"]) & {"minAvailable", "maxUnavailable"} == {"minAvailable"}
        assert isinstance(own[0]["spec"]["minAvailable"], int)


def test_on_ray_a_pool_may_lose_what_its_values_say(outcome: Outcome) -> None:
    def stays(variant: str, name: str) -> int:
        return outcome.variants[variant].get("PodDisruptionBudget", f"kv-{name}")["spec"][
            "minAvailable"
        ]

    assert (stays("ray", "prefill"), stays("ray", "decode")) == (
        0,
        1,
    )  # of 1 and 2 at least, 1 may go
    assert stays("moe-2-nodes-ray", "decode") == 1  # of two pods of one replica
    assert stays("ray-secrets", "decode") == 1  # 50% of 2
    assert (stays("ray", "router"), stays("ray", "head")) == (0, 1)


def test_all_volumes_are_there_that_are_mounted(rendered: Rendered) -> None:
    for pods in [*pods_of(rendered), _of_helm_test(rendered)]:
        there = {volume["name"] for volume in pods.spec["volumes"]}
        there |= {"data"} if pods.name == "kv-redis" else set()
        mounted = {
            mount["name"]
            for container in [*pods.spec["containers"], *pods.spec.get("initContainers", [])]
            for mount in container["volumeMounts"]
        }
        assert mounted <= there, pods.name
        assert "tmp" in mounted, "the root is read-only"


def test_workers_have_shared_memory(rendered: Rendered) -> None:
    for pods in pods_of(rendered):
        if _component(pods) == "worker":
            (shm,) = [each for each in pods.spec["volumes"] if each["name"] == "shm"]
            assert shm["emptyDir"]["medium"] == "Memory" and shm["emptyDir"]["sizeLimit"]
            mounts = {m["name"]: m["mountPath"] for m in pods.container["volumeMounts"]}
            assert mounts["shm"] == "/dev/shm"


def _drained_by_ray(pods: Pods) -> float:
    """Seconds, by what Ray reads of its environment (ray/_private/ray_constants.py)."""
    env = {each["name"]: each.get("value", "") for each in pods.container["env"]}
    return float(env.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 30))


def _component(pods: Pods) -> str:
    return pods.labels["app.kubernetes.io/component"]


def _of_helm_test(rendered: Rendered) -> Pods:
    pod = rendered.get("Pod", "kv-test")
    return Pods("kv-test", pod["metadata"]["labels"], pod["spec"], pod)
