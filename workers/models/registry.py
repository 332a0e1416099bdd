"""Architecture names of config.json -> in what a family differs from the one decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

# "config": config.json's own field decides (attention_bias, mlp_bias).
Bias = Literal["never", "always", "config"]


@dataclass(frozen=True, slots=True)
class Family:
    qkv_bias: Bias = "never"
    output_bias: Bias = "never"
    mlp_bias: Bias = "never"
    qk_norm: bool = False
    head_dim: int | None = None  # where config.json has none; None = hidden_size / heads


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "LlamaForCausalLM": Family(qkv_bias="config", output_bias="config", mlp_bias="config"),
        "Qwen2ForCausalLM": Family(qkv_bias="always"),
        "Qwen3ForCausalLM": Family(
            qkv_bias="config", output_bias="config", qk_norm=True, head_dim=128
        ),
    }
)
