"""Published FP8 and MXFP4 checkpoints show plain tensors, dequantised as transformers does, of a
part that part alone; what is not known is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.checkpoints import make_checkpoint
from workers.core.errors import CheckpointError
from workers.kernels.torch_kernels import TorchKernels
from workers.layers.build import Build
from workers.layers.weights import Target
from workers.models.checkpoint import Checkpoint, open_checkpoint
from workers.models.config import load_config
from workers.models.loader import fill, load_decoder
from workers.models.quantisation import Packed, Scaled

CPU = torch.device("cpu")
BLOCK = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
FP8_GROUP = {"weights": {"type": "float", "num_bits": 8, "symmetric": True, "strategy": "channel"}}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"FP8_DYNAMIC": FP8_GROUP},
}
NAME = "model.layers.0.self_attn.q_proj.weight"


def write(directory: Path, config: dict[str, Any], **tensors: torch.Tensor) -> Checkpoint:
    """A checkpoint of these tensors; "__" in a keyword is a dot."""
    (directory / "config.json").write_text(json.dumps({"quantization_config": config}))
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(named, directory / "model.safetensors", metadata={"format": "pt"})
    return open_checkpoint(directory)


def load(
    checkpoint: Checkpoint,
    name: str,
    *part: slice,
    transposed: bool = False,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Through the loader, as a layer would get it."""
    shape = checkpoint.tensors[name].shape
    wanted = torch.empty(shape, device="meta")[part]
    view = torch.full((wanted.mT if transposed else wanted).shape, torch.nan, dtype=dtype)
    fill(checkpoint, [Target(name, view, shape, part, transposed)])
    return view


def fp8(*shape: int) -> torch.Tensor:
    return torch.randn(shape).mul_(50).to(torch.float8_e4m3fn)


