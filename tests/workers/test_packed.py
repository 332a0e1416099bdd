"""Packed weights: the same bits, and nothing kept twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.checkpoints import make_checkpoint
from workers.config import EngineConfig
from workers.core.span import whole
from workers.kernels.torch_kernels import TorchKernels
from workers.layers.build import Build
from workers.layers.linear import Linear
from workers.llm import LLM, SamplingParams
from workers.runner.load import load_runner

CPU = torch.device("cpu")
CAN_PACK = torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize("rows", [1, 3, 32, 200, 513])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_product_is_the_plain_one_bit_for_bit(rows: int, bias: bool) -> None:
    build = Build(torch.bfloat16, CPU, TorchKernels())
    linear = Linear(whole(96), [("a", whole(64)), ("b", whole(32))], build, bias=bias)
    assert linear.weight is not None
    weight = linear.weight.normal_().clone()
    if linear.bias is not None:
        linear.bias.normal_()
    x = torch.randn(rows, 96, dtype=torch.bfloat16)
    expected = F.linear(x, weight, linear.bias)
    with torch.inference_mode():
        linear.pack()
        assert torch.equal(linear(x), expected)
    assert (linear.weight is None) == CAN_PACK


def test_float32_stays_as_it_is() -> None:
    build = Build(torch.float32, CPU, TorchKernels())
    linear = Linear(whole(8), [("a", whole(8))], build, bias=False)
    linear.pack()
    assert linear.weight is not None


@pytest.mark.parametrize("tied", [False, True])
def test_a_loaded_bf16_model_is_packed_and_speaks(tied: bool, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", tie_word_embeddings=tied)
    runner = load_runner(str(model), EngineConfig(dtype="bfloat16", kv_tokens=512))
    plain = [
        m
        for m in runner.forward.decoder.modules()
        if isinstance(m, Linear) and m.weight is not None
    ]
    assert not plain or not CAN_PACK
    with LLM(str(model), dtype="bfloat16", kv_tokens=512) as llm:
        (done,) = llm.generate([[1, 2, 3]], SamplingParams(temperature=0.0, max_tokens=5))
    assert 1 <= len(done.token_ids) <= 5
