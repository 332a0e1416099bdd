"""From cluster.yaml, a model and a trace to what is simulated. What cannot be is said here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.config import ClusterConfig, PoolConfig
from cluster.model_source import DEMO, demo_model
from cluster.simulator.fleet.plan import FleetPlan, ReplicaPlan
from cluster.simulator.fleet.recorded import read_steps
from cluster.simulator.fleet.world import WorkerSizes
from router.latency import FittedLatency, HardwareClass
from router.placement.placement import Disaggregation
from workers.core.errors import CheckpointError, ConfigError
from workers.core.hardware import hardware
from workers.models.architecture import ModelConfig
from workers.models.config import read_config, read_shape
from workers.models.fields import Fields, read_json
from workers.models.plan import SIZES, Demand, fit
from workers.models.shapes import SHAPES
from workers.models.sizing import Split, kv_bytes_per_token
from workers.models.split import check_split

MEMORY_SHARE = 0.9  # of a device's memory that may be taken
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line adds. `noise`: of steps, sigma of the logarithm. `steps`: those that
    were recorded, which say more than data sheets."""

    mode: Disaggregation | None = None
    noise: float = 0.0
    seed: int = 1
    steps: Path | None = None


def read_model(model: str) -> ModelConfig:
    """A checkpoint directory, a config.json, or a shape's name. Raises CheckpointError."""
    path = demo_model() if model == DEMO else Path(model).expanduser()
    if path.is_dir():
        path /= "config.json"
    elif model in SHAPES and not path.exists():
        return read_shape(model)
    elif not path.is_file():
        raise CheckpointError(
            f"model {model!r} is neither a directory, nor a config.json, nor one of "
            f"{', '.join((DEMO, *SHAPES))}"
        )
    return read_config(Fields(path, read_json(path)))


def fleet_plan(config: ClusterConfig, model: ModelConfig, options: Options) -> FleetPlan:
    """Raises ConfigError where the model does not fit into a pool's replicas, or nobody recorded
    steps of their hardware."""
    replicas = [
        ReplicaPlan(f"{pool.name}-{place}", pool.name, pool.first_role, sizes)
        for pool in config.pools
        if pool.replicas
        for sizes in [_sizes(config, pool, model)]
        for place in range(pool.replicas)
    ]
    first = replicas[0].sizes
    usual = first.hardware_class
    truth, believed = FittedLatency(model, usual), FittedLatency(model, usual)
    if options.steps is not None:
        for latency in (truth, believed):
            _taught(latency, options.steps, config.engine.step_tokens, replicas)
    return FleetPlan(
        replicas,
        truth=truth,
        believed=believed,
        slo=config.slo,
        limits=config.router.limits,
        policy=config.router.policy,
        disaggregation=options.mode or config.router.disaggregation,
        ticket_ttl_s=config.ticket_ttl_s,
        noise=options.noise,
        seed=options.seed,
    )


def _taught(
    latency: FittedLatency, steps: Path, step_tokens: int, replicas: Sequence[ReplicaPlan]
) -> None:
    known = read_steps(steps, latency, step_tokens)
    missing = {replica.sizes.hardware_class for replica in replicas} - known
    if missing:
        raise ConfigError(
            f"{steps} has steps of {_names(known)}, but none of {_names(missing)}, which pools are"
        )


def _names(classes: Iterable[HardwareClass]) -> str:
    return ", ".join(
        f"{each.hardware} x {each.tensor_ranks * each.expert_ranks}" for each in sorted(classes)
    )


def _sizes(config: ClusterConfig, pool: PoolConfig, model: ModelConfig) -> WorkerSizes:
    engine, layout = config.engine, config.layout(pool)
    device = pool.hardware or config.hardware
    split = Split(layout.tensor, layout.experts)
    check_split(model, split.tensor, split.experts)
    dtype = (model.dtype or "bfloat16") if engine.dtype == "auto" else engine.dtype
    item = ITEM_BYTES[dtype]
    demand = Demand(
        memory=hardware(device).memory_bytes,
        share=MEMORY_SHARE,
        item=item,
        kv_item=item,
        context=engine.context_length or model.context_length,
        block_size=engine.block_size,
        step_tokens=engine.step_tokens,
        max_seqs=engine.max_seqs,
    )
    fitting = fit(model, split, demand)
    asked = engine.kv_tokens
    if fitting.kv_tokens == 0 or (asked is not None and asked > fitting.kv_tokens):
        raise ConfigError(_too_large(pool, device, model, demand, fitting.kv_tokens, asked))
    # Pages for more than all contexts at once would never be used.
    enough = engine.max_seqs * demand.context
    tokens = asked or min(fitting.kv_tokens, enough)
    return WorkerSizes(
        hardware=device,
        tensor_ranks=split.tensor,
        expert_ranks=split.experts,
        block_size=engine.block_size,
        kv_tokens=max(engine.block_size, tokens // engine.block_size * engine.block_size),
        context_length=demand.context,
        step_tokens=engine.step_tokens,
        max_seqs=engine.max_seqs,
        token_bytes=kv_bytes_per_token(model, Split(1, 1), item),
        eviction=engine.eviction,
    )


def _too_large(
    pool: PoolConfig, device: str, model: ModelConfig, demand: Demand, fits: int, asked: int | None
) -> str:
    if fits:
        return f"pool {pool.name}: engine.kv_tokens is {asked}, but only {fits} fit on {device}"
    enough = (size for size in SIZES if fit(model, Split(size), demand).works)
    size = next(enough, None)
    nearest = (
        f"tensor_parallel: {size} would fit" if size else f"it fits on no number of {device} ranks"
    )
    return (
        f"pool {pool.name}: {model.architecture} and its KV do not fit into "
        f"{demand.memory * demand.share / (1 << 30):.0f} GiB of {device}; {nearest}"
    )


def resized(config: ClusterConfig, sizes: dict[str, int]) -> ClusterConfig:
    """The same with so many replicas of each pool. Raises ConfigError for a pool it has not."""
    unknown = sizes.keys() - {pool.name for pool in config.pools}
    if unknown:
        raise ConfigError(
            f"no pool {', '.join(sorted(unknown))}; there are: "
            f"{', '.join(pool.name for pool in config.pools)}"
        )
    pools = tuple(
        pool.model_copy(update={"replicas": sizes.get(pool.name, pool.replicas)})
        for pool in config.pools
    )
    return config.model_copy(update={"pools": pools})
