"""Mode `static`: Deployments, how they are replaced, and who may scale them."""

from __future__ import annotations

import pytest

from tests.helm.conftest import Object, Outcome, Rendered, pods_of


def _deployment(rendered: Rendered, pool: str) -> Object:
    return rendered.get("Deployment", f"kv-{pool}")


def test_each_pool_is_a_deployment_of_its_size(outcome: Outcome) -> None:
    planned = outcome.variants["planner"]
    for pool, replicas in (("prefill", 2), ("decode", 6)):
        deployment = _deployment(planned, pool)
        assert deployment["spec"]["replicas"] == replicas
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert labels["kvasir.dev/pool"] == pool
        assert labels["app.kubernetes.io/component"] == "worker"
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["args"] == [
            *("worker", "--config", "/etc/kvasir/cluster.yaml", "--pool", pool)
        ]


def test_a_new_replica_is_there_before_an_old_one_goes(outcome: Outcome) -> None:
    for each in outcome.variants["planner"].of_kind("Deployment"):
        rolling = each["spec"]["strategy"]["rollingUpdate"]
        assert rolling == {"maxSurge": 1, "maxUnavailable": 0}, each["metadata"]["name"]
    cramped = _deployment(outcome.variants["one-gpu"], "all")  # no second GPU to start it on
    assert cramped["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_pools_are_replaced_at_the_same_pace(outcome: Outcome) -> None:
    """So that the ratio of prefill to decode holds within each version while both are there."""
    load_s, pause_s = 60, 15  # the defaults
    spent = {}
    for pool in ("prefill", "decode"):
        spec = _deployment(outcome.variants["planner"], pool)["spec"]
        spent[pool] = spec["replicas"] * (load_s + spec["minReadySeconds"])
        assert spec["progressDeadlineSeconds"] > spec["minReadySeconds"] + 900
    assert spent["prefill"] == spent["decode"] == 6 * (load_s + pause_s)


def test_sizes_and_slo_roll_no_worker_and_what_it_reads_does(outcome: Outcome) -> None:
    def stamps(variant: str) -> dict[str, str]:
        found = {
            pods.name: pods.template["metadata"] for pods in pods_of(outcome.variants[variant])
        }
        return {
            name: of["annotations"]["kvasir.dev/config"]
            for name, of in found.items()
            if "kvasir.dev/config" in of.get("annotations", {})
        }

    default, planner, cpu = stamps("default"), stamps("planner"), stamps("cpu-trial")
    adviser = stamps("adviser")
    assert adviser["kv-prefill"] == default["kv-prefill"]  # of another size, with a planner
    assert planner["kv-prefill"] != default["kv-prefill"]  # other logs
    assert cpu["kv-prefill"] != default["kv-prefill"]  # another engine
    assert default["kv-prefill"] != default["kv-decode"]


def test_an_upgrade_leaves_pools_as_large_as_the_planner_made_them(outcome: Outcome) -> None:
    later = outcome.variants["later"]
    assert _deployment(later, "prefill")["spec"]["replicas"] == 3  # 2 in the values
    assert _deployment(later, "decode")["spec"]["replicas"] == 8  # 20 by then, of 8 at most


def test_gpus_are_those_of_all_ranks(outcome: Outcome) -> None:
    rendered = outcome.variants["scheduled"]
    for pool, gpus in (("prefill", "4"), ("decode", "2")):
        (container,) = _deployment(rendered, pool)["spec"]["template"]["spec"]["containers"]
        for kind in ("limits", "requests"):
            asked = container["resources"][kind]
            assert str(asked["nvidia.com/gpu"]) == gpus
            assert asked["rdma/hca"] == 1
        assert container["image"].endswith("-cuda@sha256:" + "a" * 64)
    (router,) = rendered.get("Deployment", "kv-router")["spec"]["template"]["spec"]["containers"]
    assert router["image"] == "registry.example/kvasir:0.1.0-cpu"
    assert "nvidia.com/gpu" not in router["resources"]["limits"]


def test_pods_go_where_the_values_say(outcome: Outcome) -> None:
    rendered = outcome.variants["scheduled"]
    spec = _deployment(rendered, "prefill")["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"gpu": "h100"}
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert spec["affinity"] == {"nodeAffinity": {}}
    assert spec["priorityClassName"] == "serving" and spec["runtimeClassName"] == "nvidia"
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert {"name": "NCCL_DEBUG", "value": "WARN"} in spec["containers"][0]["env"]
    decode = _deployment(rendered, "decode")["spec"]["template"]["spec"]
    assert decode["nodeSelector"] == {"gpu": "h100", "net": "ib"}
    (shm,) = [each for each in decode["volumes"] if each["name"] == "shm"]
    assert shm["emptyDir"]["sizeLimit"] == "2Gi"


def test_transfers_listen_where_the_policies_are_open(outcome: Outcome) -> None:
    for variant, expected in (("default", "20000 29999"), ("ports", None)):
        spec = _deployment(outcome.variants[variant], "decode")["spec"]["template"]["spec"]
        sysctls = {
            each["name"]: each["value"] for each in spec["securityContext"].get("sysctls", [])
        }
        assert sysctls.get("net.ipv4.ip_local_port_range") == expected


def test_a_worker_is_ready_when_it_is_warm_and_paired(outcome: Outcome) -> None:
    rendered = outcome.variants["ports"]
    (container,) = _deployment(rendered, "decode")["spec"]["template"]["spec"]["containers"]
    asked = {"port": 7100, "service": "kvasir.v1.Worker"}  # workers/health.py
    assert container["startupProbe"]["grpc"] == container["readinessProbe"]["grpc"] == asked
    assert container["livenessProbe"]["grpc"] == {"port": 7100}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 900
    assert [port["containerPort"] for port in container["ports"]] == [7100, 7101]


def test_probes_work_where_there_is_tls(outcome: Outcome) -> None:
    rendered = outcome.variants["secrets"]
    (worker,) = _deployment(rendered, "decode")["spec"]["template"]["spec"]["containers"]
    for probe, path in (("readinessProbe", "/ready"), ("livenessProbe", "/metrics")):
        assert worker[probe]["httpGet"] == {"port": "metrics", "path": path}
    (router,) = rendered.get("Deployment", "kv-router")["spec"]["template"]["spec"]["containers"]
    for probe in ("readinessProbe", "livenessProbe"):
        assert router[probe]["httpGet"]["scheme"] == "HTTPS"


@pytest.mark.parametrize("variant", ["planner", "secrets"])
def test_the_planner_may_no_more_than_it_does(outcome: Outcome, variant: str) -> None:
    rendered = outcome.variants[variant]
    rules = rendered.get("Role", "kv-planner")["rules"]
    by_resource = {(rule["resources"][0], *rule["verbs"]): rule for rule in rules}
    scale = by_resource["deployments/scale", "get", "update"]
    assert scale["resourceNames"] == ["kv-prefill", "kv-decode"]  # not the router, not itself
    assert by_resource["leases", "get", "update"]["resourceNames"] == ["kv-planner"]
    assert set(by_resource) == {
        ("deployments/scale", "get", "update"),
        ("deployments", "list", "watch"),
        ("pods", "list", "watch", "patch"),
        ("events", "create"),
        ("leases", "get", "update"),
        ("leases", "create"),
    }
    assert not any("*" in value for rule in rules for value in (*rule["verbs"], *rule["resources"]))
    (subject,) = rendered.get("RoleBinding", "kv-planner")["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": "kv-planner", "namespace": "serving"}


def test_a_planner_scales_nothing_of_a_fixed_size(outcome: Outcome) -> None:
    rules = outcome.variants["fixed"].get("Role", "kv-planner")["rules"]
    assert "deployments/scale" not in {rule["resources"][0] for rule in rules}


def test_a_planner_runs_only_where_one_is_asked_for(outcome: Outcome) -> None:
    for variant in ("default", "no-planner"):
        assert not outcome.variants[variant].of_kind("Role")
        names = {pods.name for pods in pods_of(outcome.variants[variant])}
        assert "kv-planner" not in names and "kv-router" in names
    planned = outcome.variants["planner"]
    (container,) = planned.get("Deployment", "kv-planner")["spec"]["template"]["spec"]["containers"]
    assert container["args"][-2:] == ["--kubernetes", "serving/kv"]
    assert planned.config()["planner"]["routers"] == ["kv-router:9000"]


def test_the_service_finds_routers_and_operators_each_of_them(outcome: Outcome) -> None:
    rendered = outcome.variants["default"]
    service, headless = rendered.get("Service", "kv"), rendered.get("Service", "kv-router")
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == {
        "http": 8000,
        "grpc": 9000,
    }
    assert headless["spec"]["clusterIP"] == "None"
    assert headless["spec"]["publishNotReadyAddresses"] is True
    (router,) = [pods for pods in pods_of(rendered) if pods.name == "kv-router"]
    for each in (service, headless):
        assert each["spec"]["selector"].items() <= router.labels.items()
