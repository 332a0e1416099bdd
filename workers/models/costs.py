"""What a step of a model asks of each of its ranks: operations, bytes of memory, bytes between
ranks. From config.json alone, no torch: the numbers that a roofline is made of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from workers.models.architecture import Experts, LatentAttention, LayerConfig, ModelConfig
from workers.models.kv_layout import kv_layout
from workers.models.sizing import (
    Split,
    attention_elements,
    dense_elements,
    expert_elements,
    shared_elements,
)

ITEM_BYTES = {None: 2, "bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class ExpertReads:
    """Layers with experts: a rank has `here` of `count`, `bytes` each in all these layers, and a
    token chooses `active` of them."""

    count: int
    active: int
    here: int
    bytes: int

    def touched_bytes(self, rows: float) -> float:
        """Of the experts that at least one of `rows` tokens is expected to choose, where choices
        are even."""
        return self.here * self.bytes * (1.0 - (1.0 - self.active / self.count) ** rows)


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Of one rank, on average, for a step of the whole replica.

    Operations: `row_flops` for each token of the step, `sampled_flops` for each that the next one
    is sampled from, `pair_flops` for each (query, KV) pair. Bytes of memory: `weight_bytes` in
    every step, `experts` as tokens choose them, `kv_bytes` for each KV token. Between ranks:
    `sent_bytes` for each token, in `collectives` messages a step.
    """

    row_flops: float
    sampled_flops: float
    pair_flops: float
    weight_bytes: float
    experts: tuple[ExpertReads, ...]
    kv_bytes: float
    sent_bytes: float
    collectives: int

    def read_bytes(self, rows: float) -> float:
        """Weights that a step of `rows` tokens reads."""
        return self.weight_bytes + sum(each.touched_bytes(rows) for each in self.experts)


def step_costs(config: ModelConfig, split: Split) -> StepCosts:
    """Norms and biases of little are left out, and so is the embedding: few of its rows are read.

    Where only some layers have a window it is taken to be full: its pairs count with their token,
    and their KV does not grow with the context. Where all have one it is as if none had.
    """
    hidden, item = config.hidden_size, ITEM_BYTES[config.dtype]
    layers = Counter(config.layers)
    own_rows = 1.0 / split.shards  # of the step's tokens, those of this rank's sequences
    windows = any(_window(layer) is None for layer in layers)
    row = pair = weights = full = 0.0
    for layer, n in layers.items():
        dense = attention_elements(layer, hidden, split) + dense_elements(layer, hidden, split)
        active = 0.0
        if isinstance(layer.feed_forward, Experts):
            dense += shared_elements(layer.feed_forward, hidden, split)
            chosen = expert_elements(layer.feed_forward, hidden, split)
            active = layer.feed_forward.active / split.experts * chosen
        row += 2 * n * (dense * own_rows + active)
        weights += n * dense * item
        pairs, window = _pair_flops(layer, split) * own_rows, _window(layer)
        if window is None or not windows:
            pair += n * pairs
            full += n
        else:
            row += n * pairs * window
    head = -(-config.vocab_size // split.tensor) * hidden
    per_layer = kv_layout(config, split.tensor).elements // len(config.layers)
    between = split.world - 1
    return StepCosts(
        row_flops=row,
        sampled_flops=2 * head * own_rows,
        pair_flops=pair,
        weight_bytes=weights + head * item,
        experts=tuple(
            _reads(layer.feed_forward, n, hidden, split, item)
            for layer, n in layers.items()
            if isinstance(layer.feed_forward, Experts)
        ),
        kv_bytes=full * per_layer * item * own_rows,
        # Two sums over all ranks in each layer, as a ring does them.
        sent_bytes=2 * len(config.layers) * 2 * between / split.world * hidden * item * own_rows,
        collectives=2 * len(config.layers) if between else 0,
    )


def _pair_flops(layer: LayerConfig, split: Split) -> int:
    """Of one query token over one KV token: its score, and its part of the weighted sum."""
    own = layer.attention
    heads = own.heads // split.tensor
    if isinstance(own, LatentAttention):  # absorbed: queries meet latents
        return heads * (4 * own.kv_rank + 2 * own.rope_dim)
    return 4 * heads * own.head_dim


def _window(layer: LayerConfig) -> int | None:
    return None if isinstance(layer.attention, LatentAttention) else layer.attention.window


def _reads(own: Experts, layers: int, hidden: int, split: Split, item: int) -> ExpertReads:
    each = layers * expert_elements(own, hidden, split) * item
    return ExpertReads(own.count, own.active, own.count // split.experts, each)
