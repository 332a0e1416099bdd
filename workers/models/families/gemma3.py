"""Gemma 3, text: most layers have a window and a rope of their own, outputs are normalised too,
norm weights are distances from 1, embeddings are scaled. Of models that see, the part that speaks.
"""

from __future__ import annotations

from dataclasses import replace

from workers.models.architecture import LayerConfig, ModelConfig, Names, RopeConfig
from workers.models.fields import Fields
from workers.models.parts import gated, head_attention, model, sliding_layers, window
from workers.models.rope import rope_of

NAMES = Names(
    feed_forward_norm="pre_feedforward_layernorm",
    attention_post_norm="post_attention_layernorm",
    feed_forward_post_norm="post_feedforward_layernorm",
)


def read(fields: Fields) -> ModelConfig:
    # Published files leave out what is the default of the class.
    fields = fields.with_defaults(
        vocab_size=262_208,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=131_072,
        query_pre_attn_scalar=256,
        sliding_window=4096,
        tie_word_embeddings=True,
        hidden_activation="gelu_pytorch_tanh",
    )
    fields.only("attn_logit_softcapping", (None,))
    fields.only("final_logit_softcapping", (None,))
    fields.only("use_bidirectional_attention", (None, False))
    bias, full, local = fields.flag("attention_bias", False), *ropes(fields)
    attention = replace(
        head_attention(fields, rope=full),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        scale=fields.number("query_pre_attn_scalar") ** -0.5,
    )
    sliding = replace(attention, rope=local, window=window(fields))
    feed_forward = gated(fields, activation="hidden_activation")
    pattern = fields.integer("sliding_window_pattern", 6)  # every sixth layer sees all
    layers = [
        LayerConfig(sliding if slides else attention, feed_forward)
        for slides in sliding_layers(fields, lambda layer: (layer + 1) % pattern > 0)
    ]
    return replace(
        model(fields, layers),
        # What its ropes were stretched to, not what they are to be stretched from.
        context_length=fields.integer("max_position_embeddings"),
        embedding_scale=fields.integer("hidden_size") ** 0.5,
        post_norms=True,
        unit_offset=True,
        names=NAMES,
    )


def read_seeing(fields: Fields) -> ModelConfig:
    """Text alone: images are refused at the door, and what is for them is not loaded."""
    text = fields.object("text_config")
    if text is None:
        raise fields.fail("text_config must be an object")
    names = replace(
        NAMES,
        model="language_model.model.",
        head="language_model.lm_head",
        ignored=("vision_tower.", "multi_modal_projector."),
    )
    tied = fields.flag("tie_word_embeddings", True)  # whatever the inner one says
    return replace(read(text.with_defaults(**fields.values)), tied_embeddings=tied, names=names)


def ropes(fields: Fields) -> tuple[RopeConfig, RopeConfig]:
    """Of layers that see all, and of those with a window."""
    new = fields.object("rope_parameters")
    nothing = Fields(fields.path, {})
    if new is not None:
        full, local = new.object("full_attention"), new.object("sliding_attention")
        return (
            rope_of(full or nothing, fields, 1_000_000.0),
            rope_of(local or nothing, fields, 10_000.0),
        )
    theta, near = fields.number("rope_theta", 1e6), fields.number("rope_local_base_freq", 1e4)
    full = fields.object("rope_scaling")
    return rope_of(full or nothing, fields, theta), rope_of(nothing, fields, near)
