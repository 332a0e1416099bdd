"""Each rank reads its own part of a checkpoint, and needs memory for no more than that."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.checkpoints import make_checkpoint
from tests.places import places
from tests.ranks import run_ranks
from workers.config import EngineConfig
from workers.core.errors import CheckpointError, ConfigError
from workers.core.runner import ModelInfo
from workers.kernels.torch_kernels import TorchKernels
from workers.layers.build import Build
from workers.layers.weights import Target, Targets, nothing_of
from workers.models import loader
from workers.models.checkpoint import open_checkpoint
from workers.models.config import load_config
from workers.models.decoder import Decoder
from workers.models.loader import check_targets, fill
from workers.models.sizing import Split, rank_weights
from workers.parallel.group import Ranks
from workers.runner import load
from workers.runner.forward import Forward

CPU = torch.device("cpu")


def load_rank(directory: Path, split: Split, rank: int) -> Targets:
    """What a rank has read, before it packs."""
    checkpoint, config = open_checkpoint(directory), load_config(directory)
    decoder = Decoder(config, Build(torch.float32, CPU, TorchKernels(), places(split, rank)))
    for parameter in decoder.parameters():
        parameter.data.fill_(torch.nan)
    targets = decoder.targets()
    check_targets(checkpoint, config, targets)
    fill(checkpoint, targets)
    assert not any(parameter.isnan().any() for parameter in decoder.parameters())
    return targets


@pytest.mark.parametrize(
    ("family", "split"),
    [
        ("llama", Split(1)),
        ("llama", Split(4)),
        ("qwen2", Split(2)),
        ("phi3", Split(2)),
        ("gemma3", Split(2)),
        ("mixtral", Split(2)),
        ("qwen3_moe", Split(1, 4)),
        ("gpt_oss", Split(2)),
        ("gpt_oss", Split(2, 4)),
        ("deepseek_v3", Split(2, 2)),
    ],
    ids=str,
)
def test_ranks_have_everything_between_them(family: str, split: Split, tmp_path: Path) -> None:
    """Every element of every tensor is on some rank, at the place where its target says."""
    fields = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    directory = make_checkpoint(tmp_path, family, **fields)
    tensors = load_file(directory / "model.safetensors")
    covered = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in tensors.items()}
    for rank in range(split.world):
        for target in load_rank(directory, split, rank):
            if target.view.numel() == 0:
                continue
            part = tensors[target.name][target.part]
            expected = part.mT if target.transposed else part
            assert torch.equal(target.view, expected.expand_as(target.view)), target.name
            covered[target.name][target.part] = True
    assert not [name for name, places in covered.items() if not places.all()]


def test_what_other_ranks_hold_is_checked_too(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "qwen3_moe")
    path = directory / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "experts.7." in name)
    split = Split(1, 4)
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"experts\.7\..*has shape"):
        load_rank(directory, split, 0)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"experts\.7\..*is missing"):
        load_rank(directory, split, 0)


@pytest.mark.parametrize("split", [Split(1), Split(2), Split(1, 2)], ids=str)
def test_experts_of_mxfp4_are_those_of_a_plain_checkpoint(tmp_path: Path, split: Split) -> None:
    """As gpt-oss is published. Two ranks share a width of 96, which is three groups of 32."""
    plain = make_checkpoint(tmp_path / "plain", "gpt_oss")
    tensors = load_file(plain / "model.safetensors")
    packed = dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = packed.pop(name).shape
        groups = (experts, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*groups, 16), dtype=torch.uint8)
        scales = torch.randint(120, 130, groups, dtype=torch.uint8)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        tensors[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert len(packed) == len(tensors) + 4, "two layers of two"
    save_file(tensors, plain / "model.safetensors")
    quantised = tmp_path / "quantised"
    quantised.mkdir()
    save_file(packed, quantised / "model.safetensors")
    fields = json.loads((plain / "config.json").read_text())
    scheme = {"quantization_config": {"quant_method": "mxfp4"}}
    (quantised / "config.json").write_text(json.dumps(fields | scheme))
    for rank in range(split.world):
        one, other = (load_rank(directory, split, rank) for directory in (plain, quantised))
        assert [target.name for target in one] == [target.name for target in other]
        for expected, target in zip(one, other, strict=True):
            assert torch.equal(expected.view, target.view), target.name


def test_a_tensor_goes_to_several_places_chunk_by_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "CHUNK", 10)
    tensor = torch.arange(7 * 5 * 6, dtype=torch.float32).view(7, 5, 6)
    save_file({"t": tensor}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    asked = [
        ((), False),
        ((slice(1, 6), slice(2, 5)), True),
        ((slice(0, 7, 3), slice(None), slice(1, 6, 2)), True),
        ((slice(6, None),), False),
        ((slice(3, 3),), False),
    ]
    targets = []
    for part, transposed in asked:
        wanted = tensor[part].mT if transposed else tensor[part]
        targets.append(Target("t", torch.full(wanted.shape, -1.0), (7, 5, 6), part, transposed))
    targets.append(nothing_of("t", (7, 5, 6)))
    told: list[float] = []
    fill(open_checkpoint(tmp_path), targets, lambda _, share: told.append(share))
    for target in targets[:-1]:
        part = tensor[target.part]
        assert torch.equal(target.view, part.mT if target.transposed else part)
    assert told == sorted(set(told))
    assert len(told) > len(targets)
    assert told[-1] == 1.0


def test_layers_that_guess_ahead_are_left_out(tmp_path: Path) -> None:
    """DeepSeek-V3 comes with one; a plain layer too many is still an error."""
    directory = make_checkpoint(tmp_path, "llama")
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.2.input_layernorm.weight"] = torch.ones(64)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"layers\.2\.input_layernorm.*is not part of"):
        load_rank(directory, Split(), 0)
    tensors["model.layers.2.eh_proj.weight"] = torch.ones(64, 128)
    save_file(tensors, path)
    load_rank(directory, Split(), 0)


def test_ranks_agree_on_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that has least memory decides, and each keeps its share of the heads."""
    directory = make_checkpoint(tmp_path, "llama")
    config = EngineConfig(max_seqs=32, dtype="float32")
    free = iter([12 << 20, 4 << 20, 8 << 20])
    monkeypatch.setattr(load, "available_bytes", lambda _: next(free))
    alone, one = load.load_forward(str(directory), config, device="cpu")

    def work(ranks: Ranks) -> tuple[ModelInfo, Forward]:
        return load.load_forward(str(directory), config, ranks=ranks, device="cpu")

    (first, mine), (second, other) = run_ranks(2, work, tensor=2, experts=1)
    assert first == second
    assert first.kv_abi == alone.kv_abi
    assert mine.cache.block_bytes * 2 == one.cache.block_bytes
    assert one.cache.num_blocks == (12 << 20) // 4 // one.cache.block_bytes
    assert mine.cache.num_blocks == other.cache.num_blocks
    # A quarter of what is free, of which each of two on one machine takes half.
    assert mine.cache.num_blocks == (4 << 20) // 4 // 2 // mine.cache.block_bytes
    with pytest.raises(ConfigError, match="expert_parallel 2: the model has no experts"):
        load.load_forward(str(directory), config, ranks=places(Split(1, 2), 0), device="cpu")


SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "vocab_size": 4096,
    "max_position_embeddings": 512,
    "dtype": "bfloat16",
}
# glibc counts large blocks exactly, and no file that is mapped: with a threshold that does not
# move, "max mmap bytes" is the most that tensors took at once.
MEASURE = """
import ctypes, sys, torch
from pathlib import Path
from tests.places import places
from workers.kernels.torch_kernels import TorchKernels
from workers.layers.build import Build
from workers.models.checkpoint import open_checkpoint
from workers.models.config import load_config
from workers.models.loader import load_decoder
from workers.models.sizing import Split
directory = Path(sys.argv[1])
checkpoint, config = open_checkpoint(directory), load_config(directory)
build = Build(torch.float32, torch.device("cpu"), TorchKernels(), places(Split(4), 1))
stats = ctypes.CDLL(None).malloc_stats
stats()
decoder = load_decoder(checkpoint, config, build)
stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc counts what is allocated")
def test_memory_while_loading(tmp_path: Path) -> None:
    """At most 1.15 times the rank's weights and one tensor, though all of them are converted, half
    of them from FP8."""
    scheme = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | {"quantization_config": scheme}))
    config = load_config(tmp_path)
    meta = Build(torch.bfloat16, torch.device("meta"), TorchKernels())
    tensors = {
        target.name: torch.zeros(target.shape, dtype=torch.bfloat16)
        for target in Decoder(config, meta).targets()
    }
    for name in [name for name in tensors if re.search(r"layers\.[0-3]\..*proj", name)]:
        rows, columns = tensors[name].shape
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(rows // 128, columns // 128)
    save_file(tensors, tmp_path / "model.safetensors")
    share = rank_weights(config, Split(4), 4).total
    largest = 4 * max(tensor.numel() for tensor in tensors.values())
    before, after = peaks(tmp_path)
    assert before < share / 4, "what is imported must not hide what is loaded"
    assert share <= after <= 1.15 * share + largest
    assert after < 0.4 * rank_weights(config, Split(), 4).total


def peaks(directory: Path) -> tuple[int, int]:
    """Bytes in large blocks, at most, before and after loading."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(directory)],
        check=True, capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("max mmap bytes")]
    before, after = (int(line.partition("=")[2]) for line in lines)
    return before, after
