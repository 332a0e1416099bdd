"""cluster.yaml: the one file that says what is served and on what. Each process gets its slice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from cluster.config_file import ConfigFile, anchored, explain
from cluster.config_planner import PlannerSection, check_planner
from cluster.config_ports import PortsSection
from cluster.container import cores
from router.config import Address, Limits, RouterConfig
from router.doors.keys import ApiKeysConfig
from router.flow.classes import SloConfig
from router.placement.placement import Disaggregation
from router.placement.policies.names import PolicyName
from router.tracing.config import TelemetryConfig
from workers.config import EngineConfig, TicketTtl, TransportConfig, WorkerConfig
from workers.core.errors import ConfigError
from workers.core.hardware import hardware
from workers.core.roles import RoleName
from workers.parallel.layout import Layout
from workers.wire.redis_endpoint import RedisEndpoint
from workers.wire.tls import DoorTls, InternalTls

NAME = r"^[a-z0-9][a-z0-9-]*$"


def example_config() -> Path:
    """The config that `kvasir serve` takes when it is given none."""
    return Path(__file__).parent / "examples" / "cluster.yaml"


def _parse_address(value: object) -> object:
    """`8000`, `0.0.0.0:8000` and `[::1]:8000` are short for {host, port}."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return {"port": value}
    if isinstance(value, str):
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit():
            raise ValueError("expected host:port, a port, or {host, port}")
        value = {"host": host, "port": int(port)}
    if isinstance(value, dict) and isinstance(value.get("host"), str):
        return value | {"host": value["host"].strip("[]")}
    return value


def _known_hardware(name: str) -> str:
    try:
        return hardware(name).name
    except ConfigError as error:
        raise ValueError(error.message) from None


