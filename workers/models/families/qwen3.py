"""Qwen3: queries and keys are normalised, heads are 128 wide unless config.json says."""

from __future__ import annotations

from dataclasses import replace

from workers.models.architecture import HeadAttention, LayerConfig, ModelConfig
from workers.models.families.qwen2 import windowed
from workers.models.fields import Fields
from workers.models.parts import gated, head_attention, model, whole_head_rotates


def read(fields: Fields) -> ModelConfig:
    return model(fields, [LayerConfig(a, gated(fields)) for a in attentions(fields)])


def attentions(fields: Fields) -> list[HeadAttention]:
    """The attention of each layer."""
    whole_head_rotates(fields)
    bias = fields.flag("attention_bias", False)
    heads = head_attention(fields, head_dim=128)
    return windowed(fields, replace(heads, qkv_bias=bias, output_bias=bias, qk_norm=True))
