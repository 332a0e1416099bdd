"""What the chart is rendered with: the worked values, a matrix of options, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Values = dict[str, Any]
ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "kvasir"
EXAMPLES = {
    path.stem: yaml.safe_load(path.read_text()) for path in (CHART / "examples").glob("*.yaml")
}

POOLS = [
    {"name": "prefill", "role": "prefill", "replicas": 2, "min": 1, "max": 4},
    {"name": "decode", "role": "decode", "replicas": 6, "min": 2, "max": 8},
]
SECRETS: Values = {
    "tls": {"secret": "door", "ca": True, "clientCa": True},
    "internalTls": {"secret": "inside"},
    "apiKeys": {"secret": "keys", "adminKey": "admin", "testSecret": "one-key"},
    "otlpHeaders": {"secret": "collector"},
}
ELSEWHERE: Values = {"bundled": {"enabled": False}}
ON_GPUS: Values = {
    "model": "/models/big",
    "hardware": "h100",
    "engine": {"tensor_parallel": 2},
    "pools": [
        {"name": "prefill", "role": "prefill", "expert_parallel": 4},
        {"name": "decode", "role": "decode", "replicas": 3},
    ],
}

OPTIONS: dict[str, Values] = {
    "default": {},
    "planner": {
        "cluster": {
            "pools": POOLS,
            "planner": {"mode": "apply", "every_s": "15s"},
            "telemetry": {"otlp_endpoint": "http://collector.o11y.svc:4317", "logs": "json"},
        }
    },
    "later": {"cluster": {"pools": POOLS, "planner": {"mode": "apply"}}},
    "adviser": {"cluster": {"pools": POOLS, "planner": {"mode": "advise"}}},
    "fixed": {"cluster": {"planner": {"mode": "advise"}}},
    "no-planner": {"cluster": {"planner": {"mode": False}}},  # `off` without quotes
    "secrets": {"cluster": {"pools": POOLS, "planner": {"mode": "apply"}}, **SECRETS},
    "scheduled": {
        "cluster": ON_GPUS,
        "model": {"source": "pvc", "pvc": {"claimName": "weights", "subPath": "big"}},
        "image": {
            "repository": "registry.example/kvasir",
            "pullSecrets": ["pull"],
            "cuda": {"digest": "sha256:" + "a" * 64},
        },
        "workers": {
            "rdma": {"rdma/hca": 1},
            "shmSize": "8Gi",
            "runtimeClassName": "nvidia",
            "nodeSelector": {"gpu": "h100"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "serving",
            "extraEnv": {"NCCL_DEBUG": "WARN"},
            "podAnnotations": {"a/b": "c"},
            "podLabels": {"team": "one"},
        },
        "pools": {"decode": {"shmSize": "2Gi", "nodeSelector": {"gpu": "h100", "net": "ib"}}},
    },
    "image-volume": {
        "cluster": {"model": "/models/m"},
        "model": {"source": "imageVolume", "imageVolume": {"reference": "registry.example/m:1"}},
    },
    "download": {
        "cluster": {"model": "/models/m"},
        "model": {
            "source": "download",
            "download": {
                "repository": "Qwen/Qwen3-0.6B",
                "token": {"secret": "hub"},
                "extraEnv": {"HTTPS_PROXY": "http://proxy:3128"},
            },
        },
    },
    "host-path": {
        "cluster": {"model": "/models/m"},
        "model": {"source": "hostPath", "hostPath": {"path": "/data", "allowed": True}},
    },
    "redis-locked": {
        "redis": {
            "bundled": {
                "secret": {"name": "pw", "passwordKey": "password"},
                "persistence": {"enabled": True, "storageClassName": "fast"},
            }
        }
    },
    "redis-cluster": {
        "redis": {
            **ELSEWHERE,
            "external": {
                "endpoint": {"cluster": {"hosts": ["r0:6379", "r1:6379"]}, "tls": True},
                "secret": {
                    "name": "redis",
                    "passwordKey": "p",
                    "caKey": "ca",
                    "certKey": "c",
                    "keyKey": "k",
                },
            },
        }
    },
    "open": {"networkPolicy": {"enabled": False}},
    "ingress": {
        "ingress": {"enabled": True, "host": "llm.example", "tlsSecret": "t", "className": "nginx"},
        "router": {"service": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8"]}},
        "networkPolicy": {
            "clients": [{"namespaceSelector": {}}],
            "operators": [{"podSelector": {}}],
        },
    },
    "monitored": {
        "monitoring": {
            "serviceMonitor": {"enabled": True},
            "rules": {"enabled": True},
            "dashboards": {"enabled": True},
            "labels": {"release": "prometheus"},
        },
        **SECRETS,
    },
    "ports": {"cluster": {"ports": {"worker": 7100, "metrics": 7101, "transfer": None}}},
    "ray": {"mode": "ray", "cluster": {"pools": POOLS}, "router": {"replicas": 1}},
    "ray-secrets": {
        "mode": "ray",
        "cluster": {"pools": POOLS, "planner": {"mode": "apply"}, "telemetry": {"logs": "json"}},
        "router": {"replicas": 1},
        "ray": {"maxSurgePercent": 50},
        "workers": {"maxUnavailable": "50%"},
        **SECRETS,
    },
    "ray-flex": {
        "mode": "ray",
        "cluster": {
            **ON_GPUS,
            "name": "other",
            "grace_s": 7.5,
            "ticket_ttl_s": 12,
            "slo": {"classes": {"one": {"ttft": "200ms"}}, "default": "one"},
            "pools": [
                {"name": "any", "role": "flex", "starts_as": "prefill", "replicas": 2},
                {"name": "cold", "role": "decode", "replicas": 0, "max": 2, "num_gpus": 0.5},
                {"name": "never", "role": "decode", "replicas": 0},
            ],
        },
        "model": {"source": "pvc", "pvc": {"claimName": "weights"}},
        "router": {"replicas": 1},
    },
}

# What somebody has made of pools since they were installed.
LATER = "later"
THERE = {
    f"/apis/apps/v1/namespaces/serving/deployments/kv-{pool}": {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": f"kv-{pool}",
            "namespace": "serving",
            "labels": {"app.kubernetes.io/managed-by": "Helm"},
            "annotations": {
                "meta.helm.sh/release-name": "kv",
                "meta.helm.sh/release-namespace": "serving",
            },
        },
        "spec": {"replicas": replicas},
    }
    for pool, replicas in (("prefill", 3), ("decode", 20))
}

# Values, and what the refusal says of them.
REFUSED: dict[str, tuple[Values, str]] = {
    "unknown key": ({"rotuer": {}}, "additional properties 'rotuer' not allowed"),
    "unknown key of cluster.yaml": (
        {"cluster": {"engine": {"max_seq": 4}}},
        "at '/cluster/engine': additional properties 'max_seq' not allowed",
    ),
    "wrong type": ({"cluster": {"grace_s": "long"}}, "at '/cluster/grace_s': got string"),
    "wrong role": ({"cluster": {"pools": [{"name": "a", "role": "both"}]}}, "/pools/0/role'"),
    "wrong hardware": ({"cluster": {"hardware": "h1000"}}, "at '/cluster/hardware'"),
    "wrong duration": ({"cluster": {"planner": {"every_s": "soon"}}}, "/planner/every_s"),
    "no model": ({"cluster": {"model": None}}, "missing property 'model'"),
    "the chart's own keys": (
        {"cluster": {"redis": {"url": "redis://x"}}},
        "at '/cluster': additional properties 'redis' not allowed",
    ),
    "environment that is no library's": (
        {"workers": {"extraEnv": {"PYTHONPATH": "/x"}}},
        "at '/workers/extraEnv': additional properties 'PYTHONPATH' not allowed",
    ),
    "no limits": ({"workers": {"resources": {"limits": None}}}, "missing property 'limits'"),
    "wrong mode": ({"mode": "operator"}, "at '/mode'"),
    "digest": ({"image": {"cpu": {"digest": "latest"}}}, "at '/image/cpu/digest'"),
    "replicas over nodes": (
        {
            "cluster": {**ON_GPUS, "engine": {"tensor_parallel": 16}},
            "model": {"source": "pvc", "pvc": {"claimName": "w"}},
        },
        "pool prefill: a replica has 16 ranks with 16 GPUs, and a node has 8 "
        "(workers.gpusPerNode): replicas over several nodes need `mode: ray`",
    ),
    "GPUs that do not spread": (
        {
            "mode": "ray",
            "cluster": {**ON_GPUS, "engine": {"tensor_parallel": 10}, "pools": POOLS},
            "model": {"source": "pvc", "pvc": {"claimName": "w"}},
            "workers": {"gpusPerNode": 4},
        },
        "do not spread evenly",
    ),
    "two pools of a name": ({"cluster": {"pools": [POOLS[0], POOLS[0]]}}, "two pools are called"),
    "a pool like a part": (
        {"cluster": {"pools": [{"name": "redis", "role": "aggregated"}]}},
        "the name of another part",
    ),
    "bounds": (
        {"cluster": {"pools": [{"name": "a", "role": "aggregated", "min": 2}]}},
        "are not in order",
    ),
    "values of no pool": ({"pools": {"decod": {}}}, "no such pool in cluster.pools"),
    "a model outside its volume": (
        {"model": {"source": "pvc", "pvc": {"claimName": "w"}}},
        "cluster.model is demo, but the model volume is mounted at /models",
    ),
    "a hub id": (
        {"cluster": {"model": "Qwen/Qwen3-0.6B"}},
        "say model.source: download, model.download.repository: Qwen/Qwen3-0.6B",
    ),
    "hostPath": (
        {
            "cluster": {"model": "/models/m"},
            "model": {"source": "hostPath", "hostPath": {"path": "/data"}},
        },
        "model.hostPath.allowed: true",
    ),
    "two Redis": (
        {"redis": {"external": {"endpoint": {"url": "redis://x"}}}},
        "there is an external endpoint and the bundled server",
    ),
    "no Redis": ({"redis": ELSEWHERE}, "redis.external.endpoint: name a server"),
    "nothing can be replaced": (
        {"workers": {"rollout": {"maxSurge": 0}}},
        "nothing could ever be replaced",
    ),
    "too little time to drain on Ray": (
        {"mode": "ray", "router": {"replicas": 1}, "ray": {"drainSeconds": 10}},
        "less than a replica may take to drain: cluster.grace_s is 20",
    ),
    "routers on Ray": ({"mode": "ray"}, "a Ray Serve deployment of one replica"),
}

_POD = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
_DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "d"},
    "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": _POD},
}
_RAY = {
    "apiVersion": "ray.io/v1",
    "kind": "RayService",
    "metadata": {"name": "r"},
    "spec": {"rayClusterConfig": {"headGroupSpec": {"template": _POD}, "workerGroupSpecs": []}},
}


def _but(thing: Values, *path: str, **more: Any) -> Values:
    """`thing` with more in it at `path`."""
    if not path:
        return thing | more
    return thing | {path[0]: _but(thing[path[0]], *path[1:], **more)}


# What the judges of tests/helm/judge.py must find, and nothing in the first of each kind.
WRONG: list[tuple[Values, str]] = [
    (_DEPLOYMENT, ""),
    (_but(_DEPLOYMENT, "spec", replica=2), "replica"),
    (_but(_DEPLOYMENT, "spec", replicas="two"), "two"),
    (_but(_DEPLOYMENT, "spec", "template", "spec", hostnetwork=True), "hostnetwork"),
    (_RAY, ""),
    (_but(_RAY, "spec", serveConfig="x"), "serveConfig"),
    (_but(_RAY, "spec", "rayClusterConfig", enableInTreeAutoscaling="yes"), "yes"),
    (
        _but(_RAY, "spec", "rayClusterConfig", "headGroupSpec", "template", "spec", nodeName=1),
        "nodeName",
    ),
]
