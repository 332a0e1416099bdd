"""Mistral: Llama with a window in every layer, unless config.json has none."""

from __future__ import annotations

from dataclasses import replace

from workers.models.architecture import LayerConfig, ModelConfig
from workers.models.fields import Fields
from workers.models.parts import alike, gated, head_attention, model, whole_head_rotates, window


def read(fields: Fields) -> ModelConfig:
    fields = fields.with_defaults(num_key_value_heads=8, sliding_window=4096)
    whole_head_rotates(fields)
    attention = replace(head_attention(fields), window=window(fields))
    return model(fields, alike(fields, LayerConfig(attention, gated(fields))))
