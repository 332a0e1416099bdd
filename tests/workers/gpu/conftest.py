"""Kernels run on a GPU where there is one, else under Triton's interpreter, which must be asked for
before Triton is first imported: tests/workers/test_triton.py runs this folder in a process where it
is. Elsewhere there is nothing to collect but the tests of transfers, which say that they skip."""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_triton_*.py", "test_cuda_graphs.py", "test_cuda_sampling.py"]
elif not torch.cuda.is_available():
    # No kernels of ours: the interpreter runs nothing.
    collect_ignore = ["test_cuda_sampling.py", "test_cuda_transfer.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


def pytest_configure(config: pytest.Config) -> None:
    """Rows of padding merge no splits at all, and say 0 in place of the NaN that comes of it."""
    config.addinivalue_line("filterwarnings", "ignore:invalid value encountered in subtract")


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes milliseconds for each, and any number gives the same bits."""
    if INTERPRETED:
        monkeypatch.setattr("workers.attention.triton_backend.PROGRAMS", 4)


@pytest.fixture(scope="session", autouse=True)
def bfloat16_as_on_a_gpu() -> None:
    """The interpreter multiplies bfloat16 as if it were integers, and cuts instead of rounding."""
    if not INTERPRETED:
        return
    import numpy as np
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounded(data, source, target, mode):  # type: ignore[no-untyped-def]
        if (source, target) != (float32, bfloat16):
            return convert(data, source, target, mode)
        bits = torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.int16)
        return bits.numpy().view(np.uint16)

    def widened(handle):  # type: ignore[no-untyped-def]
        if handle.dtype.scalar != bfloat16:
            return handle
        bits = torch.from_numpy(handle.data.view(np.int16)).view(torch.bfloat16)
        return interpreter.TensorHandle(bits.float().numpy(), float32)

    def product(self, a, b, *rest):  # type: ignore[no-untyped-def]
        return dot(self, widened(a), widened(b), *rest)

    interpreter._convert_float = rounded
    interpreter.InterpreterBuilder.create_dot = product
