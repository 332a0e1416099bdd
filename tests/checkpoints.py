"""Small random checkpoints in Hugging Face layout, and Hugging Face's own answers to them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

BOS, EOS, USER, ASSISTANT = "<s>", "</s>", "<user>", "<assistant>"
SPECIALS = (BOS, EOS, USER, ASSISTANT)
VOCAB_SIZE = 256 + len(SPECIALS)
FAMILIES: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "gemma3": Gemma3TextConfig,
    "phi3": Phi3Config,
    "mixtral": MixtralConfig,
    "qwen3_moe": Qwen3MoeConfig,
    "deepseek_v2": DeepseekV2Config,
    "deepseek_v3": DeepseekV3Config,
    "gpt_oss": GptOssConfig,
}
# What all have in common.
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
LATENT = {
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "head_dim": 8,
}
# What makes each small beside that.
SMALL: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 24},
    "gemma3": {
        "num_hidden_layers": 4,
        "sliding_window": 24,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "pad_token_id": 0,
    },
    "phi3": {"pad_token_id": 0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "deepseek_v2": LATENT
    | {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_shared_experts": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
    },
    "deepseek_v3": LATENT
    | {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_shared_experts": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
    },
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 64,
        },
    },
}
# Two tokens whose logits are nearer than this may swap when sums are taken in another order.
MARGIN = 1e-3
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_checkpoint(
    directory: Path, family: str = "llama", *, seed: int = 0, **fields: Any
) -> Path:
    """Write a checkpoint with random float32 weights and return its directory.

    `fields` go into the config; a wide initializer_range spreads the logits, so that a margin of
    1e-3 between the best two is the rule.
    """
    config = FAMILIES[family](**SHAPE | SMALL.get(family, {}) | fields)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            # Biases start at 0 and norms at 1: nothing would show if they were left out.
            if weight.dim() == 1 or name.endswith("_bias"):
                weight.add_(torch.randn_like(weight), alpha=0.2)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def write_tokenizer(directory: Path) -> None:
    """A byte-level tokenizer without merges: token b is byte b, then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "add_bos_token": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


@dataclass(frozen=True)
class Example:
    """A prompt, and the tokens that transformers' greedy generate() adds to it."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]


class Oracle:
    """Hugging Face transformers on one checkpoint, float32."""

    def __init__(self, directory: Path) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32
        ).eval()

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """[len(tokens), vocab]"""
        with torch.no_grad():
            return self.model(torch.tensor([tokens])).logits[0]

    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], float]:
        """The tokens after `prompt` and the smallest margin met on the way."""
        tokens = torch.tensor([prompt])
        out = self.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        best = torch.stack(out.logits)[:, 0].topk(2).values  # [new, 2]
        margin = float((best[:, 0] - best[:, 1]).min())
        return out.sequences[0, len(prompt) :].tolist(), margin

    def example(
        self, length: int, new_tokens: int, *, seed: int = 0, prefix: tuple[int, ...] = ()
    ) -> Example:
        """A random prompt of `length` tokens that begins with `prefix`, drawn again until every
        step of its greedy continuation has a margin that reduction order cannot turn."""
        draw = random.Random(f"{seed} {length}")
        for _ in range(50):
            prompt = [*prefix, *(draw.randrange(256) for _ in range(length - len(prefix)))]
            output, margin = self.generate(prompt, new_tokens)
            if margin > MARGIN:
                return Example(tuple(prompt), tuple(output))
        raise AssertionError(f"no prompt of {length} tokens has a margin of {MARGIN}")
