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
from workers.models.architecture import (
    DenseFeedForward,
    HeadAttention,
    ModelConfig,
    RopeConfig,
)
from workers.models.config import load_config

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


def heads(config: ModelConfig) -> HeadAttention:
    attention = config.layers[0].attention
    assert isinstance(attention, HeadAttention)
    return attention


def test_defaults_are_hugging_faces(tmp_path: Path) -> None:
    config = read(tmp_path)
    rope = RopeConfig("default", 10_000.0)
    assert heads(config) == HeadAttention(heads=4, kv_heads=4, head_dim=16, rope=rope)
    assert config.layers[0].feed_forward == DenseFeedForward(96)
    assert config.layers == config.layers[:1] * 2
    assert (config.rms_norm_eps, config.dtype, config.tied_embeddings) == (1e-6, None, False)
    assert config.context_length == 512
    assert heads(load_config(write(tmp_path, QWEN3))).head_dim == 128


def test_families_differ_in_biases_and_norms(tmp_path: Path) -> None:
    biased = {"attention_bias": True, "mlp_bias": True}
    llama = read(tmp_path, **biased)
    assert (heads(llama).qkv_bias, heads(llama).output_bias) == (True, True)
    assert llama.layers[0].feed_forward == DenseFeedForward(96, bias=True)
    qwen2 = heads(read(tmp_path, architectures=["Qwen2ForCausalLM"]))
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.qk_norm) == (True, False, False)
    qwen3 = load_config(write(tmp_path, QWEN3 | biased))
    assert (heads(qwen3).qkv_bias, heads(qwen3).output_bias) == (True, True)
    assert qwen3.layers[0].feed_forward == DenseFeedForward(96)
    assert heads(qwen3).qk_norm


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
    assert heads(old).rope.theta == 5000.0
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


