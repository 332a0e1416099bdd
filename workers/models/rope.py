"""Rotary embedding in config.json: rope_parameters (new), or rope_scaling and rope_theta (old)."""

from __future__ import annotations

from typing import get_args

from workers.models.architecture import RopeConfig, RopeKind
from workers.models.fields import Fields

ROPE_KINDS: tuple[RopeKind, ...] = get_args(RopeKind)


def read_rope(fields: Fields, theta: float = 10_000.0) -> RopeConfig:
    """`theta`: the family's, where config.json has none."""
    own = fields.object("rope_parameters") or fields.object("rope_scaling")
    return rope_of(own or Fields(fields.path, {}), fields, fields.number("rope_theta", theta))


def rope_of(own: Fields, fields: Fields, theta: float) -> RopeConfig:
    """`own`: the rope's object; `fields`: the model's, for context lengths."""
    kind = own.values.get("rope_type") or own.values.get("type") or "default"
    theta = own.number("rope_theta", theta)
    match kind:
        case "default" | "dynamic":
            return RopeConfig(kind, theta)
        case "linear":
            return RopeConfig(kind, theta, factor=own.number("factor"))
        case "llama3":
            low, high = own.number("low_freq_factor"), own.number("high_freq_factor")
            if high <= low:
                raise own.fail("high_freq_factor must be greater than low_freq_factor")
            original, factor = _original(own, fields), own.number("factor")
            return RopeConfig(
                kind, theta, factor, original, low_freq_factor=low, high_freq_factor=high
            )
        case "yarn":
            return _yarn(theta, own, fields)
        case "longrope":
            return _longrope(theta, own, fields)
        case _:
            raise fields.fail(
                f"rope type {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}"
            )


def context_length(fields: Fields, rope: RopeConfig) -> int:
    """Positions that the rotation reaches. `linear` and `yarn` multiply; llama3's
    max_position_embeddings is the stretched length already. `dynamic` ends where its stretching
    would begin: beyond, a key would depend on the final length, and no prefix could be shared."""
    longest = fields.integer("max_position_embeddings")
    match rope.kind:
        case "linear":
            return int(longest * rope.factor)
        case "yarn":
            return max(longest, int(rope.original_context * rope.factor))
        case _:
            return longest


def _original(own: Fields, fields: Fields) -> int:
    longest = fields.integer("max_position_embeddings")
    # Phi-3 has it outside, and there it counts.
    outside = fields.values.get("original_max_position_embeddings")
    if outside is not None:
        return fields.integer("original_max_position_embeddings")
    return own.integer("original_max_position_embeddings", longest)


def _yarn(theta: float, own: Fields, fields: Fields) -> RopeConfig:
    original = _original(own, fields)
    return RopeConfig(
        "yarn",
        theta,
        own.number("factor", fields.integer("max_position_embeddings") / original),
        original,
        beta_fast=own.number("beta_fast", 32.0),
        beta_slow=own.number("beta_slow", 1.0),
        attention_factor=_attention_factor(own),
        mscale=own.number("mscale") if own.values.get("mscale") else 0.0,
        mscale_all_dim=own.number("mscale_all_dim") if own.values.get("mscale_all_dim") else 0.0,
        truncate=own.flag("truncate", True),
    )


def _longrope(theta: float, own: Fields, fields: Fields) -> RopeConfig:
    original = _original(own, fields)
    for name in ("short_mscale", "long_mscale"):
        own.only(name, (None,))
    return RopeConfig(
        "longrope",
        theta,
        own.number("factor", fields.integer("max_position_embeddings") / original),
        original,
        attention_factor=_attention_factor(own),
        long_factors=own.numbers("long_factor"),
        short_factors=own.numbers("short_factor"),
    )


def _attention_factor(own: Fields) -> float | None:
    given = own.values.get("attention_factor") is not None
    return own.number("attention_factor") if given else None
