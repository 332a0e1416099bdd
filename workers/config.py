"""Everything one worker process is told: who it is, what it serves, and how much it may hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

from workers.core.eviction import EvictionName
from workers.core.roles import RoleName
from workers.logs import LogStyle
from workers.wire.redis_endpoint import RedisEndpoint
from workers.wire.tls import InternalTls

DType = Literal["auto", "bfloat16", "float32", "float16"]
# Routers renew every 2 s: one renewal that fails must not cost the ticket.
TicketTtl = Annotated[float, Field(ge=6.0, allow_inf_nan=False)]


class EngineConfig(BaseModel):
    """Sizes of one engine. `kv_tokens` None = a part of the memory left after loading, at most
    what `max_seqs` full contexts need."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: DType = "auto"
    block_size: PositiveInt = 16
    kv_tokens: PositiveInt | None = None
    step_tokens: PositiveInt = 512
    max_seqs: PositiveInt = 32
    context_length: PositiveInt | None = Field(
        default=None, description="shorter than the model's own, to save memory"
    )
    tensor_parallel: PositiveInt = 1
    expert_parallel: PositiveInt = 1
    redundant_experts: NonNegativeInt = Field(
        default=0, description="copies of busy experts, over the expert parallel ranks"
    )
    balance_experts_s: PositiveFloat | None = Field(
        default=None,
        description="how often experts move to where their load is even; None = never",
    )
    eviction: EvictionName = Field(
        default="adaptive", description="which cached blocks give way first"
    )
    overlap: bool | None = Field(
        default=None,
        description="prepare a step while the one before runs; None = on a GPU, where it pays",
    )
    threads: PositiveInt | None = Field(
        default=None,
        description="torch threads; None = cores / workers of this machine",
    )

    def overlaps(self, on_gpu: bool) -> bool:
        """On a CPU the cores that would prepare the next step are those that run this one."""
        return on_gpu if self.overlap is None else self.overlap


class TransportConfig(BaseModel):
    """How KV blocks travel. `auto`: nccl where both ends have CUDA, else shared memory on one host,
    else gloo; what cannot go that way goes inside gRPC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Literal["auto", "shm", "gloo", "nccl", "inline"] = "auto"
    staging_bytes: PositiveInt = Field(
        default=16 << 20, description="on each side of a pair, over all its slots"
    )
    slots: PositiveInt = Field(default=2, description="chunks of a pair that may be under way")
    prewarm: NonNegativeInt = Field(
        default=4, description="prefill replicas that a decode worker pairs with unasked"
    )
    inline_bytes: NonNegativeInt = Field(
        default=64 << 10, description="what is not more goes inside gRPC at once"
    )
    checksums: bool = False
    chunk_timeout_s: PositiveFloat = 5.0
    connect_timeout_s: PositiveFloat = 5.0
    max_pairs: PositiveInt = 16


class WorkerConfig(BaseModel):
    """The slice of cluster.yaml that one worker process gets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replica: str
    pool: str
    role: RoleName
    model: str
    cluster: str = "kvasir"
    hardware: str = "cpu"
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    metrics_port: int = Field(default=0, ge=0, le=65535)
    redis: RedisEndpoint | None = None
    tls: InternalTls | None = None
    engine: EngineConfig = EngineConfig()
    transport: TransportConfig = TransportConfig()
    ticket_ttl_s: TicketTtl = 10.0
    logs: LogStyle = "text"
    grace_s: PositiveFloat = Field(
        default=20.0, description="a worker told to stop finishes or moves what it has so long"
    )
