"""What a device can do at its best, and what a model asks of it: the numbers behind every roofline.

Profiles are peak values of the vendors' data sheets (dense bf16, no sparsity); `cpu` is a small
server of two cores. How much of a peak is reached is the latency model's affair, not the profile's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """`flops`: dense bf16 operations a second. `memory_bandwidth`, `network_bandwidth`: bytes a
    second of one device. `step_overhead_s`: what a step costs before any work."""

    name: str
    flops: float
    memory_bandwidth: float
    network_bandwidth: float
    memory_bytes: float
    step_overhead_s: float


_GIB = float(1 << 30)
PROFILES: Mapping[str, HardwareProfile] = {
    profile.name: profile
    for profile in (
        HardwareProfile("cpu", 0.2e12, 10e9, 1e9, 16 * _GIB, 2e-3),
        HardwareProfile("a100", 312e12, 2.04e12, 25e9, 80 * _GIB, 1e-3),
        HardwareProfile("l40s", 362e12, 0.864e12, 25e9, 48 * _GIB, 1e-3),
        HardwareProfile("h100", 989e12, 3.35e12, 50e9, 80 * _GIB, 1e-3),
        HardwareProfile("h200", 989e12, 4.8e12, 50e9, 141 * _GIB, 1e-3),
    )
}


def hardware(name: str) -> HardwareProfile:
    """The profile called `name`. Raises ConfigError that lists what there is."""
    try:
        return PROFILES[name.lower()]
    except KeyError:
        raise ConfigError(
            f"unknown hardware {name!r}; known: {', '.join(sorted(PROFILES))}"
        ) from None


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a dense decoder with grouped-query attention and a gated MLP."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    dtype_bytes: int = 2

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """From a Hugging Face config.json. Raises ConfigError that names the missing key."""
        try:
            heads = int(config["num_attention_heads"])
            hidden = int(config["hidden_size"])
            dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
            return cls(
                num_layers=int(config["num_hidden_layers"]),
                hidden_size=hidden,
                num_heads=heads,
                num_kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                intermediate_size=int(config["intermediate_size"]),
                vocab_size=int(config["vocab_size"]),
                dtype_bytes=4 if dtype.endswith("float32") else 2,
            )
        except KeyError as error:
            raise ConfigError(f"the model's config.json has no {error.args[0]!r}") from None

    @property
    def layer_params(self) -> int:
        """Weights of all layers that a token is multiplied with; norms and biases are left out."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head_params(self) -> int:
        """Weights of the output head, read and multiplied once for each sampled token."""
        return self.hidden_size * self.vocab_size

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype_bytes

    @property
    def attention_flops(self) -> int:
        """Operations of one query token over one KV token, all layers: scores and weighted sum."""
        return 4 * self.num_layers * self.num_heads * self.head_dim
