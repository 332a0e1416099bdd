"""Everything the router process is told. The cluster's one YAML is cut into this by cluster/."""

from __future__ import annotations

from pathlib import Path

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from router.doors.keys import ApiKeysConfig
from router.flow.classes import SloConfig
from router.placement.placement import Disaggregation
from router.placement.policies.names import PolicyName
from router.tracing.config import TelemetryConfig
from workers.core.errors import ConfigError
from workers.wire.redis_endpoint import RedisEndpoint
from workers.wire.redis_keys import ReplicaRecord
from workers.wire.tls import DoorTls, InternalTls


class Address(BaseModel):
    """Where a server listens; port 0 = any free one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(ge=0, le=65535)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Limits(BaseModel):
    """What the router takes on, and how hard it tries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: PositiveInt = 8 << 20
    max_requests: PositiveInt = Field(default=1024, description="let in at once")
    retry_attempts: NonNegativeInt = Field(default=8, description="failures one request survives")
    retry_s: PositiveFloat = Field(
        default=30.0, description="from a failure to the next token, and for a decode worker"
    )
    worker_wait_s: PositiveFloat = Field(
        default=10.0, description="a new request waits so long for a prefill worker, then 503"
    )
    worker_silence_s: PositiveFloat = Field(
        default=3.0, description="a Watch stream quiet for so long means the replica is down"
    )
    index_blocks: PositiveInt = Field(
        default=1 << 20, description="blocks in the mirror, about 200 bytes each"
    )
    rebalance: bool = Field(
        default=False, description="move sequences from full decode replicas to ones half as full"
    )
    max_connections: PositiveInt = Field(default=16384, description="of each HTTP door")
    shutdown_s: PositiveFloat = Field(
        default=3.0, description="grace for requests in flight when the router stops"
    )


class RouterConfig(BaseModel):
    """One router. `model` is a directory: tokenizer and config.json are read, weights never are.

    Without `redis` there is no registry: `replicas` says who is there, and nothing else is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cluster: str = Field(default="kvasir", pattern=r"^[A-Za-z0-9._-]+$")
    model: str
    served_name: str
    grpc: Address = Address(port=9000)
    http: Address = Address(port=8000)
    admin: Address = Address(port=8001)
    redis: RedisEndpoint | None = None
    replicas: tuple[ReplicaRecord, ...] = ()
    policy: PolicyName = "kvasir"
    disaggregation: Disaggregation = Field(
        default="auto",
        description="prompts are computed where they are decoded: as predicted for each (auto), "
        "only on aggregated replicas (remote), always (local); policies but kvasir know no auto",
    )
    tls: DoorTls | None = None
    api_keys: ApiKeysConfig | None = None
    worker_tls: InternalTls | None = None
    metrics_on_http: bool = True
    limits: Limits = Limits()
    slo: SloConfig = SloConfig()
    telemetry: TelemetryConfig = TelemetryConfig()


def load_config(path: Path) -> RouterConfig:
    """Read a JSON slice. Raises ConfigError that names the file, the key and what is wrong."""
    try:
        return RouterConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
