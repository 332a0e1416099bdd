"""The parts most families share, as config.json names them. A family says what differs, mostly
by dataclasses.replace."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

from workers.models.architecture import (
    Activation,
    DenseFeedForward,
    DTypeName,
    HeadAttention,
    LayerConfig,
    ModelConfig,
    RopeConfig,
)
from workers.models.fields import Fields
from workers.models.rope import context_length, read_rope

DTYPES: tuple[DTypeName, ...] = get_args(DTypeName)
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def model(fields: Fields, layers: Iterable[LayerConfig]) -> ModelConfig:
    """All that is not in a layer."""
    stack = tuple(layers)
    return ModelConfig(
        architecture="",  # load_config knows
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        layers=stack,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        context_length=context_length(fields, stack[0].attention.rope),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        dtype=_dtype(fields),
        eos_token_ids=(),
    )


def alike(fields: Fields, layer: LayerConfig) -> tuple[LayerConfig, ...]:
    """The layers of a model where they do not differ."""
    return (layer,) * fields.integer("num_hidden_layers")


def head_attention(
    fields: Fields, *, rope: RopeConfig | None = None, head_dim: int | None = None
) -> HeadAttention:
    """Without biases, norms or a window. `head_dim`: where config.json has none; None: the hidden
    size, divided among the heads."""
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.fail(f"{heads} attention heads cannot share {kv_heads} key/value heads")
    width = fields.integer("head_dim", head_dim or fields.integer("hidden_size") // heads)
    if width % 2:
        raise fields.fail(f"head_dim {width} is odd: rotary embedding needs pairs")
    return HeadAttention(heads, kv_heads, width, read_rope(fields) if rope is None else rope)


def whole_head_rotates(fields: Fields) -> None:
    """Fails where config.json says that less of a head rotates."""
    for place in (fields, fields.object("rope_parameters"), fields.object("rope_scaling")):
        if place is not None:
            place.only("partial_rotary_factor", (None, 1.0))


def gated(fields: Fields, *, activation: str = "hidden_act") -> DenseFeedForward:
    """`activation`: the field's name."""
    name = fields.only(activation, ACTIVATIONS, "silu")
    return DenseFeedForward(fields.integer("intermediate_size"), ACTIVATIONS[name])


def window(fields: Fields) -> int | None:
    """sliding_window; None: all that came before is seen."""
    absent = fields.values.get("sliding_window") is None
    return None if absent else fields.integer("sliding_window")


def sliding_layers(fields: Fields, by_default: Callable[[int], bool]) -> tuple[bool, ...]:
    """Which layers have a window: layer_types, or what the family says of a layer's index."""
    count = fields.integer("num_hidden_layers")
    kinds = fields.values.get("layer_types")
    if kinds is None:
        return tuple(map(by_default, range(count)))
    if not isinstance(kinds, list) or len(kinds) != count:
        raise fields.fail(f"layer_types must be a list of {count} names, not {kinds!r}")
    known = {"full_attention": False, "sliding_attention": True}
    for kind in kinds:
        if kind not in known:
            raise fields.fail(f"layer_types: {kind!r} is not supported, only {', '.join(known)}")
    return tuple(known[kind] for kind in kinds)


def _dtype(fields: Fields) -> DTypeName | None:
    name = fields.values.get("dtype") or fields.values.get("torch_dtype")
    if name is None:
        return None
    for known in DTYPES:
        if name == known:
            return known
    raise fields.fail(f"dtype {name!r} is not supported; supported are {', '.join(DTYPES)}")
