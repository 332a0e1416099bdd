"""Grouped-query attention: projections, optional norm of queries and keys, rotation, pages."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.attention.backend import AttentionPlan
from workers.layers.linear import Linear
from workers.layers.rotary import Rotation
from workers.layers.weights import Target, Targets, new_parameter
from workers.models.config import ModelConfig


class Attention(nn.Module):
    def __init__(
        self, layer: int, config: ModelConfig, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = width = config.head_dim
        self.qkv = Linear(
            config.hidden_size,
            {"q_proj": self.heads * width, "k_proj": self.kv_heads * width}
            | {"v_proj": self.kv_heads * width},
            bias=config.qkv_bias,
            dtype=dtype,
            device=device,
        )
        self.output = Linear(
            self.heads * width,
            {"o_proj": config.hidden_size},
            bias=config.output_bias,
            dtype=dtype,
            device=device,
        )
        self.norm: QKNorm | None = None
        if config.qk_norm:
            self.norm = QKNorm(config, dtype=dtype, device=device)

    def forward(self, x: Tensor, rotation: Rotation, plan: AttentionPlan) -> Tensor:
        """x: [T, hidden] -> [T, hidden]."""
        heads, kv_heads = self.heads, self.kv_heads
        qkv = self.qkv(x).view(-1, heads + 2 * kv_heads, self.head_dim)
        # Queries and keys are treated alike, so they stay one tensor until attention.
        qk, value = qkv.split((heads + kv_heads, kv_heads), dim=1)
        if self.norm is not None:
            qk = self.norm(qk)
        query, key = rotation.apply(qk).split((heads, kv_heads), dim=1)
        out = plan.attend(self.layer, query, key, value)  # [T, H, D]
        return self.output(out.flatten(1))

    def targets(self, prefix: str) -> Targets:
        targets = self.qkv.targets(prefix) | self.output.targets(prefix)
        return targets | (self.norm.targets(prefix) if self.norm is not None else {})


class QKNorm(nn.Module):
    """Qwen3's RMS norm over each head of queries and keys; one weight for all heads of a kind,
    repeated so that both are normalised in one operation."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        heads = config.num_heads + config.num_kv_heads
        self.weight = new_parameter(heads, config.head_dim, dtype=dtype, device=device)
        self.num_query_heads = config.num_heads
        self.eps = config.rms_norm_eps

    def forward(self, qk: Tensor) -> Tensor:
        """[T, heads + kv_heads, head_dim]."""
        return F.rms_norm(qk, (qk.shape[-1],), None, self.eps) * self.weight

    def targets(self, prefix: str) -> Targets:
        query, key = self.weight.data.tensor_split((self.num_query_heads,))
        shape = (self.weight.shape[1],)
        return {
            f"{prefix}q_norm.weight": Target(query, shape),
            f"{prefix}k_norm.weight": Target(key, shape),
        }
