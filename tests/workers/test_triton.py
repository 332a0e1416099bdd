"""Triton kernels where there is no GPU: run by the interpreter, and compiled for real ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs the extra `triton`")

pytestmark = pytest.mark.timeout(600)  # seconds where nothing else runs
FOLDER = Path(__file__).parent / "gpu"
SHARED_MEMORY = 99 << 10  # bytes that a block can have on every GPU since 2020
DATA_CENTRE_SHARED_MEMORY = 163 << 10  # and on those for data centres
PAGE, KV_HEADS, GROUP, LAYERS, WINDOW = 16, 8, 4, 32, 128


@pytest.mark.parametrize("marks", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_under_the_interpreter(marks: str) -> None:
    """In a process of its own: the interpreter must be asked for before Triton is imported."""
    options = ["-q", "-p", "no:cacheprovider", "-m", marks]
    command = [sys.executable, "-m", "pytest", *options, str(FOLDER)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed", done.stdout) and "skipped" not in done.stdout


def compiled(kernel: Any, arch: int, types: dict[str, str], **constants: Any) -> Any:
    """As a launch would compile it whose pointers and strides are multiples of 16. Constants in
    lower case are options of the compiler."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = [
        name
        for name in names
        if (signature[name].startswith("*") or name.endswith("_stride"))
        and name not in kernel.do_not_specialize_on_alignment
    ]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(n),): v for n, v in constants.items() if n.isupper()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {name: value for name, value in constants.items() if name.islower()}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def attention_kernels(
    arch: int, head_dim: int, dtype: torch.dtype, value_dim: int | None = None
) -> dict[str, Any]:
    """value_dim: of latent pages."""
    from workers.attention import triton_ops
    from workers.attention.triton_backend import (
        LEAST_KEYS,
        SPLITS,
        STAGES,
        choose_tiles,
        decode_rows,
    )

    data = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    pointers = ("query", "key", "value", "key_pages", "value_pages", "sinks", "out")
    types = dict.fromkeys(pointers, data)
    types |= dict.fromkeys(("tables", "starts", "lengths"), "*i32") | {"slots": "*i64"}
    types |= dict.fromkeys(("partial", "partial_log"), "*fp32") | {"scale": "fp32"}
    types |= dict.fromkeys(("query_stride", "key_stride", "value_stride", "table_stride"), "i32")
    latent, value = value_dim is not None, value_dim or head_dim
    kv_heads, group, sides = (1, 128, 1) if latent else (KV_HEADS, GROUP, 2)
    tiles = choose_tiles(head_dim, value, dtype)
    width = kv_heads * head_dim
    pages = {"PAGE_STRIDE": LAYERS * sides * PAGE * width, "PAGE": PAGE}
    heads = {"HEADS": kv_heads, "GROUP": group, "WIDTH": head_dim, "VALUE": value}
    cut = {"COLUMNS": tiles.columns, "REST": tiles.rest, "KEYS": tiles.keys, "WINDOW": WINDOW}
    splits = {"SPLITS": SPLITS, "LEAST": LEAST_KEYS}
    ends = {"WINDOW": WINDOW, "SINKS": True, "COLUMNS": tiles.columns}
    calls: dict[Any, dict[str, Any]] = {
        triton_ops.write_pages: pages
        | {"WIDTH": width, "TILE": triton.next_power_of_2(width), "SIDES": sides},
        triton_ops.decode_splits: pages
        | heads
        | cut
        | splits
        | {"ROWS": decode_rows(group, tiles)},
        triton_ops.merge_splits: splits | ends | {"HEADS": kv_heads * group, "VALUE": value},
        triton_ops.attend_chunks: pages | heads | cut | {"ROWS": tiles.rows, "SINKS": True},
    }
    calls[triton_ops.attend_chunks]["num_warps"] = tiles.warps
    return {
        kernel.__name__: compiled(kernel, arch, types, **{"num_stages": STAGES} | constants)
        for kernel, constants in calls.items()
    }


def products(kernel: Any) -> str:
    """Which of the hardware's matrix products a kernel uses."""
    return ", ".join(sorted(set(re.findall(r"wgmma\.mma_async|mma\.sync", kernel.asm["ptx"]))))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


def test_attention_compiles_for_hopper() -> None:
    kernels = attention_kernels(90, 128, torch.bfloat16)
    assert products(kernels["attend_chunks"]) == "wgmma.mma_async"
    assert products(kernels["decode_splits"]) == "mma.sync"
    assert all(kernel.metadata.shared <= SHARED_MEMORY for kernel in kernels.values())
    # Keys and values are fetched while the tile before is computed, 16 bytes at a time.
    for name in ("attend_chunks", "decode_splits"):
        assert "cp.async.cg.shared.global [ %r" in kernels[name].asm["ptx"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("head_dim", "value_dim"), [(64, None), (80, None), (128, None), (256, None), (576, 512)]
)
def test_attention_fits_every_gpu(
    head_dim: int, value_dim: int | None, dtype: torch.dtype, arch: int
) -> None:
    kernels = attention_kernels(arch, head_dim, dtype, value_dim)
    large = value_dim is not None and dtype is torch.float32
    limit = DATA_CENTRE_SHARED_MEMORY if large else SHARED_MEMORY
    assert all(kernel.metadata.shared <= limit for kernel in kernels.values())
    assert products(kernels["attend_chunks"])


def test_elementwise_kernels_compile_for_hopper() -> None:
    from workers.kernels import triton_ops

    names = ("x", "residual", "weight", "out", "heads", "gate_up", "rows")
    types = dict.fromkeys(names, "*bf16") | {"cos": "*fp32", "sin": "*fp32"}
    types |= {"eps": "fp32", "token_stride": "i32", "places": "*i64", "weights": "*fp32"}
    calls: dict[Any, dict[str, Any]] = {
        triton_ops.add_rms_norm: {"WIDTH": 4096, "TILE": 4096, "ADD": True},
        triton_ops.rotate: {"HEADS": 40, "WIDTH": 128, "ROWS": 8, "TILE": 64, "NORM": True},
        triton_ops.gated: {"WIDTH": 14336, "TILE": 1024, "ACTIVATION": "silu"},
        triton_ops.combine: {"WIDTH": 4096, "TILE": 1024, "ACTIVE": 8},
    }
    for kernel, constants in calls.items():
        ptx = compiled(kernel, 90, types, **constants).asm["ptx"]
        assert re.search(r"ld\.global(\.\w+)*\.v4", ptx), f"{kernel.__name__} reads piecemeal"


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("rows", [16 * 8, 8192 * 8])
def test_grouped_product_fits_every_gpu(arch: int, rows: int) -> None:
    """128 experts of Qwen3-30B-A3B: a decode of 16 and a chunk of 8192."""
    from workers.kernels import triton_ops
    from workers.kernels.triton_grouped import tiles

    types = dict.fromkeys(("x", "weight", "bias", "out"), "*bf16") | {"ends": "*i32"}
    shape = tiles(rows, 128, torch.bfloat16)
    constants = shape | {"EXPERTS": 128, "INPUTS": 2048, "OUTPUTS": 1536, "BIAS": True}
    kernel = compiled(triton_ops.grouped_product, arch, types, **constants)
    assert products(kernel)
    assert kernel.metadata.shared <= SHARED_MEMORY
    assert "cp.async.cg.shared.global [ %r" in kernel.asm["ptx"]
    assert "st.local" not in kernel.asm["ptx"]
