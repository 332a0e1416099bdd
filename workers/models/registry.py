"""Architecture names of config.json -> who reads it. A family is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from workers.models.architecture import ModelConfig
from workers.models.families import (
    deepseek,
    gemma3,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)
from workers.models.fields import Fields

Family: TypeAlias = Callable[[Fields], ModelConfig]

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "LlamaForCausalLM": llama.read,
        "Qwen2ForCausalLM": qwen2.read,
        "Qwen3ForCausalLM": qwen3.read,
        "MistralForCausalLM": mistral.read,
        "Gemma3ForCausalLM": gemma3.read,
        "Gemma3ForConditionalGeneration": gemma3.read_seeing,
        "Phi3ForCausalLM": phi3.read,
        "MixtralForCausalLM": mixtral.read,
        "Qwen3MoeForCausalLM": qwen3_moe.read,
        "DeepseekV2ForCausalLM": deepseek.read_v2,
        "DeepseekV3ForCausalLM": deepseek.read_v3,
        "GptOssForCausalLM": gpt_oss.read,
    }
)
