"""DeepSeek-V2 and V3 (R1 too): latent attention, and after some dense layers experts of which some
are shared. V3 scores experts by sigmoid and corrects the choice by a learnt bias."""

from __future__ import annotations

import math
from dataclasses import replace

from workers.models.architecture import Experts, LatentAttention, LayerConfig, ModelConfig
from workers.models.fields import Fields
from workers.models.parts import gated, model
from workers.models.rope import read_rope


def read_v2(fields: Fields) -> ModelConfig:
    fields.only("scoring_func", ("softmax",), "softmax")
    fields.only("norm_topk_prob", (None, False))
    method = fields.only("topk_method", ("greedy", "group_limited_greedy"), "greedy")
    chosen = experts(fields, shared=2)
    if method == "group_limited_greedy":
        chosen = grouped(chosen, fields)
    return stack(fields, latent_attention(fields), chosen, dense=0)


def read_v3(fields: Fields) -> ModelConfig:
    fields.only("scoring_func", ("sigmoid",), "sigmoid")
    fields.only("topk_method", ("noaux_tc",), "noaux_tc")
    fields = fields.with_defaults(n_group=8, topk_group=4, routed_scaling_factor=2.5)
    chosen = replace(
        grouped(experts(fields, shared=1), fields),
        score="sigmoid",
        normalise=fields.flag("norm_topk_prob", True),
        group_best=2,
        correction=True,
    )
    interleaved = fields.flag("rope_interleave", True)
    attention = replace(latent_attention(fields), interleaved=interleaved)
    return stack(fields, attention, chosen, dense=3)


def latent_attention(fields: Fields) -> LatentAttention:
    rope = read_rope(fields)
    if rope.kind == "longrope":
        raise fields.fail("rope type 'longrope' is not supported in this family")
    compressed = fields.values.get("q_lora_rank", 1536) is not None
    nope, turned = fields.integer("qk_nope_head_dim", 128), fields.integer("qk_rope_head_dim", 64)
    scale = (nope + turned) ** -0.5
    if rope.kind != "default" and rope.mscale_all_dim and rope.factor > 1:
        scale *= (0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1) ** 2
    return LatentAttention(
        heads=fields.integer("num_attention_heads"),
        query_rank=fields.integer("q_lora_rank", 1536) if compressed else None,
        kv_rank=fields.integer("kv_lora_rank", 512),
        nope_dim=nope,
        rope_dim=turned,
        value_dim=fields.integer("v_head_dim", 128),
        rope=rope,
        bias=fields.flag("attention_bias", False),
        scale=scale,
    )


def experts(fields: Fields, *, shared: int) -> Experts:
    """`shared`: how many are, where config.json does not say."""
    fields.only("moe_layer_freq", (1,), 1)
    width = fields.integer("moe_intermediate_size")
    return Experts(
        count=fields.integer("n_routed_experts"),
        active=fields.integer("num_experts_per_tok"),
        width=width,
        activation=gated(fields).activation,
        normalise=False,
        scale=fields.number("routed_scaling_factor", 1.0),
        shared_width=width * fields.count("n_shared_experts", shared),
    )


def grouped(chosen: Experts, fields: Fields) -> Experts:
    groups, active = fields.integer("n_group"), fields.integer("topk_group")
    if chosen.count % groups or active > groups:
        raise fields.fail(f"n_group: {active} of {groups} groups of {chosen.count} experts")
    return replace(chosen, groups=groups, active_groups=active)


def stack(
    fields: Fields, attention: LatentAttention, chosen: Experts, *, dense: int
) -> ModelConfig:
    """`dense`: layers without experts, where config.json does not say."""
    lowest = fields.count("first_k_dense_replace", dense)
    plain = replace(gated(fields), bias=fields.flag("mlp_bias", False))
    layers = [
        LayerConfig(attention, plain if layer < lowest else chosen)
        for layer in range(fields.integer("num_hidden_layers"))
    ]
    return model(fields, layers)
