"""config.json: what is read, what follows from it, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from workers.core.errors import CheckpointError
from workers.layers.rotary import RotaryEmbedding, inverse_frequencies
from workers.models.config import ModelConfig, RopeConfig, load_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


def write(
    directory: Path, config: dict[str, Any], generation: dict[str, Any] | None = None
) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def read(directory: Path, **fields: Any) -> ModelConfig:
    return load_config(write(directory, LLAMA | fields))


def test_defaults_are_hugging_faces(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert (config.num_kv_heads, config.head_dim, config.context_length) == (4, 16, 512)
    assert config.rope == RopeConfig("default", 10_000.0)
    assert (config.rms_norm_eps, config.dtype, config.tied_embeddings) == (1e-6, None, False)
    assert not (config.qkv_bias or config.output_bias or config.mlp_bias or config.qk_norm)
    assert load_config(write(tmp_path, QWEN3)).head_dim == 128


def test_families_differ_in_biases_and_norms(tmp_path: Path) -> None:
    biased = {"attention_bias": True, "mlp_bias": True}
    llama = read(tmp_path, **biased)
    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias) == (True, True, True)
    qwen2 = read(tmp_path, architectures=["Qwen2ForCausalLM"])
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.qk_norm) == (True, False, False)
    qwen3 = load_config(write(tmp_path, QWEN3 | biased))
    assert (qwen3.qkv_bias, qwen3.output_bias, qwen3.mlp_bias) == (True, True, False)
    assert qwen3.qk_norm


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_dtype_by_its_old_and_new_name(tmp_path: Path, key: str) -> None:
    assert read(tmp_path, **{key: "bfloat16"}).dtype == "bfloat16"


def test_eos_ids_of_both_files(tmp_path: Path) -> None:
    write(tmp_path, LLAMA | {"eos_token_id": 7}, {"eos_token_id": [9, 3]})
    assert load_config(tmp_path).eos_token_ids == (3, 7, 9)


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 2048),
        ({"type": "linear", "factor": 4.0}, 2048),  # the oldest spelling
        ({"rope_type": "dynamic", "factor": 4.0}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "yarn", "factor": 4.0}, 2048),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            512,
        ),
    ],
)
def test_context_length_follows_the_rope(
    tmp_path: Path, rope: dict[str, Any], context: int
) -> None:
    old = read(tmp_path, rope_scaling=rope, rope_theta=5000.0)
    assert old.context_length == context
    assert old.rope.theta == 5000.0
    new = read(tmp_path, rope_parameters=rope | {"rope_theta": 5000.0})
    assert new == old


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 3.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    YARN,
    YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False},
    YARN | {"attention_factor": 0.8},
    YARN | {"mscale": 0.7, "mscale_all_dim": 1.1},
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: "-".join(map(str, rope.values())))
@pytest.mark.parametrize("head_dim", [16, 40, 128])
def test_rotation_is_hugging_faces(tmp_path: Path, rope: dict[str, Any], head_dim: int) -> None:
    config = read(tmp_path, head_dim=head_dim, rope_scaling=rope, rope_theta=20_000.0)
    theirs = AutoConfig.from_pretrained(tmp_path)
    want, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, torch.device("cpu"))
    torch.testing.assert_close(inverse_frequencies(head_dim, config.rope), want)
    rotary = RotaryEmbedding(head_dim, config.rope, torch.device("cpu"))
    rotation = rotary(torch.tensor([0]))
    torch.testing.assert_close(rotation.cos, torch.full((1, head_dim // 2), float(scale)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM is not supported"),
        ({"architectures": ["MixtralForCausalLM"]}, "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3"),
        ({"architectures": None}, "no architectures; supported are"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"use_sliding_window": True, "sliding_window": 64}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor must be a positive number"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"hidden_size": "64"}, "hidden_size must be a positive integer, not '64'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer"),
        ({"vocab_size": None}, "vocab_size must be a positive integer, not None"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"rms_norm_eps": True}, "rms_norm_eps must be a positive number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"torch_dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported"),
        ({"eos_token_id": "end"}, "eos_token_id must be an integer"),
    ],
)
def test_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: ") as caught:
        read(tmp_path, **fields)
    assert message in caught.value.message


def test_sliding_window_that_is_switched_off_is_fine(tmp_path: Path) -> None:
    read(tmp_path, use_sliding_window=False, sliding_window=64, layer_types=["full_attention"] * 2)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not valid JSON"), ("[]", "must hold a JSON object")]
)
def test_a_broken_config_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"config\.json {message}"):
        load_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_config(tmp_path)
