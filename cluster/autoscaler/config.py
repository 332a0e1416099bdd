"""What a planner process is told: its slice of cluster.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.config import ClusterConfig
from cluster.config_planner import PlannerSection, planned, pool_specs
from cluster.planner.signals import PoolSpec
from router.doors.keys import ApiKeysConfig
from router.flow.classes import SloConfig
from router.latency import HardwareClass
from workers.core.errors import ConfigError
from workers.core.roles import RoleName
from workers.logs import LogStyle
from workers.wire.redis_endpoint import RedisEndpoint
from workers.wire.tls import DoorTls, InternalTls


class PlannerPool(BaseModel):
    """`replicas`: with which it starts. `hardware`: of these, as far as the config knows it."""

    spec: PoolSpec
    replicas: int
    starts_as: RoleName
    hardware: HardwareClass


class PlannerConfig(BaseModel):
    """`model` is a directory: config.json is read. `routers`: host:port of their gRPC ports."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cluster: str
    model: str
    redis: RedisEndpoint
    routers: tuple[str, ...]
    tls: DoorTls | None = None
    api_keys: ApiKeysConfig | None = None
    worker_tls: InternalTls | None = None
    pools: tuple[PlannerPool, ...]
    step_tokens: int
    silence_s: float  # a worker that is quiet for so long is down
    slo: SloConfig
    logs: LogStyle = "text"
    planner: PlannerSection


def planner_slice(
    config: ClusterConfig, *, model: str, redis: RedisEndpoint, routers: Sequence[str]
) -> PlannerConfig:
    """`routers`: where the config names none. Raises ConfigError where the mode is off."""
    if config.planner.mode == "off":
        raise ConfigError("planner.mode is off; set it to advise or apply")
    pools = [
        PlannerPool(
            spec=spec,
            replicas=pool.replicas,
            starts_as=pool.first_role,
            hardware=HardwareClass(
                pool.hardware or config.hardware,
                config.layout(pool).tensor,
                "",
                config.layout(pool).experts,
            ),
        )
        for pool, spec in zip(planned(config), pool_specs(config), strict=True)
    ]
    return PlannerConfig(
        cluster=config.name,
        model=model,
        redis=redis,
        logs=config.telemetry.logs,
        routers=config.planner.routers or tuple(routers),
        tls=config.router.tls,
        api_keys=config.router.api_keys,
        worker_tls=config.internal_tls,
        pools=tuple(pools),
        step_tokens=config.engine.step_tokens,
        silence_s=config.router.limits.worker_silence_s,
        slo=config.slo,
        planner=config.planner,
    )


def load_slice(path: Path) -> PlannerConfig:
    """Raises ConfigError."""
    try:
        return PlannerConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