# Every way in which layers cut: rows, columns, both, not at the borders of blocks, with gaps.
PARTS = [
    (),
    (slice(0, 128),),
    (slice(128, 256), slice(256, 384)),
    (slice(3, 250), slice(100, 301)),
    (slice(0, 256, 2), slice(1, 384, 3)),
    (slice(200, 201), slice(383, 384)),
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("scales", [torch.float32, torch.bfloat16])
def test_blocks_of_fp8(tmp_path: Path, part: tuple[slice, ...], scales: torch.dtype) -> None:
    weight, scale = fp8(256, 384), (torch.rand(2, 3) + 0.1).to(scales)
    checkpoint = write(tmp_path, BLOCK, w__weight=weight, w__weight_scale_inv=scale)
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
    assert checkpoint.tensors.keys() == {"w.weight"}
    assert torch.equal(load(checkpoint, "w.weight", *part), expected[part])
    assert torch.equal(load(checkpoint, "w.weight", *part, transposed=True), expected[part].T)
    half = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    assert torch.equal(load(checkpoint, "w.weight", *part, dtype=torch.bfloat16), half[part])


@pytest.mark.parametrize("part", [(), (slice(120, 140), slice(0, 7)), (slice(129, 130),)])
def test_last_blocks_may_be_cut(tmp_path: Path, part: tuple[slice, ...]) -> None:
    """As DeepSeek's kv_a_proj_with_mqa, 576 rows, which no power of two divides."""
    weight, scale = fp8(130, 200), torch.rand(2, 2) + 0.1
    checkpoint = write(tmp_path, BLOCK, w__weight=weight, w__weight_scale_inv=scale)
    rows, columns = torch.arange(130) // 128, torch.arange(200) // 128
    expected = weight.float() * scale[rows[:, None], columns]
    assert torch.equal(load(checkpoint, "w.weight", *part), expected[part])


@pytest.mark.parametrize("shape", [(), (1,), (96, 1), (96,), (1, 1)])
@pytest.mark.parametrize(
    "config", [COMPRESSED, {"quant_method": "fbgemm_fp8"}, {"quant_method": "fp8"}]
)
def test_fp8_with_a_scale_for_all_or_for_each_row(
    tmp_path: Path, config: dict[str, Any], shape: tuple[int, ...]
) -> None:
    weight, scale = fp8(96, 40), torch.rand(shape) + 0.1
    checkpoint = write(tmp_path, config, w__weight=weight, w__weight_scale=scale)
    factor = scale[:, None] if shape == (96,) else scale
    expected = weight.float() * factor
    for part in [(), (slice(7, 60, 2), slice(3, 9))]:
        assert torch.equal(load(checkpoint, "w.weight", *part), expected[part])


def test_what_belongs_to_activations_is_left_out(tmp_path: Path) -> None:
    one = torch.ones(1)
    checkpoint = write(
        tmp_path,
        {"quant_method": "fp8", "activation_scheme": "static"},
        a__weight=fp8(4, 4),
        a__weight_scale=one,
        a__input_scale=one.clone(),
        attn__k_scale=one.clone(),
        norm__weight=torch.ones(4),
    )
    assert checkpoint.tensors.keys() == {"a.weight", "norm.weight"}
    assert isinstance(checkpoint.tensors["a.weight"], Scaled)


def packed(experts: int, outputs: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = torch.randint(0, 256, (experts, outputs, groups, 16), dtype=torch.uint8)
    return blocks, torch.randint(118, 132, (experts, outputs, groups), dtype=torch.uint8)


@pytest.mark.parametrize(
    "part",
    [
        (),
        (slice(1, 3),),
        (slice(0, 4), slice(32, 64)),
        (slice(2, 3), slice(20, 70), slice(5, 17)),
        (slice(0, 4, 3), slice(0, 96), slice(1, 20, 2)),
    ],
)
def test_mxfp4(tmp_path: Path, part: tuple[slice, ...]) -> None:
    torch.manual_seed(0)
    blocks, scales = packed(4, 20, 3)
    tensors = {"e__up_blocks": blocks, "e__up_scales": scales, "e__up_bias": torch.ones(4, 20)}
    checkpoint = write(tmp_path, MXFP4, **tensors)
    assert checkpoint.tensors.keys() == {"e.up", "e.up_bias"}
    assert isinstance(checkpoint.tensors["e.up"], Packed)
    for dtype in (torch.float32, torch.bfloat16):
        expected = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
        assert checkpoint.tensors["e.up"].shape == expected.shape
        assert torch.equal(load(checkpoint, "e.up", *part, dtype=dtype), expected[part])
        turned = load(checkpoint, "e.up", *part, transposed=True, dtype=dtype)
        assert torch.equal(turned, expected[part].mT)


def quantised_copy(directory: Path, plain: Path, config: dict[str, Any]) -> dict[str, Any]:
    """`plain` with its layers' matrices in FP8 blocks, as DeepSeek-V3 is published; returns what
    they are when dequantised."""
    tensors = load_file(plain / "model.safetensors")
    stored, meant = {}, {}
    for name, tensor in tensors.items():
        if not name.endswith("proj.weight"):
            stored[name] = meant[name] = tensor
            continue
        rows, columns = (-(-size // 32) for size in tensor.shape)
        scale = torch.rand(rows, columns) / 100 + 1e-3
        spread = scale.repeat_interleave(32, 0).repeat_interleave(32, 1)
        spread = spread[: tensor.shape[0], : tensor.shape[1]]
        stored[name] = (tensor / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
        meant[name] = stored[name].float() * spread
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((plain / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(fields | {"quantization_config": config}))
    return meant


def test_a_whole_model(tmp_path: Path) -> None:
    """The same parameters as from a plain checkpoint of the dequantised tensors."""
    plain = make_checkpoint(tmp_path / "plain", "llama")
    (tmp_path / "fp8").mkdir()
    config = BLOCK | {"weight_block_size": [32, 32], "modules_to_not_convert": ["lm_head"]}
    meant = quantised_copy(tmp_path / "fp8", plain, config)
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    loaded = []
    for directory in (plain, tmp_path / "fp8"):
        build = Build(torch.float32, CPU, TorchKernels())
        decoder = load_decoder(open_checkpoint(directory), load_config(directory), build)
        loaded.append(decoder.state_dict())
    assert loaded[0].keys() == loaded[1].keys()
    assert all(torch.equal(loaded[0][name], loaded[1][name]) for name in loaded[0])


INT8 = {"weights": {"type": "int", "num_bits": 8}}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quant_method": "awq", "bits": 4}, "'awq'"),
        ({"quant_method": "gptq", "bits": 4}, "'gptq'"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "'bitsandbytes'"),
        ({}, "quant_method None"),
        ("fp8", "quantization_config must be an object"),
        (BLOCK | {"fmt": "e5m2"}, "fmt"),
        (BLOCK | {"weight_block_size": [128]}, "[128]"),
        (COMPRESSED | {"format": "pack-quantized"}, "'pack-quantized'"),
        (COMPRESSED | {"config_groups": {"first": INT8}}, "config_groups.first.weights"),
        (COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    model = make_checkpoint(tmp_path, "llama")
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(fields | {"quantization_config": config}))
    for read in (load_config, open_checkpoint):
        with pytest.raises(CheckpointError) as caught:
            read(model)
        assert named in caught.value.message
        assert "config.json" in caught.value.message


@pytest.mark.parametrize(
    ("config", "tensors", "named"),
    [
        (BLOCK, {"w__weight": fp8(4, 4)}, "w.weight is F8_E4M3, but has no scale"),
        (BLOCK, {"w__weight": fp8(200, 4), "w__weight_scale_inv": torch.ones(3, 1)}, "[3, 1]"),
        (COMPRESSED, {"w__weight": fp8(4, 4), "w__weight_scale": torch.ones(2, 2)}, "[2, 2]"),
        (
            BLOCK,
            {"w__weight": fp8(4, 4), "w__weight_scale_inv": torch.ones(1, 1).to(torch.uint8)},
            "w.weight_scale_inv U8",
        ),
        (MXFP4, {"e__up_blocks": packed(1, 2, 1)[0]}, "there is no e.up_scales"),
        (MXFP4, {"e__up_scales": packed(1, 2, 1)[1]}, "there is no e.up_blocks"),
        (MXFP4, {"e__up": torch.ones(2, 2, dtype=torch.uint8)}, "e.up is U8"),
        (
            MXFP4,
            {"e__up_blocks": packed(1, 2, 2)[0], "e__up_scales": packed(1, 2, 1)[1]},
            "are not MXFP4",
        ),
    ],
)
def test_parts_that_do_not_fit_together(
    tmp_path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], named: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        write(tmp_path, config, **tensors)
    assert "model.safetensors" in caught.value.message
    assert named in caught.value.message


def test_fp8_needs_config_json_to_say_so(tmp_path: Path) -> None:
    tensors = {"w.weight": fp8(4, 4), "w.weight_scale_inv": torch.ones(1, 1)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"w\.weight is F8_E4M3; supported are BF16"):
        open_checkpoint(tmp_path)
