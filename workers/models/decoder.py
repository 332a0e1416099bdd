"""The one decoder. Families differ by configuration; attention and feed-forward are parts."""

from __future__ import annotations

from torch import Tensor, nn

from workers.attention.backend import AttentionPlan
from workers.layers.attention import Attention
from workers.layers.build import Build
from workers.layers.embedding import Embedding, gather_logits, new_head
from workers.layers.experts import ExpertsFeedForward
from workers.layers.feed_forward import FeedForward
from workers.layers.latent_attention import LatentAttentionLayer
from workers.layers.norm import RMSNorm
from workers.layers.rotary import RotaryEmbedding, Rotation
from workers.layers.weights import Packs, Targets
from workers.models.architecture import (
    DenseFeedForward,
    Experts,
    HeadAttention,
    LatentAttention,
    ModelConfig,
    RopeConfig,
)


class DecoderLayer(nn.Module):
    """`rotary`: the index of its Rotation among those of a step."""

    def __init__(self, layer: int, config: ModelConfig, rotary: int, build: Build) -> None:
        super().__init__()
        self.rotary = rotary
        self._names = config.names
        own = config.layers[layer]
        self.attention = new_attention(layer, own.attention, config, build)
        self.feed_forward = new_feed_forward(own.feed_forward, config, build)
        self.attention_norm = new_norm(config, build)
        self.feed_forward_norm = new_norm(config, build)
        self.attention_post_norm = new_norm(config, build) if config.post_norms else None
        self.feed_forward_post_norm = new_norm(config, build) if config.post_norms else None

    def forward(
        self,
        x: Tensor | None,
        residual: Tensor,
        rotations: list[Rotation],
        plan: AttentionPlan,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x: what the layer before leaves to be added to the residual stream. Returns the same of
        this layer, and the stream. `rows`: all that is wanted of both; the KV of all is written."""
        normed = self.attention_norm(x, residual)
        x = self.attention(normed, rotations[self.rotary], plan, rows)
        if self.attention_post_norm is not None:
            x = self.attention_post_norm(None, x)
        if rows is not None:
            residual = residual[rows]
        x = self.feed_forward(self.feed_forward_norm(x, residual))
        if self.feed_forward_post_norm is not None:
            x = self.feed_forward_post_norm(None, x)
        return x, residual

    def targets(self, prefix: str) -> Targets:
        names = self._names
        targets = self.attention.targets(prefix + names.attention)
        targets += self.feed_forward.targets(prefix + names.feed_forward)
        for name, norm in (
            (names.attention_norm, self.attention_norm),
            (names.feed_forward_norm, self.feed_forward_norm),
            (names.attention_post_norm, self.attention_post_norm),
            (names.feed_forward_post_norm, self.feed_forward_post_norm),
        ):
            targets += [] if norm is None else norm.targets(prefix + name)
        return targets


class Decoder(nn.Module):
    """Weights are uninitialised until a loader has filled `targets`."""

    def __init__(self, config: ModelConfig, build: Build) -> None:
        super().__init__()
        self.config = config
        self._ranks = build.ranks.tensor
        self.embedding = Embedding(
            config.vocab_size, config.hidden_size, build, scale=config.embedding_scale
        )
        # Layers that rotate alike share what a step computes for it.
        ropes = [rotation_of(layer.attention) for layer in config.layers]
        distinct = list(dict.fromkeys(ropes))
        self._rotaries = [
            RotaryEmbedding(width, rope, config.context_length, build.device)
            for width, rope in distinct
        ]
        self.layers = nn.ModuleList(
            DecoderLayer(layer, config, distinct.index(rope), build)
            for layer, rope in enumerate(ropes)
        )
        self.norm = new_norm(config, build)
        self.head = new_head(self.embedding, config.names.head, build, tied=config.tied_embeddings)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        plan: AttentionPlan,
        rows: Tensor | None = None,
    ) -> Tensor:
        """token_ids, positions: [T] -> hidden states [T, hidden], normalised; with `rows` those of
        [n, hidden]: of a prompt only the last state is wanted, and the last layer spares itself the
        others once their KV is written."""
        residual, x = self.embedding(token_ids), None
        rotations = [rotary(positions) for rotary in self._rotaries]
        *layers, last = self.layers
        for layer in layers:
            x, residual = layer(x, residual, rotations, plan)
        x, residual = last(x, residual, rotations, plan, rows)
        return self.norm(x, residual)

    def idle(self) -> None:
        """A step without tokens for this shard: its experts serve those of the others."""
        nothing = self.embedding.weight.new_zeros(0, self.config.hidden_size)
        for layer in self.layers:
            if isinstance(layer.feed_forward, ExpertsFeedForward):
                layer.feed_forward(nothing)

    def logits(self, hidden: Tensor) -> Tensor | None:
        """[n, hidden] -> [n, vocabulary] on rank 0 of the tensor group, None on the others. Costly:
        only for rows that sample."""
        return gather_logits(self.head(hidden), self.embedding.ids, self._ranks)

    def pack(self) -> None:
        """After loading, once: weights become what is read fastest. A part packs before its own
        parts do."""
        for module in self.modules():
            if module is not self and isinstance(module, Packs):
                module.pack()

    def targets(self) -> Targets:
        """Every tensor that the checkpoint must have, by its Hugging Face name."""
        model, config = self.config.names.model, self.config
        targets = self.embedding.targets(f"{model}embed_tokens")
        targets += self.norm.targets(f"{model}norm")
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            targets += layer.targets(f"{model}layers.{index}.")
        return targets if config.tied_embeddings else targets + self.head.targets("")


def new_norm(config: ModelConfig, build: Build) -> RMSNorm:
    return RMSNorm(config.hidden_size, config.rms_norm_eps, build, unit_offset=config.unit_offset)


def new_attention(
    layer: int, own: HeadAttention | LatentAttention, config: ModelConfig, build: Build
) -> Attention | LatentAttentionLayer:
    match own:
        case HeadAttention():
            return Attention(layer, own, config, build)
        case LatentAttention():
            return LatentAttentionLayer(layer, own, config.hidden_size, build)


def new_feed_forward(
    own: DenseFeedForward | Experts, config: ModelConfig, build: Build
) -> FeedForward | ExpertsFeedForward:
    match own:
        case DenseFeedForward():
            return FeedForward(own, config.hidden_size, config.names, build)
        case Experts():
            return ExpertsFeedForward(own, config.hidden_size, config.names.experts, build)


def rotation_of(attention: HeadAttention | LatentAttention) -> tuple[int, RopeConfig]:
    """How many dimensions are rotated, and how."""
    if isinstance(attention, LatentAttention):
        return attention.rope_dim, attention.rope
    return attention.rotated or attention.head_dim, attention.rope
