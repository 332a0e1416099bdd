"""config.json as the decoder needs it. What we would compute wrongly is refused by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workers.core.errors import CheckpointError
from workers.models.registry import FAMILIES, Bias, Family

DTypeName = Literal["bfloat16", "float32", "float16"]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]
DTYPES: tuple[DTypeName, ...] = ("bfloat16", "float32", "float16")
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Only `theta` counts for every kind; the rest belongs to linear, llama3 and yarn."""

    kind: RopeKind = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    context_length: int
    rope: RopeConfig
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    dtype: DTypeName | None  # None: config.json does not say, the weights do
    eos_token_ids: tuple[int, ...]


class _Fields:
    """Typed reading of a JSON object; a complaint names the file and the field."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    def fail(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {message}")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise self.fail(f"{name} must be a positive integer, not {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.fail(f"{name} must be a positive number, not {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not bool:
            raise self.fail(f"{name} must be true or false, not {value!r}")
        return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the checkpoint, or a CheckpointError that names it."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def load_config(directory: Path) -> ModelConfig:
    """Read config.json and, where there is one, generation_config.json (more EOS ids)."""
    path = directory / "config.json"
    fields = _Fields(path, read_json(path))
    architecture, family = _family(fields)
    _refuse_what_is_not_done(fields)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.fail(f"{heads} attention heads cannot share {kv_heads} key/value heads")
    head_dim = fields.integer("head_dim", family.head_dim or hidden // heads)
    if head_dim % 2:
        raise fields.fail(f"head_dim {head_dim} is odd: rotary embedding needs pairs")
    rope = _rope(fields)
    attention_bias = fields.flag("attention_bias", False)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        context_length=_context_length(fields, rope),
        rope=rope,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=_bias(family.qkv_bias, attention_bias),
        output_bias=_bias(family.output_bias, attention_bias),
        mlp_bias=_bias(family.mlp_bias, fields.flag("mlp_bias", False)),
        qk_norm=family.qk_norm,
        dtype=_dtype(fields),
        eos_token_ids=_eos_token_ids(fields, directory / "generation_config.json"),
    )


def _family(fields: _Fields) -> tuple[str, Family]:
    names = fields.values.get("architectures")
    names = [str(name) for name in names] if isinstance(names, list) else []
    for name in names:
        if name in FAMILIES:
            return name, FAMILIES[name]
    found = f"architecture {', '.join(names)} is not supported" if names else "no architectures"
    raise fields.fail(f"{found}; supported are {', '.join(FAMILIES)}")


def _refuse_what_is_not_done(fields: _Fields) -> None:
    values = fields.values
    if values.get("quantization_config") is not None:
        raise fields.fail("quantization_config: quantised checkpoints are not supported")
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.fail(f"hidden_act {values['hidden_act']!r} is not supported, only 'silu'")
    layer_types = set(values.get("layer_types") or ())
    if fields.flag("use_sliding_window", False) or layer_types - {"full_attention"}:
        raise fields.fail("sliding window attention is not supported")
    if values.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise fields.fail("partial_rotary_factor is not supported")


def _bias(rule: Bias, configured: bool) -> bool:
    return rule == "always" or (rule == "config" and configured)


def _rope(fields: _Fields) -> RopeConfig:
    """From rope_parameters (new), or rope_scaling and rope_theta (old)."""
    values = fields.values.get("rope_parameters") or fields.values.get("rope_scaling") or {}
    if not isinstance(values, dict):
        raise fields.fail("rope_scaling must be an object")
    rope = _Fields(fields.path, values)
    kind = values.get("rope_type") or values.get("type") or "default"
    theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    if values.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise fields.fail("partial_rotary_factor is not supported")
    match kind:
        case "default" | "dynamic":
            return RopeConfig(kind, theta)
        case "linear":
            return RopeConfig(kind, theta, factor=rope.number("factor"))
        case "llama3" | "yarn":
            return _stretched(kind, theta, rope, fields)
        case _:
            raise fields.fail(
                f"rope type {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}"
            )


def _stretched(
    kind: Literal["llama3", "yarn"], theta: float, rope: _Fields, fields: _Fields
) -> RopeConfig:
    longest = fields.integer("max_position_embeddings")
    outside = fields.values.get("original_max_position_embeddings")
    original = rope.integer("original_max_position_embeddings", outside or longest)
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if high <= low:
            raise fields.fail("high_freq_factor must be greater than low_freq_factor")
        return RopeConfig(
            kind, theta, rope.number("factor"), original, low_freq_factor=low, high_freq_factor=high
        )
    factor = rope.values.get("attention_factor")
    return RopeConfig(
        kind,
        theta,
        rope.number("factor", longest / original),
        original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        attention_factor=None if factor is None else rope.number("attention_factor"),
        mscale=rope.number("mscale") if rope.values.get("mscale") else 0.0,
        mscale_all_dim=rope.number("mscale_all_dim") if rope.values.get("mscale_all_dim") else 0.0,
        truncate=rope.flag("truncate", True),
    )


def _context_length(fields: _Fields, rope: RopeConfig) -> int:
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


def _dtype(fields: _Fields) -> DTypeName | None:
    name = fields.values.get("dtype") or fields.values.get("torch_dtype")
    if name is None:
        return None
    for known in DTYPES:
        if name == known:
            return known
    raise fields.fail(f"dtype {name!r} is not supported; supported are {', '.join(DTYPES)}")


def _eos_token_ids(fields: _Fields, generation: Path) -> tuple[int, ...]:
    """Sorted union of both files' eos_token_id (an id or a list)."""
    found: set[int] = set()
    files = [fields]
    if generation.exists():
        files.append(_Fields(generation, read_json(generation)))
    for file in files:
        value = file.values.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(i) is not int for i in ids):
            raise file.fail(f"eos_token_id must be an integer or a list of them, not {value!r}")
        found.update(i for i in ids if i >= 0)
    return tuple(sorted(found))
