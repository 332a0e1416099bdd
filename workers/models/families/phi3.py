"""Phi-3, 3.5 and 4: fused projections, longrope, part of a head rotates, perhaps a window."""

from __future__ import annotations

from dataclasses import replace

from workers.models.architecture import LayerConfig, ModelConfig, Names, RopeConfig
from workers.models.fields import Fields
from workers.models.parts import alike, gated, head_attention, model, window
from workers.models.rope import rope_of

NAMES = Names(qkv=("qkv_proj",) * 3, gate_up=("gate_up_proj",) * 2)


def read(fields: Fields) -> ModelConfig:
    fields = fields.with_defaults(original_max_position_embeddings=4096, rms_norm_eps=1e-5)
    fields.only("attention_bias", (None, False))
    own = fields.object("rope_scaling") or fields.object("rope_parameters")
    own = own or Fields(fields.path, {})
    kind = own.values.get("rope_type") or own.values.get("type")
    if kind in ("su", "yarn"):  # what longrope was called at first
        own = replace(own, values={**own.values, "rope_type": "longrope"})
    rope = rope_of(own, fields, fields.number("rope_theta", 10_000.0))
    attention = head_attention(fields, rope=rope)
    rotated = rotated_part(attention.head_dim, own, fields)
    check_factors(rope, rotated or attention.head_dim, own)
    attention = replace(attention, rotated=rotated, window=window(fields))
    stack = alike(fields, LayerConfig(attention, gated(fields)))
    return replace(model(fields, stack), names=NAMES)


def rotated_part(head_dim: int, own: Fields, fields: Fields) -> int | None:
    outside = fields.number("partial_rotary_factor", 1.0)
    rotated = int(head_dim * own.number("partial_rotary_factor", outside))
    if rotated % 2 or not 0 < rotated <= head_dim:
        raise fields.fail(f"partial_rotary_factor: {rotated} of {head_dim} dimensions are no pairs")
    return None if rotated == head_dim else rotated


def check_factors(rope: RopeConfig, rotated: int, own: Fields) -> None:
    for name, factors in (("long_factor", rope.long_factors), ("short_factor", rope.short_factors)):
        if rope.kind == "longrope" and len(factors) != rotated // 2:
            raise own.fail(f"{name} must have {rotated // 2} numbers, not {len(factors)}")
