"""How much memory a model needs, from config.json alone. No torch.

Weights and KV are what the decoder allocates, to the byte; activations are an estimate.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from workers.core.span import share
from workers.models.architecture import (
    DenseFeedForward,
    Experts,
    HeadAttention,
    LatentAttention,
    LayerConfig,
    ModelConfig,
)
from workers.models.kv_layout import kv_layout

FLOAT32 = 4  # bytes


@dataclass(frozen=True, slots=True)
class Split:
    """How many ranks share heads, widths and the vocabulary, and how many the experts; see
    workers/parallel/layout.py."""

    tensor: int = 1
    experts: int = 1

    @property
    def world(self) -> int:
        return max(self.tensor, self.experts)

    @property
    def shards(self) -> int:
        """Groups of tensor ranks: each has sequences of its own."""
        return self.world // self.tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes on the rank that holds most, the first: a vocabulary may not divide evenly."""

    embedding: int
    head: int
    attention: int
    feed_forward: int
    experts: int
    norms: int

    @property
    def total(self) -> int:
        parts = (self.embedding, self.head, self.attention, self.feed_forward)
        return sum(parts) + self.experts + self.norms


def rank_weights(
    config: ModelConfig,
    split: Split,
    item: int,
    *,
    packed: bool = False,
    exact_item: int = FLOAT32,
) -> Weights:
    """`item`, `exact_item`: bytes of an element, and of one of a norm or router. `packed`: products
    keep a layout of their own, so that a head that is tied to the embedding takes memory too."""
    hidden = config.hidden_size
    vocabulary = -(-config.vocab_size // split.tensor) * hidden * item
    layers = Counter(config.layers)
    norms = 4 if config.post_norms else 2
    return Weights(
        embedding=vocabulary,
        head=vocabulary if packed or not config.tied_embeddings else 0,
        attention=sum(
            n
            * (
                attention_elements(each, hidden, split) * item
                + _head_norms(each, split) * exact_item
            )
            for each, n in layers.items()
        ),
        feed_forward=sum(n * dense_elements(each, hidden, split) for each, n in layers.items())
        * item,
        experts=sum(
            n * (_router(each, hidden) * exact_item + _experts(each, hidden, split) * item)
            for each, n in layers.items()
        ),
        norms=(norms * len(config.layers) + 1) * hidden * exact_item,
    )


def attention_elements(layer: LayerConfig, hidden: int, split: Split) -> int:
    own = layer.attention
    heads = own.heads // split.tensor
    if isinstance(own, LatentAttention):
        return _latent(own, heads, hidden)
    kv_heads = share(own.kv_heads, 0, split.tensor).size
    stacked, inner = (heads + 2 * kv_heads) * own.head_dim, heads * own.head_dim
    elements = _linear(hidden, stacked, own.qkv_bias) + _linear(inner, hidden, own.output_bias)
    return elements + (heads if own.sinks else 0)


def _head_norms(layer: LayerConfig, split: Split) -> int:
    """Of queries and keys, or of latents."""
    own = layer.attention
    if isinstance(own, LatentAttention):
        return own.kv_rank + (own.query_rank or 0)
    kv_heads = share(own.kv_heads, 0, split.tensor).size
    return (own.heads // split.tensor + kv_heads) * own.head_dim if own.qk_norm else 0


def _latent(own: LatentAttention, heads: int, hidden: int) -> int:
    """What goes into and comes out of a latent is whole on every rank but for the heads' side."""
    width = own.nope_dim + own.rope_dim
    if own.query_rank is None:
        queries = _linear(hidden, heads * width, False)
    else:
        down = _linear(hidden, own.query_rank, own.bias)
        queries = down + _linear(own.query_rank, heads * width, False)
    latent = _linear(hidden, own.kv_rank + own.rope_dim, own.bias)
    keys_values = own.kv_rank * heads * (own.nope_dim + own.value_dim)
    return queries + latent + keys_values + _linear(heads * own.value_dim, hidden, own.bias)


def dense_elements(layer: LayerConfig, hidden: int, split: Split) -> int:
    own = layer.feed_forward
    if not isinstance(own, DenseFeedForward):
        return 0
    return _gated(hidden, own.width // split.tensor, own.bias)


def _experts(layer: LayerConfig, hidden: int, split: Split) -> int:
    own = layer.feed_forward
    if not isinstance(own, Experts):
        return 0
    here = own.count // split.experts
    return here * expert_elements(own, hidden, split) + shared_elements(own, hidden, split)


def expert_elements(own: Experts, hidden: int, split: Split) -> int:
    """What a rank holds of one expert: where ranks share the experts they have whole ones."""
    return _gated(hidden, own.width // _parts(split), own.bias)


def shared_elements(own: Experts, hidden: int, split: Split) -> int:
    """Of the experts that every token goes through; whole where the others are whole."""
    return _gated(hidden, own.shared_width // _parts(split), False) if own.shared_width else 0


def _parts(split: Split) -> int:
    return split.tensor if split.experts == 1 else 1


def _router(layer: LayerConfig, hidden: int) -> int:
    own = layer.feed_forward
    if not isinstance(own, Experts):
        return 0
    return own.count * (hidden + own.router_bias + own.correction)


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return outputs * (inputs + bias)


def _gated(hidden: int, inner: int, bias: bool) -> int:
    return _linear(hidden, 2 * inner, bias) + _linear(inner, hidden, bias)


def parameters(config: ModelConfig) -> int:
    """Of the whole model, as they are counted when it is published."""
    repeated = sum(
        (own.heads + own.kv_heads - 2) * own.head_dim
        for own in (layer.attention for layer in config.layers)
        if isinstance(own, HeadAttention) and own.qk_norm  # kept for each head, one for all
    )
    return rank_weights(config, Split(), 1, exact_item=1).total - repeated


def rule_of_thumb(num_parameters: int, item: int) -> float:
    """Bytes to serve a model, as the field estimates them: P x Q/8 x 1.2, for P parameters of Q
    bits."""
    return num_parameters * item * 1.2


def kv_bytes_per_token(config: ModelConfig, split: Split, item: int) -> int:
    """On each rank."""
    return kv_layout(config, split.tensor).elements * item


def activation_peak(
    config: ModelConfig, split: Split, item: int, *, step_tokens: int, max_seqs: int
) -> int:
    """Bytes, estimated: of a step of `step_tokens` in one shard, the residual stream, what is added
    to it, and the largest of what a layer holds at once (queries, keys and values, the rotated ones
    and what attention gives; gate and up, and their product; of experts the rows that they are
    given, too); or, if that is more, the logits of `max_seqs` rows, in the model's dtype and twice
    in float32, as sampling needs them."""
    hidden = config.hidden_size
    widest = max(_layer_activations(each, hidden, split) for each in set(config.layers))
    forward = step_tokens * (2 * hidden + widest) * item
    sampling = max_seqs * (hidden * item + config.vocab_size * (item + 2 * FLOAT32))
    return max(forward, sampling)


def _layer_activations(layer: LayerConfig, hidden: int, split: Split) -> int:
    """Elements of one token, beside the residual stream."""
    own, feed_forward = layer.attention, layer.feed_forward
    heads = own.heads // split.tensor
    if isinstance(own, LatentAttention):
        latent = own.kv_rank + own.rope_dim
        queries = heads * (own.nope_dim + own.rope_dim)
        # Queries as projected and as they meet latents, what comes of it and its values.
        attention = (own.query_rank or 0) + 2 * latent + queries
        attention += heads * (latent + own.kv_rank + own.value_dim)
    else:
        kv_heads = share(own.kv_heads, 0, split.tensor).size
        stacked = (heads + 2 * kv_heads) * own.head_dim
        attention = stacked + (heads + kv_heads) * own.head_dim + heads * own.head_dim
    if isinstance(feed_forward, DenseFeedForward):
        inner = 3 * feed_forward.width // split.tensor
    else:
        # A row for each active expert. Where experts are spread a rank sends those of its slice
        # of the tokens, and on average as many arrive; elsewhere it has a part of every expert.
        slices, parts = (split.tensor, 1) if split.experts > 1 else (1, split.tensor)
        row = 2 * hidden + 3 * feed_forward.width // parts
        inner = feed_forward.active * row + 3 * feed_forward.shared_width // parts
        inner = -(-inner // slices)
    return max(attention, inner)
