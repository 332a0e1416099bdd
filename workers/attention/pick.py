"""Which attention a worker computes with."""

from __future__ import annotations

import torch

from workers.attention.backend import AttentionBackend
from workers.attention.compiled_backend import CompiledBackend
from workers.attention.kv_cache import KVCache
from workers.attention.torch_backend import TorchBackend
from workers.kernels.compiled import DTYPES
from workers.kernels.library import columns, load_library
from workers.kernels.pick import has_triton


def pick_backend(cache: KVCache) -> AttentionBackend:
    """The fastest that can be had for these pages here."""
    if has_triton(cache.device):
        from workers.attention.triton_backend import TritonBackend  # only where it can be imported

        return TritonBackend(cache)
    shape = cache.shape
    compiled = cache.device.type == "cpu" and shape.dtype in DTYPES and load_library()
    if compiled and shape.head_dim % columns() == 0:
        # CPUs that multiply bfloat16 do so in torch's attention for many queries, ours widens it.
        matrices = torch.ops.mkldnn._is_mkldnn_bf16_supported() and shape.dtype is torch.bfloat16
        return CompiledBackend(cache, TorchBackend(cache) if matrices else None)
    return TorchBackend(cache)
