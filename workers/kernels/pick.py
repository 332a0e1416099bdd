"""Which kernels a model is built with."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from workers.kernels.api import Kernels
from workers.kernels.compiled import DTYPES, CompiledKernels
from workers.kernels.library import load_library
from workers.kernels.torch_kernels import TorchKernels


def has_triton(device: torch.device) -> bool:
    """Whether `device` is one that Triton compiles for, and it is installed."""
    return device.type == "cuda" and find_spec("triton") is not None


def pick_kernels(device: torch.device, dtype: torch.dtype) -> Kernels:
    """The fastest that can be had for `device` and `dtype` here."""
    if has_triton(device):
        from workers.kernels.triton_kernels import TritonKernels  # only where it can be imported

        return TritonKernels()
    if device.type == "cpu" and dtype in DTYPES and load_library():
        return CompiledKernels()
    return TorchKernels()
