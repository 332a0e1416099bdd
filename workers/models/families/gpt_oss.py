"""gpt-oss: every other layer has a window, each head a sink, every feed-forward experts whose
activation is clamped."""

from __future__ import annotations

from dataclasses import replace

from workers.models.architecture import (
    Experts,
    FusedExpertNames,
    LayerConfig,
    ModelConfig,
    Names,
)
from workers.models.fields import Fields
from workers.models.parts import (
    head_attention,
    model,
    sliding_layers,
    whole_head_rotates,
    window,
)


def read(fields: Fields) -> ModelConfig:
    fields = fields.with_defaults(
        head_dim=64, num_key_value_heads=8, sliding_window=128, rope_theta=150_000.0
    )
    whole_head_rotates(fields)
    fields.only("hidden_act", ("silu",), "silu")
    fields.only("swiglu_limit", (7.0,), 7.0)
    fields.only("swiglu_alpha", (1.702,), 1.702)
    bias = fields.flag("attention_bias", True)
    attention = replace(head_attention(fields), qkv_bias=bias, output_bias=bias, sinks=True)
    experts = Experts(
        count=fields.integer("num_local_experts", 128),
        active=fields.integer("num_experts_per_tok", 4),
        width=fields.integer("intermediate_size"),
        activation="clamped_silu",
        score="softmax_of_chosen",
        router_bias=True,
        bias=True,
    )
    layers = [
        LayerConfig(replace(attention, window=window(fields) if slides else None), experts)
        for slides in sliding_layers(fields, lambda layer: layer % 2 == 0)
    ]
    config = model(fields.with_defaults(rms_norm_eps=1e-5), layers)
    return replace(config, names=Names(experts=FusedExpertNames()))
