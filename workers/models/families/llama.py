"""Llama 2 and 3.x: the decoder as it is."""

from __future__ import annotations

from dataclasses import replace

from workers.models.architecture import LayerConfig, ModelConfig
from workers.models.fields import Fields
from workers.models.parts import alike, gated, head_attention, model, whole_head_rotates


def read(fields: Fields) -> ModelConfig:
    whole_head_rotates(fields)
    bias = fields.flag("attention_bias", False)
    attention = replace(head_attention(fields), qkv_bias=bias, output_bias=bias)
    feed_forward = replace(gated(fields), bias=fields.flag("mlp_bias", False))
    return model(fields, alike(fields, LayerConfig(attention, feed_forward)))
