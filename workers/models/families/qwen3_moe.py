"""Qwen3 with mixtures of experts in the layers that config.json names."""

from __future__ import annotations

from dataclasses import replace

from workers.models.architecture import Experts, LayerConfig, ModelConfig
from workers.models.fields import Fields
from workers.models.parts import gated, head_attention, model, whole_head_rotates, window


def read(fields: Fields) -> ModelConfig:
    fields = fields.with_defaults(num_key_value_heads=4, sliding_window=4096)
    whole_head_rotates(fields)
    bias = fields.flag("attention_bias", False)
    attention = replace(
        head_attention(fields),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        window=window(fields) if fields.flag("use_sliding_window", False) else None,
    )
    dense = gated(fields)
    experts = Experts(
        # What transformers 5 writes, and what published files have.
        count=fields.integer("num_local_experts", fields.values.get("num_experts", 128)),
        active=fields.integer("num_experts_per_tok", 8),
        width=fields.integer("moe_intermediate_size", 768),
        activation=dense.activation,
        normalise=fields.flag("norm_topk_prob", False),
    )
    step, plain = fields.integer("decoder_sparse_step", 1), fields.values.get("mlp_only_layers")
    layers = [
        LayerConfig(attention, dense if layer in (plain or ()) or (layer + 1) % step else experts)
        for layer in range(fields.integer("num_hidden_layers"))
    ]
    return model(fields, layers)