Listen = Annotated[Address, BeforeValidator(_parse_address)]
HardwareName = Annotated[str, AfterValidator(_known_hardware)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolConfig(_Section):
    """Replicas of one role; those of `flex` have either, and begin with `starts_as`. Plain
    processes are called `<name>-0`, `<name>-1`, ... Sizes that are not given are those of `engine`,
    and hardware is the cluster's.

    `min` and `max` bound what a plan, or somebody by hand, makes of `replicas`, and are that where
    they are not given. On Ray each rank asks for as many CPUs as it has threads, else 1, and a GPU
    unless the hardware is a CPU."""

    name: str = Field(pattern=NAME)
    role: Literal[RoleName, "flex"]
    starts_as: RoleName = "decode"
    replicas: NonNegativeInt = 1
    min: NonNegativeInt | None = None
    max: NonNegativeInt | None = None
    num_cpus: NonNegativeFloat | None = None
    num_gpus: NonNegativeFloat | None = None
    tensor_parallel: PositiveInt | None = None
    expert_parallel: PositiveInt | None = None
    hardware: HardwareName | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if not self.least <= self.replicas <= self.most:
            near = max(self.least, min(self.most, self.replicas))
            mend = f"set replicas to {near}" if self.least <= self.most else "exchange min and max"
            raise ValueError(
                f"pool {self.name}: min {self.least}, replicas {self.replicas} and max {self.most} "
                f"are not in order; {mend}"
            )
        return self

    @property
    def first_role(self) -> RoleName:
        return self.starts_as if self.role == "flex" else self.role

    @property
    def least(self) -> int:
        return self.replicas if self.min is None else self.min

    @property
    def most(self) -> int:
        return self.replicas if self.max is None else self.max


class RouterSection(_Section):
    grpc: Listen = Address(port=9000)
    http: Listen = Address(port=8000)
    admin: Listen = Address(port=8001)
    metrics_on_http: bool = True
    policy: PolicyName = "kvasir"
    disaggregation: Disaggregation = "auto"
    tls: DoorTls | None = None
    api_keys: ApiKeysConfig | None = None
    limits: Limits = Limits()


class ClusterConfig(_Section):
    """The whole file. Only what works today is accepted."""

    name: str = Field(default="kvasir", pattern=NAME)
    model: str = Field(min_length=1)
    served_name: str | None = Field(default=None, min_length=1)
    engine: EngineConfig = EngineConfig()
    hardware: HardwareName = "cpu"
    pools: tuple[PoolConfig, ...] = (
        PoolConfig(name="prefill", role="prefill"),
        PoolConfig(name="decode", role="decode"),
    )
    router: RouterSection = RouterSection()
    redis: RedisEndpoint = RedisEndpoint()  # where none is given the cluster starts a server
    internal_tls: InternalTls | None = None
    ports: PortsSection = PortsSection()
    planner: PlannerSection = PlannerSection()
    slo: SloConfig = SloConfig()
    transport: TransportConfig = TransportConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    ticket_ttl_s: TicketTtl = 10.0
    grace_s: PositiveFloat = 20.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [pool.name for pool in self.pools]
        if len(set(names)) < len(names):
            raise ValueError(f"two pools have the same name: {', '.join(names)}")
        # A replica of a flex pool can become what is missing.
        there = {pool.role for pool in self.pools if pool.replicas}
        flex = sum(pool.replicas for pool in self.pools if pool.role == "flex")
        missing = [role for role in ("prefill", "decode") if role not in there]
        if len(missing) > flex and "aggregated" not in there:
            raise ValueError(
                f"no pool has a {' or a '.join(missing)} replica; the cluster needs at least one "
                "prefill and one decode replica, or one aggregated replica"
            )
        for pool in self.pools:
            try:
                self.layout(pool)
            except ConfigError as error:
                raise ValueError(f"pool {pool.name}: {error.message}") from None
        try:
            check_planner(self)
        except ConfigError as error:
            raise ValueError(error.message) from None
        return self

    def layout(self, pool: PoolConfig) -> Layout:
        """The ranks of each of its replicas."""
        return Layout(
            pool.tensor_parallel or self.engine.tensor_parallel,
            pool.expert_parallel or self.engine.expert_parallel,
        )

    @property
    def num_workers(self) -> int:
        return sum(pool.replicas for pool in self.pools)

    @property
    def model_name(self) -> str:
        """What clients call it: else the hub id, or the last part of the directory."""
        if self.served_name is not None:
            return self.served_name
        path = Path(self.model)
        return path.resolve().name if path.is_dir() else self.model

    def worker_slices(
        self, *, model_dir: Path, redis: RedisEndpoint, ports: Sequence[int]
    ) -> list[WorkerConfig]:
        """One per replica, pool by pool; `ports` has as many. All ranks here share the cores."""
        ranks = sum(pool.replicas * self.layout(pool).world for pool in self.pools)
        threads = self.engine.threads or max(1, cores() // ranks)
        replicas = [(pool, index) for pool in self.pools for index in range(pool.replicas)]
        return [
            self.worker_slice(pool, f"{pool.name}-{index}", str(model_dir), redis, threads, port)
            for (pool, index), port in zip(replicas, ports, strict=True)
        ]

    def worker_slice(
        self,
        pool: PoolConfig,
        replica: str,
        model: str,
        redis: RedisEndpoint,
        threads: int,
        port: int = 0,
    ) -> WorkerConfig:
        """`threads`: of each rank."""
        return WorkerConfig(
            replica=replica,
            pool=pool.name,
            role=pool.first_role,
            model=model,
            cluster=self.name,
            hardware=pool.hardware or self.hardware,
            port=port,
            redis=redis,
            tls=self.internal_tls,
            engine=self._engine_of(pool, threads),
            transport=self.transport,
            ticket_ttl_s=self.ticket_ttl_s,
            logs=self.telemetry.logs,
            grace_s=self.grace_s,
        )

    def _engine_of(self, pool: PoolConfig, threads: int) -> EngineConfig:
        layout = self.layout(pool)
        return self.engine.model_copy(
            update={
                "threads": threads,
                "tensor_parallel": layout.tensor,
                "expert_parallel": layout.experts,
            }
        )

    def router_slice(self, *, model: str, redis: RedisEndpoint) -> RouterConfig:
        return RouterConfig(
            cluster=self.name,
            model=model,
            served_name=self.model_name,
            grpc=self.router.grpc,
            http=self.router.http,
            admin=self.router.admin,
            redis=redis,
            policy=self.router.policy,
            disaggregation=self.router.disaggregation,
            tls=self.router.tls,
            api_keys=self.router.api_keys,
            worker_tls=self.internal_tls,
            metrics_on_http=self.router.metrics_on_http,
            limits=self.router.limits,
            slo=self.slo,
            telemetry=self.telemetry,
        )


class Overrides(BaseModel):
    """What the command line may say instead of the file. None = what the file says."""

    model: str | None = None
    served_name: str | None = None
    prefill: int | None = None
    decode: int | None = None
    aggregated: int | None = None
    grpc_port: int | None = None
    http_port: int | None = None
    admin_port: int | None = None
    redis_url: str | None = None
    dtype: str | None = None


def load_config(path: Path, overrides: Overrides | None = None) -> ClusterConfig:
    """Read and check `path`. A model directory and files named in it are relative to it.

    Raises ConfigError that names each key at fault and its line.
    """
    file = ConfigFile(path)
    config = anchored(file.validate(ClusterConfig), path.parent.resolve())
    beside = path.parent / config.model
    if beside.is_dir():
        config = config.model_copy(update={"model": str(beside.resolve())})
    return _override(config, overrides) if overrides else config


def _override(config: ClusterConfig, over: Overrides) -> ClusterConfig:
    data = config.model_dump()
    if over.model is not None:
        data.update(model=over.model, served_name=None)
    if over.served_name is not None:
        data["served_name"] = over.served_name
    if over.redis_url is not None:
        data["redis"] |= {"url": over.redis_url, "sentinel": None, "cluster": None}
    if over.dtype is not None:
        data["engine"]["dtype"] = over.dtype
    for listener in ("grpc", "http", "admin"):
        port = getattr(over, f"{listener}_port")
        if port is not None:
            data["router"][listener]["port"] = port
    data["pools"] = _resized(data["pools"], over)
    try:
        return ClusterConfig.model_validate(data)
    except ValidationError as error:
        faults = [explain(fault, ClusterConfig) for fault in error.errors()]
        raise ConfigError("command line: " + "; ".join(faults)) from None


def _resized(pools: Sequence[dict[str, Any]], over: Overrides) -> list[dict[str, Any]]:
    """The pools with the sizes of the command line. Aggregated replicas where the file has none
    stand beside the pools that the command line names too, else instead of all of them."""
    sizes = {role: getattr(over, role) for role in get_args(RoleName)}
    pools = list(pools)
    if sizes["aggregated"] is not None and not any(p["role"] == "aggregated" for p in pools):
        if sizes["prefill"] is None and sizes["decode"] is None:
            pools.clear()
        pools.append({"name": "aggregated", "role": "aggregated"})
    for role, replicas in sizes.items():
        if replicas is not None:
            _only_pool(pools, role)["replicas"] = replicas
    return pools


def _only_pool(pools: Sequence[dict[str, Any]], role: str) -> dict[str, Any]:
    found = [pool for pool in pools if pool["role"] == role]
    if len(found) != 1:
        raise ConfigError(
            f"--{role} sets the size of the only {role} pool, but the config has {len(found)}; "
            "set replicas in the file"
        )
    return found[0]