def longrope(head_dim: int) -> dict[str, Any]:
    factors = [1.0 + i for i in range(head_dim // 2)]
    return {
        "rope_type": "longrope",
        "long_factor": factors,
        "short_factor": [factor**0.5 for factor in factors],
        "original_max_position_embeddings": 128,
    }


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: "-".join(map(str, rope.values())))
@pytest.mark.parametrize("head_dim", [16, 40, 128])
def test_rotation_is_hugging_faces(tmp_path: Path, rope: dict[str, Any], head_dim: int) -> None:
    config = read(tmp_path, head_dim=head_dim, rope_scaling=rope, rope_theta=20_000.0)
    theirs = AutoConfig.from_pretrained(tmp_path)
    want, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, torch.device("cpu"))
    own = heads(config).rope
    torch.testing.assert_close(inverse_frequencies(head_dim, own, 512), want)
    rotary = RotaryEmbedding(head_dim, own, 512, torch.device("cpu"))
    rotation = rotary(torch.tensor([0]))
    torch.testing.assert_close(rotation.cos, torch.full((1, head_dim // 2), float(scale)))


@pytest.mark.parametrize("context", [128, 129])
def test_longrope_is_hugging_faces_short_or_long(tmp_path: Path, context: int) -> None:
    config = read(tmp_path, rope_scaling=longrope(16), rope_theta=20_000.0)
    theirs = AutoConfig.from_pretrained(tmp_path)
    init = ROPE_INIT_FUNCTIONS["longrope"]
    want, scale = init(theirs, torch.device("cpu"), seq_len=context)
    own = heads(config).rope
    torch.testing.assert_close(inverse_frequencies(16, own, context), want)
    rotation = RotaryEmbedding(16, own, context, torch.device("cpu"))(torch.tensor([0]))
    torch.testing.assert_close(rotation.cos, torch.full((1, 8), float(scale)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported"),
        ({"architectures": ["MambaForCausalLM"]}, "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3"),
        ({"architectures": None}, "no architectures; supported are"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "mrope"}}, "rope type 'mrope' is not supported"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.long_factor must be a list"),
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


FAMILY: dict[str, dict[str, Any]] = {
    "Phi3": {"architectures": ["Phi3ForCausalLM"]},
    "Gemma3": {"architectures": ["Gemma3ForCausalLM"], "head_dim": 16},
    "GptOss": {"architectures": ["GptOssForCausalLM"], "num_key_value_heads": 2},
    "Qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "Deepseek": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "n_routed_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
}
LONG = {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0] * 8}


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("Phi3", {"rope_scaling": LONG}, "long_factor must have 8 numbers, not 1"),
        ("Phi3", {"rope_scaling": LONG | {"short_mscale": 1.1}}, "short_mscale 1.1"),
        ("Phi3", {"partial_rotary_factor": 0.45}, "partial_rotary_factor: 7 of 16"),
        ("Gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ("Gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("Gemma3", {"hidden_activation": "relu"}, "hidden_activation 'relu'"),
        ("GptOss", {"swiglu_limit": 5.0}, "swiglu_limit 5.0 is not supported; supported: 7.0"),
        ("GptOss", {"layer_types": ["full_attention"]}, "layer_types must be a list of 2"),
        ("Qwen2", {"layer_types": ["full_attention", "linear"]}, "layer_types: 'linear'"),
        ("Deepseek", {"scoring_func": "softmax"}, "scoring_func 'softmax'"),
        ("Deepseek", {"moe_layer_freq": 2}, "moe_layer_freq 2"),
        ("Deepseek", {"n_group": 3, "topk_group": 1}, "n_group: 1 of 3 groups of 16"),
    ],
)
def test_a_family_refuses_what_it_does_not_do_by_name(
    tmp_path: Path, family: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: ") as caught:
        load_config(write(tmp_path, LLAMA | FAMILY[family] | fields))
    assert message in caught.value.message


def windows(config: ModelConfig) -> list[int | None]:
    found = [layer.attention for layer in config.layers]
    return [each.window for each in found if isinstance(each, HeadAttention)]


@pytest.mark.parametrize(
    ("architecture", "fields", "expected"),
    [
        ("Qwen2", {"use_sliding_window": False, "sliding_window": 64}, [None, None]),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 64}, [None, None]),  # 28 lowest
        ("Qwen3", {"use_sliding_window": True, "max_window_layers": 1}, [None, 4096]),
        ("Mistral", {}, [4096, 4096]),
        ("Mistral", {"sliding_window": None}, [None, None]),
        ("Phi3", {}, [None, None]),
        ("Phi3", {"sliding_window": 2047}, [2047, 2047]),
    ],
)
def test_which_layers_have_a_window(
    tmp_path: Path, architecture: str, fields: dict[str, Any], expected: list[int | None]
) -> None:
    name = {"architectures": [f"{architecture}ForCausalLM"], "num_key_value_heads": 2}
    assert windows(load_config(write(tmp_path, LLAMA | name | fields))) == expected


def test_gemma3_as_published_leaves_out_what_is_the_class_s_default(tmp_path: Path) -> None:
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    outer = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "text_config": text,
        "torch_dtype": "bfloat16",
    }
    config = load_config(write(tmp_path, outer))
    assert (config.vocab_size, config.context_length) == (262_208, 131_072)
    assert (config.dtype, config.eos_token_ids, config.tied_embeddings) == (
        "bfloat16",
        (1, 106),
        True,
    )
    assert config.embedding_scale == 2560**0.5
    assert windows(config) == ([1024] * 5 + [None]) * 5 + [1024] * 4
    local, full = config.layers[0].attention, config.layers[5].attention
    assert local.rope == RopeConfig("default", 10_000.0)
    assert full.rope == RopeConfig("linear", 1_000_000.0, factor=8.0)
    assert heads(config) == HeadAttention(
        8, 4, 256, local.rope, qk_norm=True, scale=1 / 16, window=1024
    )


def test_phi3_5_as_published(tmp_path: Path) -> None:
    factors = [1.0 + i / 10 for i in range(48)]
    fields = {
        "architectures": ["Phi3ForCausalLM"],
        "hidden_size": 3072,
        "num_attention_heads": 32,
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "su", "long_factor": factors, "short_factor": factors},
    }
    config = load_config(write(tmp_path, LLAMA | fields))
    rope = heads(config).rope
    assert (rope.kind, rope.factor, rope.original_context) == ("longrope", 32.0, 4096)
    assert (rope.long_factors, config.context_length) == (tuple(factors), 131_072)
    assert config.names.qkv == ("qkv_proj",) * 3


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
