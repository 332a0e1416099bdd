"""cluster.yaml as Ray Serve applications, in the words of Serve's config file: the router, all
pools, and the planner where there is one. Each can change while the others stay."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from cluster.autoscaler.config import planner_slice
from cluster.backends.ray_resources import ROUTER_CPUS
from cluster.config import ClusterConfig, PoolConfig
from cluster.config_planner import rank_cpus, rank_gpus
from workers.wire.redis_endpoint import RedisEndpoint

App = dict[str, Any]  # a ServeApplicationSchema
# The planner has its own patience.
AT_ONCE = {"upscale_delay_s": 0.0, "downscale_delay_s": 0.0, "downscale_to_zero_delay_s": 0.0}
# What the router reads of a checkpoint.
ROUTER_READS = ("config.json", "tokenizer*", "*.jinja", "generation_config.json", "special_*")


def router_name(cluster: str) -> str:
    return f"{cluster}-router"


def pools_name(cluster: str) -> str:
    return f"{cluster}-pools"


def planner_name(cluster: str) -> str:
    return f"{cluster}-planner"


def planner_app(config: ClusterConfig, model: str, redis: RedisEndpoint) -> App:
    """It asks Serve where the router is, where the config names none."""
    slice_ = planner_slice(config, model=model, redis=redis, routers=())
    return {
        "name": planner_name(config.name),
        "route_prefix": None,
        "import_path": "cluster.app:planner",
        "args": {
            "planner": slice_.model_dump(mode="json"),
            "router_app": router_name(config.name),
        },
        "deployments": [{"name": "planner"}],
    }


def router_app(config: ClusterConfig, model: str, model_dir: Path, redis: RedisEndpoint) -> App:
    slice_ = config.router_slice(model=model, redis=redis)
    # Classes hold at once; all the rest makes a new router.
    args = {
        "router": slice_.model_dump(mode="json", exclude={"slo"}),
        "cpus": ROUTER_CPUS,
        "stamp": _contents(model_dir),
    }
    return {
        "name": router_name(config.name),
        "route_prefix": None,
        "import_path": "cluster.app:router",
        "args": args,
        "deployments": [
            {"name": "router", "user_config": {"slo": config.slo.model_dump_json()}},
        ],
    }


def pools_app(
    config: ClusterConfig,
    model: str,
    model_dir: Path,
    redis: RedisEndpoint,
    host: str | None,
    surge: int,
) -> App:
    """`host`: where its workers listen; None: each on its node's address. `surge`: percent of a
    pool that may be there twice while it is replaced."""
    pools = [pool for pool in config.pools if pool.most]
    app: App = {
        "name": pools_name(config.name),
        "route_prefix": None,
        "import_path": "cluster.app:pools",
        "args": {
            "pools": [_pool_args(config, pool, model, model_dir, redis, host) for pool in pools]
        },
        "deployments": [
            {"name": pool.name, "max_surge_percent": surge} | _size(pool) for pool in pools
        ],
    }
    if any(pool.least < pool.most for pool in pools):
        app["autoscaling_policy"] = {
            "policy_function": "cluster.plan_policy:PlanPolicy",
            "policy_kwargs": {"redis": redis.model_dump(mode="json"), "cluster": config.name},
        }
    return app


def _pool_args(
    config: ClusterConfig,
    pool: PoolConfig,
    model: str,
    model_dir: Path,
    redis: RedisEndpoint,
    host: str | None,
) -> dict[str, Any]:
    cpus = rank_cpus(config, pool)
    threads = config.engine.threads or max(1, int(cpus))
    slice_ = config.worker_slice(pool, pool.name, model, redis, threads)
    return {
        "worker": slice_.model_dump(mode="json"),
        "cpus": cpus,
        "gpus": rank_gpus(config, pool),
        "host": host,
        "stamp": _stats(model_dir),
    }


def _size(pool: PoolConfig) -> dict[str, Any]:
    if pool.least == pool.most:
        return {"num_replicas": pool.replicas}
    bounds = {
        "min_replicas": pool.least,
        "initial_replicas": pool.replicas,
        "max_replicas": pool.most,
    }
    return {"autoscaling_config": bounds | AT_ONCE}


def _contents(model_dir: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    files = {path for pattern in ROUTER_READS for path in model_dir.glob(pattern)}
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _stats(model_dir: Path) -> str:
    """Cheap, as weights are large: names, sizes and times."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(model_dir.iterdir()):
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
