"""Grouped-query attention: projections, optional norm of queries and keys, rotation, pages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workers.attention.backend import AttentionPlan, Scores
from workers.core.span import Span, share, whole
from workers.layers.build import Build
from workers.layers.linear import Linear, stacked
from workers.layers.rotary import Rotation
from workers.layers.weights import Target, Targets
from workers.models.architecture import HeadAttention, ModelConfig


class Attention(nn.Module):
    """A rank holds neighbouring query heads and the key/value heads that they read, which more
    ranks than those repeat."""

    def __init__(self, layer: int, config: HeadAttention, model: ModelConfig, build: Build) -> None:
        super().__init__()
        self._ranks = ranks = build.ranks.tensor
        heads = share(config.heads, ranks.rank, ranks.size)
        kv_heads = share(config.kv_heads, ranks.rank, ranks.size)
        self.layer = layer
        self.heads, self.kv_heads = heads.size, kv_heads.size
        self.head_dim = width = config.head_dim
        hidden = whole(model.hidden_size)
        queries, keys = heads.of(width), kv_heads.of(width)
        outputs = stacked(model.names.qkv, (queries, keys, keys))
        self.qkv = Linear(hidden, outputs, build, bias=config.qkv_bias)
        output = [(model.names.output, hidden)]
        self.output = Linear(queries, output, build, bias=config.output_bias)
        self.norm = (
            QKNorm(heads.size, kv_heads.size, config, model, build) if config.qk_norm else None
        )
        self.sinks = Sinks(heads, build) if config.sinks else None
        self._scores = Scores(
            scale=width**-0.5 if config.scale is None else config.scale,
            window=config.window,
            sinks=None if self.sinks is None else self.sinks.weight,
        )
        self._eps = model.rms_norm_eps
        self._kernels = build.kernels

    def forward(
        self, x: Tensor, rotation: Rotation, plan: AttentionPlan, rows: Tensor | None
    ) -> Tensor:
        """x: [T, hidden] -> [T, hidden], or [n, hidden] of these rows alone."""
        heads, kv_heads = self.heads, self.kv_heads
        qkv = self.qkv(x).view(-1, heads + 2 * kv_heads, self.head_dim)
        # Queries and keys are treated alike, so they stay one tensor until attention.
        qk, value = qkv.split((heads + kv_heads, kv_heads), dim=1)
        weight = None if self.norm is None else self.norm.weight
        qk = self._kernels.rotate(qk, rotation.cos, rotation.sin, weight, self._eps)
        query, key = qk.split((heads, kv_heads), dim=1)
        out = plan.attend(self.layer, query, key, value, self._scores)  # [T, H, D]
        out = out.flatten(1)
        return self._ranks.all_reduce(self.output(out if rows is None else out[rows]))

    def targets(self, prefix: str) -> Targets:
        targets = self.qkv.targets(prefix) + self.output.targets(prefix)
        for extra in (self.norm, self.sinks):
            targets += [] if extra is None else extra.targets(prefix)
        return targets


class QKNorm(nn.Module):
    """Weights of the RMS norm over each head of queries and keys: one for all heads of a kind,
    repeated so that both are normalised in the operation that rotates them."""

    def __init__(
        self, heads: int, kv_heads: int, config: HeadAttention, model: ModelConfig, build: Build
    ) -> None:
        super().__init__()
        self.weight = build.parameter(heads + kv_heads, config.head_dim, dtype=torch.float32)
        self.num_query_heads = heads
        self._unit_offset = model.unit_offset

    def pack(self) -> None:
        if self._unit_offset:
            self.weight.data += 1

    def targets(self, prefix: str) -> Targets:
        query, key = self.weight.data.tensor_split((self.num_query_heads,))
        shape = (self.weight.shape[1],)
        return [
            Target(f"{prefix}q_norm.weight", query, shape),
            Target(f"{prefix}k_norm.weight", key, shape),
        ]


class Sinks(nn.Module):
    """A logit for each head that takes its part of the softmax (gpt-oss)."""

    def __init__(self, heads: Span, build: Build) -> None:
        super().__init__()
        self.heads = heads
        self.weight = build.parameter(heads.size)

    def targets(self, prefix: str) -> Targets:
        part = (self.heads.part,)
        return [Target(f"{prefix}sinks", self.weight.data, (self.heads.total,), part)]
