"""The one decoder. Families differ by configuration; attention and feed-forward are parts."""

from __future__ import annotations

from torch import Tensor, nn

from workers.attention.backend import AttentionPlan
from workers.layers.attention import Attention
from workers.layers.build import Build
from workers.layers.embedding import Embedding, new_head
from workers.layers.feed_forward import FeedForward
from workers.layers.linear import Linear
from workers.layers.norm import RMSNorm
from workers.layers.rotary import RotaryEmbedding, Rotation
from workers.layers.weights import Targets
from workers.models.config import ModelConfig


class DecoderLayer(nn.Module):
    def __init__(self, layer: int, config: ModelConfig, build: Build) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.attention = Attention(layer, config, build)
        self.feed_forward = FeedForward(config, build)
        self.attention_norm = RMSNorm(width, eps, build)
        self.feed_forward_norm = RMSNorm(width, eps, build)

    def forward(
        self,
        x: Tensor | None,
        residual: Tensor,
        rotation: Rotation,
        plan: AttentionPlan,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x: what the layer before leaves to be added to the residual stream. Returns the same of
        this layer, and the stream. `rows`: all that is wanted of both; the KV of all is written."""
        x = self.attention(self.attention_norm(x, residual), rotation, plan, rows)
        if rows is not None:
            residual = residual[rows]
        return self.feed_forward(self.feed_forward_norm(x, residual)), residual

    def targets(self, prefix: str) -> Targets:
        return (
            self.attention.targets(f"{prefix}self_attn.")
            | self.feed_forward.targets(f"{prefix}mlp.")
            | self.attention_norm.targets(f"{prefix}input_layernorm")
            | self.feed_forward_norm.targets(f"{prefix}post_attention_layernorm")
        )


class Decoder(nn.Module):
    """Weights are uninitialised until a loader has filled `targets`."""

    def __init__(self, config: ModelConfig, build: Build) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size, build)
        self.layers = nn.ModuleList(
            DecoderLayer(layer, config, build) for layer in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, build)
        self.head = new_head(self.embedding, build, tied=config.tied_embeddings)
        self.rotary = RotaryEmbedding(config.head_dim, config.rope, build.device)

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
        rotation = self.rotary(positions)
        *layers, last = self.layers
        for layer in layers:
            x, residual = layer(x, residual, rotation, plan)
        x, residual = last(x, residual, rotation, plan, rows)
        return self.norm(x, residual)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> [n, vocabulary]. Costly: only for rows that sample."""
        return self.head(hidden)

    def pack(self) -> None:
        """After loading: every product's weights into the layout that is read fastest."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()

    def targets(self) -> Targets:
        """Every tensor that the checkpoint must have, by its Hugging Face name."""
        targets = self.embedding.targets("model.embed_tokens") | self.norm.targets("model.norm")
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            targets |= layer.targets(f"model.layers.{index}.")
        if not self.config.tied_embeddings:
            targets |= self.head.targets("")
        return targets
