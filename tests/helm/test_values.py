"""Secrets, models, Redis and monitoring: what the values make of them."""

from __future__ import annotations

import json
import runpy

import yaml

from cluster.config import ClusterConfig
from tests.helm.conftest import Object, Outcome, Rendered, pods_of
from tests.helm.variants import CHART, ROOT


def test_the_schema_is_the_one_of_the_config() -> None:
    make = runpy.run_path(str(ROOT / "helm" / "make_schema.py"))
    assert (CHART / "values.schema.json").read_text() == make["text"](), "run `make helm`"


def test_the_schema_knows_the_whole_config_but_what_the_chart_sets() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    cluster = schema["$defs"]["ClusterConfig"]
    assert cluster["additionalProperties"] is False
    assert set(ClusterConfig.model_fields) - set(cluster["properties"]) == {"redis", "internal_tls"}


def test_all_values_of_the_chart_are_in_its_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = yaml.safe_load((ROOT / "helm" / "chart.schema.yaml").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    workers = set(schema["$defs"]["workers"]["properties"])
    assert set(values["workers"]) == workers


def test_tls_and_keys_come_from_secrets(outcome: Outcome) -> None:
    rendered = outcome.variants["secrets"]
    config = rendered.config()
    for pods in pods_of(rendered):
        mounts = {m["name"]: m["mountPath"] for m in pods.container["volumeMounts"]}
        secrets = {v["name"]: v["secret"] for v in pods.spec["volumes"] if "secret" in v}
        if pods.name == "kv-redis":
            assert not secrets
            continue
        assert config["internal_tls"]["key"] == f"{mounts['internal-tls']}/tls.key"
        assert secrets["internal-tls"]["secretName"] == "inside"
        speaks = pods.name in ("kv-router", "kv-planner")
        assert ("tls" in mounts) is ("api-keys" in mounts) is speaks, pods.name
        if speaks:
            assert config["router"]["tls"]["cert"] == f"{mounts['tls']}/tls.crt"
            assert config["router"]["tls"]["client_ca"] == f"{mounts['tls']}/ca.crt"
            assert config["router"]["api_keys"]["file"] == f"{mounts['api-keys']}/keys"
            assert config["router"]["api_keys"]["admin_key_file"] == f"{mounts['api-keys']}/admin"
        assert all(secret["defaultMode"] == 0o440 for secret in secrets.values())


def test_no_secret_stands_in_a_configmap_or_the_environment(outcome: Outcome) -> None:
    for rendered in outcome.variants.values():
        assert not rendered.of_kind("Secret")
        for pods in pods_of(rendered):
            for container in [*pods.spec["containers"], *pods.spec.get("initContainers", [])]:
                named = [e["name"] for e in container.get("env", []) if "secretKeyRef" in str(e)]
                assert set(named) <= {"HF_TOKEN"}, (rendered.name, pods.name)


def test_redis_is_ours_or_somebody_elses(outcome: Outcome) -> None:
    default, cluster = outcome.variants["default"], outcome.variants["redis-cluster"]
    assert default.config()["redis"] == {"url": "redis://kv-redis:6379/0"}
    assert not cluster.of_kind("StatefulSet")
    assert cluster.config()["redis"] == {
        "cluster": {"hosts": ["r0:6379", "r1:6379"]},
        "tls": True,
        "password_file": "/etc/kvasir-redis/p",
        "ca": "/etc/kvasir-redis/ca",
        "cert": "/etc/kvasir-redis/c",
        "key": "/etc/kvasir-redis/k",
    }
    for pods in pods_of(cluster):
        mounts = {m["name"]: m["mountPath"] for m in pods.container["volumeMounts"]}
        assert mounts["redis-secret"] == "/etc/kvasir-redis"


def test_the_bundled_redis_can_have_a_password_and_a_disk(outcome: Outcome) -> None:
    rendered = outcome.variants["redis-locked"]
    redis = rendered.get("StatefulSet", "kv-redis")["spec"]
    (container,) = redis["template"]["spec"]["containers"]
    assert "requirepass" in container["args"][0] and "--appendonly yes" in container["args"][0]
    assert "REDISCLI_AUTH" in container["readinessProbe"]["exec"]["command"][-1]
    assert redis["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "fast"
    assert rendered.config()["redis"]["password_file"] == "/etc/kvasir-redis/password"


def test_models_come_from_where_the_values_say(outcome: Outcome) -> None:
    sources = {
        "scheduled": {"persistentVolumeClaim": {"claimName": "weights", "readOnly": True}},
        "image-volume": {
            "image": {"reference": "registry.example/m:1", "pullPolicy": "IfNotPresent"}
        },
        "download": {"emptyDir": {"sizeLimit": "50Gi"}},
        "host-path": {"hostPath": {"path": "/data", "type": "Directory"}},
    }
    for variant, source in sources.items():
        for pods in pods_of(outcome.variants[variant]):
            if pods.name == "kv-redis":
                continue
            (volume,) = [each for each in pods.spec["volumes"] if each["name"] == "model"]
            assert volume == {"name": "model"} | source
            (mount,) = [m for m in pods.container["volumeMounts"] if m["name"] == "model"]
            assert mount["mountPath"] == "/models" and mount["readOnly"] is True


def test_routers_download_no_weights(outcome: Outcome) -> None:
    def patterns(name: str) -> set[str]:
        spec = outcome.variants["download"].get("Deployment", name)["spec"]["template"]["spec"]
        (download,) = spec["initContainers"]
        _, repository, revision, folder, *patterns = download["args"]
        assert (repository, revision, folder) == ("Qwen/Qwen3-0.6B", "", "/models/m")
        env = {each["name"]: each for each in download["env"]}
        assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token"}
        assert env["HTTPS_PROXY"]["value"] == "http://proxy:3128"
        return set(patterns)

    assert patterns("kv-decode") - patterns("kv-router") == {"*.safetensors"}


def test_prometheus_finds_all_that_has_metrics(outcome: Outcome) -> None:
    rendered = outcome.variants["monitored"]
    of_routers = rendered.get("ServiceMonitor", "kv-router")["spec"]
    (endpoint,) = of_routers["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["ca"]["secret"] == {"name": "door", "key": "ca.crt"}
    headless = rendered.get("Service", "kv-router")
    assert of_routers["selector"]["matchLabels"].items() <= headless["metadata"]["labels"].items()
    assert endpoint["port"] in {port["name"] for port in headless["spec"]["ports"]}
    of_pods = rendered.get("PodMonitor", "kv")["spec"]
    (where,) = of_pods["podMetricsEndpoints"]
    assert _ports(rendered, "kv-decode")[where["port"]] == 9101
    for each in (*rendered.of_kind("ServiceMonitor"), *rendered.of_kind("PodMonitor")):
        assert each["metadata"]["labels"]["release"] == "prometheus"


def test_rules_and_dashboards_are_shipped_whole(outcome: Outcome) -> None:
    rendered = outcome.variants["monitored"]
    for path in (CHART / "rules").glob("*.yaml"):
        rule = rendered.get("PrometheusRule", f"kv-{path.stem}")
        assert rule["spec"] == yaml.safe_load(path.read_text())
    for path in (CHART / "dashboards").glob("*.json"):
        shipped = rendered.get("ConfigMap", f"kv-dashboard-{path.stem}")
        assert json.loads(shipped["data"][path.name]) == json.loads(path.read_text())
        assert shipped["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_the_ingress_shows_the_api_and_nothing_else(outcome: Outcome) -> None:
    (ingress,) = outcome.variants["ingress"].of_kind("Ingress")
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["path"] == "/v1" and path["backend"]["service"]["port"] == {"name": "http"}
    assert ingress["spec"]["tls"][0]["secretName"] == "t"


def _ports(rendered: Rendered, deployment: str) -> dict[str, int]:
    spec: Object = rendered.get("Deployment", deployment)["spec"]["template"]["spec"]
    return {port["name"]: port["containerPort"] for port in spec["containers"][0]["ports"]}
