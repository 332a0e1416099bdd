"""Grouped-query attention: projections, optional norm of queries and keys, rotation, pages."""

from __future__ import annotations

from torch import Tensor, nn

from workers.attention.backend import AttentionPlan
from workers.layers.build import Build
from workers.layers.linear import Linear
from workers.layers.rotary import Rotation
from workers.layers.weights import Target, Targets
from workers.models.config import ModelConfig


class Attention(nn.Module):
    def __init__(self, layer: int, config: ModelConfig, build: Build) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = width = config.head_dim
        queries, keys = self.heads * width, self.kv_heads * width
        stacked = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv = Linear(config.hidden_size, stacked, build, bias=config.qkv_bias)
        output = {"o_proj": config.hidden_size}
        self.output = Linear(queries, output, build, bias=config.output_bias)
        self.norm = QKNorm(config, build) if config.qk_norm else None
        self._eps = config.rms_norm_eps
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
        out = plan.attend(self.layer, query, key, value)  # [T, H, D]
        out = out.flatten(1)
        return self.output(out if rows is None else out[rows])

    def targets(self, prefix: str) -> Targets:
        targets = self.qkv.targets(prefix) | self.output.targets(prefix)
        return targets | (self.norm.targets(prefix) if self.norm is not None else {})


class QKNorm(nn.Module):
    """Weights of Qwen3's RMS norm over each head of queries and keys: one for all heads of a kind,
    repeated so that both are normalised in the operation that rotates them."""

    def __init__(self, config: ModelConfig, build: Build) -> None:
        super().__init__()
        heads = config.num_heads + config.num_kv_heads
        self.weight = build.parameter(heads, config.head_dim)
        self.num_query_heads = config.num_heads

    def targets(self, prefix: str) -> Targets:
        query, key = self.weight.data.tensor_split((self.num_query_heads,))
        shape = (self.weight.shape[1],)
        return {
            f"{prefix}q_norm.weight": Target(query, shape),
            f"{prefix}k_norm.weight": Target(key, shape),
        }
