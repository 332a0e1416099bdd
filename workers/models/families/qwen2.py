"""Qwen2 and Qwen2.5: biases on queries, keys and values; the upper layers may have a window."""

from __future__ import annotations

from dataclasses import replace

from workers.models.architecture import HeadAttention, LayerConfig, ModelConfig
from workers.models.fields import Fields
from workers.models.parts import (
    gated,
    head_attention,
    model,
    sliding_layers,
    whole_head_rotates,
)


def read(fields: Fields) -> ModelConfig:
    whole_head_rotates(fields)
    attention = replace(head_attention(fields), qkv_bias=True)
    return model(fields, [LayerConfig(a, gated(fields)) for a in windowed(fields, attention)])


def windowed(fields: Fields, attention: HeadAttention) -> list[HeadAttention]:
    """The attention of each layer."""
    window = None
    if fields.flag("use_sliding_window", False):
        window = fields.integer("sliding_window", 4096)
    lowest = fields.count("max_window_layers", 28)
    sliding = sliding_layers(fields, lambda layer: window is not None and layer >= lowest)
    return [replace(attention, window=window if slides else None) for slides in sliding]
