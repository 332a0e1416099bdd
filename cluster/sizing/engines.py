"""What a replica may be: a device and a way to split the model, where weights, KV and activations
fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.config import ClusterConfig, PoolConfig
from cluster.planner.signals import PoolSpec
from cluster.simulator.fleet.setup import Options, fleet_plan
from cluster.simulator.fleet.world import WorkerSizes
from cluster.sizing.question import SLO_CLASS, Question
from router.latency import LatencyModel
from workers.core.errors import ConfigError
from workers.models.plan import SIZES, splits
from workers.models.sizing import Split

MACHINE = 8  # devices with links between them, over which heads may be split
MOST_REPLICAS = 512  # of a pool
ROUND = 1024  # tokens, to which the longest request is rounded


@dataclass(frozen=True, slots=True)
class Engine:
    """One kind of replica. `cost`: of one replica."""

    hardware: str
    split: Split
    sizes: WorkerSizes
    cost: float

    @property
    def name(self) -> str:
        return _named(self.hardware, self.split)

    @property
    def gpus(self) -> int:
        return self.split.world

    def pool(self, role: str, replicas: int) -> PoolConfig:
        return _pool(self.hardware, self.split, role, replicas)

    def spec(self, role: str) -> PoolSpec:
        """As the planner's models take it; the latency model knows it by its name."""
        return PoolSpec(
            role,
            "decode",
            self.name,
            most=MOST_REPLICAS,
            resources=self.cost,
            kv_tokens=self.sizes.kv_tokens,
            max_seqs=self.sizes.max_seqs,
        )


def engines(question: Question, longest: int, latency: LatencyModel) -> list[Engine]:
    """All that fit, known to the latency model by their names. Raises ConfigError that says why
    none does, and which would."""
    found: list[Engine] = []
    faults: dict[str, list[str]] = {}
    for device in question.hardware:
        for split in _splits(question):
            try:
                engine = _engine(question, device, split, longest)
            except ConfigError as error:
                faults.setdefault(_plain(error.message), []).append(_named(device, split))
                continue
            latency.placed(engine.name, engine.sizes.hardware_class, engine.sizes.step_tokens)
            found.append(engine)
    if not found:
        said = (f"{', '.join(names)}: {fault}" for fault, names in faults.items())
        raise ConfigError("no replica fits. " + "; ".join(said))
    least = min(found, key=lambda engine: engine.gpus)
    if question.gpus is not None and question.gpus < least.gpus:
        raise ConfigError(
            f"--gpus {question.gpus}: the smallest replica that fits takes {least.gpus}, "
            f"{least.name}"
        )
    return found


def cluster_config(question: Question, longest: int, pools: Sequence[PoolConfig]) -> ClusterConfig:
    """A cluster.yaml of those pools; `kvasir simulate cluster` takes it as well."""
    context = min(question.model.context_length, -(-longest // ROUND) * ROUND)
    engine = question.engine.model_copy(update={"context_length": context})
    seats = sum(pool.replicas for pool in pools if pool.role != "prefill") * engine.max_seqs
    return ClusterConfig.model_validate(
        {
            "model": question.name,
            "hardware": pools[0].hardware,
            "engine": engine.model_dump(exclude_defaults=True),
            "pools": [pool.model_dump(exclude_unset=True) for pool in pools],
            "slo": {
                "classes": {SLO_CLASS: question.slo.model_dump(exclude_defaults=True)},
                "default": SLO_CLASS,
            },
            "router": {"limits": {"max_requests": max(1024, 2 * seats)}},
        }
    )


def _engine(question: Question, device: str, split: Split, longest: int) -> Engine:
    config = cluster_config(question, longest, [_pool(device, split, "aggregated", 1)])
    sizes = fleet_plan(config, question.model, Options()).replicas[0].sizes
    if sizes.kv_tokens < longest:
        raise ConfigError(
            f"beside the weights {sizes.kv_tokens:,} tokens of KV fit, the longest request has "
            f"{longest:,}"
        )
    return Engine(device, split, sizes, split.world * question.prices.get(device, 1.0))


def _named(device: str, split: Split) -> str:
    ranks = f" ep{split.experts}" if split.experts > 1 else ""
    return f"{device} tp{split.tensor}{ranks}"


def _pool(device: str, split: Split, role: str, replicas: int) -> PoolConfig:
    ranks = {"tensor_parallel": split.tensor, "expert_parallel": split.experts}
    return PoolConfig.model_validate(
        {"name": role, "role": role, "replicas": replicas, "hardware": device}
        | {name: count for name, count in ranks.items() if count > 1}
    )


def _splits(question: Question) -> Iterator[Split]:
    """As `kvasir size` lists them."""
    asked = question.tensor or tuple(size for size in SIZES if size <= MACHINE)
    found = {split for tensor in asked for split in splits(question.model, Split(tensor))}
    yield from sorted(
        (split for split in found if split.tensor in asked),
        key=lambda split: (split.world, split.experts),
    )


def _plain(message: str) -> str:
    """Without the pool that nobody has named."""
    return message.removeprefix("pool aggregated: ")
