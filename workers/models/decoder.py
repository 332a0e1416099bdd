"""The one decoder. Families differ by configuration; attention and feed-forward are parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workers.attention.backend import AttentionPlan
from workers.layers.attention import Attention
from workers.layers.embedding import Embedding, new_head
from workers.layers.feed_forward import FeedForward
from workers.layers.linear import Linear
from workers.layers.norm import RMSNorm
from workers.layers.rotary import RotaryEmbedding, Rotation
from workers.layers.weights import Targets
from workers.models.config import ModelConfig


class DecoderLayer(nn.Module):
    def __init__(
        self, layer: int, config: ModelConfig, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.attention = Attention(layer, config, dtype=dtype, device=device)
        self.feed_forward = FeedForward(config, dtype=dtype, device=device)
        self.attention_norm = RMSNorm(width, eps, dtype=dtype, device=device)
        self.feed_forward_norm = RMSNorm(width, eps, dtype=dtype, device=device)

    def forward(self, x: Tensor, rotation: Rotation, plan: AttentionPlan) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, plan)
        return x + self.feed_forward(self.feed_forward_norm(x))

    def targets(self, prefix: str) -> Targets:
        return (
            self.attention.targets(f"{prefix}self_attn.")
            | self.feed_forward.targets(f"{prefix}mlp.")
            | self.attention_norm.targets(f"{prefix}input_layernorm")
            | self.feed_forward_norm.targets(f"{prefix}post_attention_layernorm")
        )


class Decoder(nn.Module):
    """Weights are uninitialised until a loader has filled `targets`."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.embedding = Embedding(
            config.vocab_size, config.hidden_size, dtype=dtype, device=device
        )
        self.layers = nn.ModuleList(
            DecoderLayer(layer, config, dtype=dtype, device=device)
            for layer in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype, device=device)
        self.head = new_head(self.embedding, tied=config.tied_embeddings)
        self.rotary = RotaryEmbedding(config.head_dim, config.rope, device)

    def forward(self, token_ids: Tensor, positions: Tensor, plan: AttentionPlan) -> Tensor:
        """token_ids, positions: [T] -> hidden states [T, hidden], normalised."""
        x = self.embedding(token_ids)
        rotation = self.rotary(positions, self.dtype)
        for layer in self.layers:
            x = layer(x, rotation, plan)
        return self.norm(x)

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
