"""Mixtral: Mistral's attention, every feed-forward a mixture of experts."""

from __future__ import annotations

from dataclasses import replace

from workers.models.architecture import ExpertNames, Experts, LayerConfig, ModelConfig, Names
from workers.models.fields import Fields
from workers.models.parts import alike, gated, head_attention, model, whole_head_rotates, window

NAMES = Names(
    feed_forward="block_sparse_moe.",
    experts=ExpertNames(
        router="gate",
        gate="experts.{e}.w1",
        up="experts.{e}.w3",
        down="experts.{e}.w2",
    ),
)


def read(fields: Fields) -> ModelConfig:
    fields = fields.with_defaults(num_key_value_heads=8, rms_norm_eps=1e-5)
    whole_head_rotates(fields)
    attention = replace(head_attention(fields), window=window(fields))
    own = gated(fields)
    experts = Experts(
        count=fields.integer("num_local_experts", 8),
        active=fields.integer("num_experts_per_tok", 2),
        width=own.width,
        activation=own.activation,
    )
    return replace(model(fields, alike(fields, LayerConfig(attention, experts))), names=NAMES)
