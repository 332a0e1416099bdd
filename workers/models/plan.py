"""What fits on a device: one row for each way of splitting a model over ranks. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from workers.models.architecture import Experts, ModelConfig
from workers.models.sizing import (
    Split,
    activation_peak,
    kv_bytes_per_token,
    rank_weights,
)
from workers.models.split import split_faults

SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to be served, and on what. `memory`: bytes of a device, one for each rank, of which
    `share` may be taken. `item`, `kv_item`: bytes of an element of weights and of KV."""

    memory: float
    share: float
    item: int
    kv_item: int
    context: int
    block_size: int
    step_tokens: int
    max_seqs: int
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Fit:
    """Bytes are those of one rank. `faults`: why the model cannot be split so; then nothing else
    counts. `kv_tokens`: that fit beside weights and activations, in all shards together; 0: not
    even those do. `sequences`: of the demanded context."""

    split: Split
    faults: tuple[str, ...]
    weights: int = 0
    activations: int = 0
    kv_bytes_per_token: int = 0
    kv_tokens: int = 0
    sequences: int = 0

    @property
    def works(self) -> bool:
        return not self.faults and self.sequences > 0


def fit(config: ModelConfig, split: Split, demand: Demand) -> Fit:
    faults = split_faults(config, split.tensor, split.experts)
    if faults:
        return Fit(split, faults)
    weights = rank_weights(config, split, demand.item, packed=demand.packed).total
    activations = activation_peak(
        config, split, demand.item, step_tokens=demand.step_tokens, max_seqs=demand.max_seqs
    )
    token = kv_bytes_per_token(config, split, demand.kv_item)
    left = demand.memory * demand.share - weights - activations
    blocks = max(int(left // (token * demand.block_size)), 0)
    a_sequence = -(-demand.context // demand.block_size)
    return Fit(
        *(split, faults, weights, activations, token),
        kv_tokens=blocks * demand.block_size * split.shards,
        sequences=blocks // a_sequence * split.shards,
    )


def splits(config: ModelConfig, asked: Split) -> list[Split]:
    """The sizes worth a look: tensor ranks alone, ranks that share experts too, and `asked`."""
    found = {asked, *map(Split, SIZES)}
    if any(isinstance(layer.feed_forward, Experts) for layer in config.layers):
        found |= {Split(tensor, size) for tensor in (1, asked.tensor) for size in SIZES[1:]}
    return sorted(found, key=lambda split: (split.experts > 1, split.tensor, split.experts))
