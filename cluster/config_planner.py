"""Section `planner` of cluster.yaml, and what pools look like to the planner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
)

from cluster.autoscaler.published import Mode
from cluster.planner.options import ActionCosts, Options
from cluster.planner.search import Pools
from cluster.planner.signals import PoolSpec
from router.flow.classes import Duration
from workers.core.errors import ConfigError

if TYPE_CHECKING:
    from cluster.config import ClusterConfig, PoolConfig

USUAL = Options()
ROUTER = r"^\S+:\d+$"


def _off(value: object) -> object:
    """YAML reads `off` as false."""
    return "off" if value is False else value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CostsSection(_Section):
    """In seconds of a replica."""

    start: NonNegativeFloat = USUAL.costs.start
    stop: NonNegativeFloat = USUAL.costs.stop
    flip: NonNegativeFloat = USUAL.costs.flip


class PlannerSection(_Section):
    """cluster/planner/options.py says what most of it means. `routers`: addresses of their gRPC
    ports, where they are not the config's own; a name with several addresses stands for all of
    them. `host`, `metrics_port`: where its metrics are."""

    mode: Annotated[Mode, BeforeValidator(_off, json_schema_input_type=Mode | Literal[False])] = (
        "off"
    )
    every_s: Duration = 10.0
    attainment: float = Field(default=USUAL.attainment, gt=0.0, lt=1.0)
    budget: PositiveFloat | None = USUAL.budget
    forecast: bool = USUAL.forecast
    season_s: Duration | None = USUAL.season_s
    costs: CostsSection = CostsSection()
    settle_s: Duration = USUAL.settle_s
    band: NonNegativeFloat = USUAL.band
    keep_s: Duration = USUAL.keep_s
    idle_s: Duration = USUAL.idle_s
    drain_s: Duration = USUAL.drain_s
    unfitted: NonNegativeFloat = USUAL.unfitted
    cold_start_s: Duration = 120.0
    routers: tuple[Annotated[str, Field(pattern=ROUTER)], ...] = ()
    host: str = "127.0.0.1"
    metrics_port: int = Field(default=8002, ge=0, le=65535)

    def options(self) -> Options:
        return Options(
            attainment=self.attainment,
            forecast=self.forecast,
            season_s=self.season_s,
            budget=self.budget,
            costs=ActionCosts(**self.costs.model_dump()),
            settle_s=self.settle_s,
            band=self.band,
            keep_s=self.keep_s,
            idle_s=self.idle_s,
            drain_s=self.drain_s,
            unfitted=self.unfitted,
        )


def rank_cpus(config: ClusterConfig, pool: PoolConfig) -> float:
    if pool.num_cpus is not None:
        return pool.num_cpus
    return float(config.engine.threads or 1)


def rank_gpus(config: ClusterConfig, pool: PoolConfig) -> float:
    if pool.num_gpus is not None:
        return pool.num_gpus
    return 0.0 if (pool.hardware or config.hardware) == "cpu" else 1.0


def planned(config: ClusterConfig) -> list[PoolConfig]:
    """The pools that are sized."""
    return [pool for pool in config.pools if pool.role != "aggregated" and pool.most]


def pool_specs(config: ClusterConfig) -> list[PoolSpec]:
    """A replica is counted by its GPUs, or by its CPUs where not all pools have GPUs. `model` is
    the pool's name: who asks the latency model gives it a place of that name."""
    pools = planned(config)
    on_gpus = all(rank_gpus(config, pool) for pool in pools)
    count = rank_gpus if on_gpus else rank_cpus
    return [
        PoolSpec(
            name=pool.name,
            role=pool.role,  # type: ignore[arg-type]
            model=pool.name,
            least=pool.least,
            most=pool.most,
            resources=(count(config, pool) or 1.0) * config.layout(pool).world,
            cold_start_s=config.planner.cold_start_s,
            kv_tokens=config.engine.kv_tokens or 0,
            max_seqs=config.engine.max_seqs,
        )
        for pool in pools
    ]


def check_planner(config: ClusterConfig) -> None:
    """Raises ConfigError that names the key and what would do."""
    section = config.planner
    if section.mode == "off":
        return
    aggregated = [pool.name for pool in config.pools if pool.role == "aggregated" and pool.most]
    if aggregated:
        raise ConfigError(
            f"planner.mode {section.mode}: pool {aggregated[0]} is aggregated, and such pools are "
            "not sized; set planner.mode: off, or use prefill, decode and flex pools"
        )
    specs = pool_specs(config)
    _check_kinds(specs)
    least = sum(spec.least * spec.resources for spec in specs)
    if section.budget is not None and section.budget < least:
        each = ", ".join(f"{spec.name} {spec.least} x {spec.resources:g}" for spec in specs)
        raise ConfigError(
            f"planner.budget: {section.budget:g} is less than the lower bounds of the pools take "
            f"({each}); set it to {least:g} or more, or lower pools[].min"
        )
    fixed = all(spec.least == spec.most for spec in specs)
    if section.mode == "apply" and fixed and not any(spec.role == "flex" for spec in specs):
        raise ConfigError(
            "planner.mode apply: every pool has a fixed size; set pools[].min and pools[].max, or "
            "planner.mode: advise"
        )
    Pools(specs, section.options())


def _check_kinds(specs: Sequence[PoolSpec]) -> None:
    by_role: dict[str, str] = {}
    for spec in specs:
        if spec.role in by_role:
            raise ConfigError(
                f"planner.mode: {by_role[spec.role]} and {spec.name} are both {spec.role} pools; "
                "the planner sizes one of each kind: make them one, or set planner.mode: off"
            )
        by_role[spec.role] = spec.name
