"""Checkpoints that are whole load; one that is not is refused with the file and tensor at fault."""

from __future__ import annotations

import json
import operator
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import Oracle, make_checkpoint
from workers.core.errors import CheckpointError
from workers.kernels.torch_kernels import TorchKernels
from workers.layers.build import Build
from workers.models.architecture import HeadAttention, LatentAttention, RopeConfig
from workers.models.checkpoint import open_checkpoint
from workers.models.config import load_config
from workers.models.decoder import Decoder
from workers.models.fingerprint import kv_abi, model_fingerprint
from workers.models.loader import load_decoder
from workers.models.resolve import resolve_model

CPU = torch.device("cpu")


def load(directory: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Decoder:
    checkpoint = open_checkpoint(directory)
    build = Build(dtype, CPU, TorchKernels())
    return load_decoder(checkpoint, load_config(directory), build, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("whole"), "llama")


@pytest.fixture
def single(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "single"))


@pytest.fixture
def sharded(whole: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "sharded"
    Oracle(whole).model.save_pretrained(directory, max_shard_size="100KB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    return directory


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_shards_are_the_same_model(whole: Path, sharded: Path) -> None:
    one, many = load(whole).state_dict(), load(sharded).state_dict()
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_fused_weights_are_the_projections_top_to_bottom(whole: Path) -> None:
    tensors = load_file(whole / "model.safetensors")
    parts = [tensors[f"model.layers.1.self_attn.{p}_proj.weight"] for p in "qkv"]
    attention: Any = load(whole).layers[1].attention
    assert torch.equal(attention.qkv.weight, torch.cat(parts))


def test_weights_are_converted_and_progress_is_told(whole: Path) -> None:
    told: list[tuple[str, float]] = []
    decoder = load(whole, torch.bfloat16, progress=lambda *what: told.append(what))
    for name, parameter in decoder.named_parameters():
        assert parameter.dtype is (torch.float32 if "norm" in name else torch.bfloat16), name
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_what_older_writers_saved_too_is_ignored(tmp_path: Path) -> None:
    tied = make_checkpoint(tmp_path, "llama", tie_word_embeddings=True)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = torch.zeros(1)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    edit(tied / "model.safetensors", change)
    decoder = load(tied)
    assert decoder.head.weight is decoder.embedding.weight


def fails(directory: Path, *parts: str) -> None:
    """Loading raises a CheckpointError whose message has all of `parts`."""
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    missing = [part for part in parts if part not in caught.value.message]
    assert not missing, caught.value.message


def test_no_weights_at_all(single: Path) -> None:
    (single / "model.safetensors").unlink()
    fails(single, "neither model.safetensors nor model.safetensors.index.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused(single: Path, name: str) -> None:
    (single / "model.safetensors").rename(single / name)
    fails(single, name, "pickled", "refused", "safetensors")


def test_pickles_beside_safetensors_are_not_touched(single: Path) -> None:
    (single / "pytorch_model.bin").write_bytes(b"never read")
    load(single)


@pytest.mark.parametrize("keep", [0, 4, 8, 100])
def test_truncated_header(single: Path, keep: int) -> None:
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    fails(single, "model.safetensors is truncated")


@pytest.mark.parametrize("change", [-1, -5000, 1])
def test_wrong_size(single: Path, change: int) -> None:
    path = single / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + b"x" * change)
    fails(single, "model.safetensors is", "truncated" if change < 0 else "corrupt", "bytes")


@pytest.mark.parametrize(
    ("start", "data"), [(0, b"\xff" * 8), (8, b"not json"), (0, (1 << 40).to_bytes(8, "little"))]
)
def test_corrupt_header(single: Path, start: int, data: bytes) -> None:
    path = single / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[start : start + len(data)] = data
    path.write_bytes(content)
    fails(single, "model.safetensors is corrupt")


@pytest.mark.parametrize(
    "entry",
    [
        {},
        [],
        {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]},
        {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
    ],
)
def test_header_that_makes_no_sense(single: Path, entry: object) -> None:
    header = json.dumps({"model.norm.weight": entry}).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0" * 8
    (single / "model.safetensors").write_bytes(content)
    fails(single, "model.safetensors is corrupt")


def test_an_html_page_in_place_of_weights(single: Path) -> None:
    (single / "model.safetensors").write_text("<!DOCTYPE html>" * 100)
    fails(single, "model.safetensors is corrupt")


def test_a_directory_in_place_of_weights(single: Path) -> None:
    (single / "model.safetensors").unlink()
    (single / "model.safetensors").mkdir()
    fails(single, "model.safetensors cannot be read")


def test_missing_tensor(single: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit(single / "model.safetensors", lambda tensors: operator.delitem(tensors, name))
    fails(single, name, "missing", "model.safetensors")


def test_tensor_of_another_shape(single: Path) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    edit(single / "model.safetensors", lambda t: t.update({name: torch.zeros(3, 64)}))
    fails(single, "model.safetensors", name, "[3, 64]", "[32, 64]")


def test_tensor_that_we_would_ignore(single: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    edit(single / "model.safetensors", lambda t: t.update({name: torch.zeros(64)}))
    fails(single, "model.safetensors", name, "not part of LlamaForCausalLM")


def test_quantised_tensor(single: Path) -> None:
    name = "model.norm.weight"
    edit(single / "model.safetensors", lambda t: t.update({name: t[name].to(torch.int8)}))
    fails(single, name, "I8", "F32")


def test_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    fails(sharded, f"{shard.name} is missing")


def test_shard_without_the_tensor_that_the_index_promises(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    name = next(iter(load_file(shard)))
    edit(shard, lambda tensors: operator.delitem(tensors, name))
    fails(sharded, shard.name, name, "index.json")


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../x"}}]
)
def test_broken_index(sharded: Path, index: dict[str, Any]) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    fails(sharded, "model.safetensors.index.json", "weight_map")


def test_index_of_pickles(sharded: Path) -> None:
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    fails(sharded, "pytorch_model-00001-of-00002.bin is not a safetensors file")


def test_fingerprint_tells_models_apart(whole: Path, single: Path, sharded: Path) -> None:
    def of(directory: Path) -> str:
        return model_fingerprint(open_checkpoint(directory))

    original = of(whole)
    assert of(single) == original
    assert of(sharded) != original
    path = single / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert of(single) != original


def test_kv_abi_says_what_makes_kv_differ(whole: Path) -> None:
    config = load_config(whole)
    abi = kv_abi("f" * 32, config, "bfloat16", 16)
    assert abi != kv_abi("e" * 32, config, "bfloat16", 16)
    assert abi != kv_abi("f" * 32, config, "float32", 16)
    assert abi != kv_abi("f" * 32, config, "bfloat16", 32)
    assert "heads=2x16" in abi


def test_kv_abi_knows_each_kind_of_attention(whole: Path) -> None:
    rope = RopeConfig("longrope", factor=4.0, original_context=256)
    latent = LatentAttention(4, None, 32, 16, 8, 16, rope)
    plain = load_config(whole)
    assert isinstance(plain.layers[0].attention, HeadAttention)

    def abi(attention: HeadAttention | LatentAttention, **fields: Any) -> str:
        layers = (plain.layers[0], replace(plain.layers[1], attention=attention))
        config = replace(plain, layers=layers, **fields)
        return kv_abi("f" * 32, config, "bfloat16", 16)

    heads = plain.layers[0].attention
    same = abi(heads)
    assert same == kv_abi("f" * 32, plain, "bfloat16", 16)
    assert abi(replace(heads, window=24, sinks=True)) == same, "KV is what is read, not how"
    assert abi(replace(heads, rope=replace(heads.rope, theta=5e5))) != same
    assert "heads=2x16+latent=32+8/" in abi(latent)
    # The context that is served chooses the factors that keys are rotated by.
    assert abi(latent, context_length=256).endswith(":256:short")
    assert abi(latent, context_length=257).endswith(":256:long")


def test_resolve(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(whole)) == whole
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        resolve_model(str(tmp_path))
    with pytest.raises(CheckpointError, match="is a file"):
        resolve_model(str(whole / "config.json"))
    with pytest.raises(CheckpointError, match=r"neither a directory nor a Hugging Face model id"):
        resolve_model(str(tmp_path / "not" / "there"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"nobody/nothing.*hub did not give it"):
        resolve_model("nobody/nothing")
