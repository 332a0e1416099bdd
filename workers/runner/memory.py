"""How large KV blocks are, and how many fit."""

from __future__ import annotations

from pathlib import Path

import torch

from workers.attention.kv_cache import KVShape
from workers.config import EngineConfig
from workers.core.errors import ConfigError
from workers.models.architecture import ModelConfig
from workers.models.kv_layout import kv_layout

# Of the memory that is free once weights are loaded. Others on this machine load too; a GPU is one
# rank's alone, and needs a little for what a step computes.
KV_SHARE = {"cpu": 0.25, "cuda": 0.9}
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def kv_shape(
    config: ModelConfig, tensor_ranks: int, block_size: int, dtype: torch.dtype
) -> KVShape:
    """Of the blocks of one of so many ranks that share attention heads."""
    kept = kv_layout(config, tensor_ranks)
    return KVShape(kept.layers, kept.heads, kept.width, block_size, dtype, kept.sides)


def available_bytes(device: torch.device) -> int:
    """Memory that this process could still take, within its container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    machine = _fields(MEMINFO)["MemAvailable:"] << 10
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        # Files that were read (the weights, too) count as used, but give way.
        used -= _fields(CGROUP / "memory.stat")["inactive_file"]
    except (OSError, ValueError):
        return machine  # no container with cgroup v2, or no limit ("max")
    return min(machine, limit - used)


def _fields(path: Path) -> dict[str, int]:
    """A kernel's table of names and numbers, in the unit it writes them."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {name: int(number) for name, number, *_ in lines}


def count_blocks(
    engine: EngineConfig, shape: KVShape, context_length: int, available: int, share: float
) -> int:
    """Blocks of the pool: without `kv_tokens` as many as `share` of the `available` bytes hold.
    Raises ConfigError where the memory or `kv_tokens` is too small."""
    if engine.kv_tokens is None:
        full = engine.max_seqs * -(-context_length // shape.block_size)
        blocks = min(full, int(available * share) // shape.block_bytes)
        reason = f"{share:.0%} of the {available >> 20} MiB that are free"
    else:
        blocks = engine.kv_tokens // shape.block_size
        reason = f"kv_tokens {engine.kv_tokens}"
        if blocks * shape.block_bytes > available:
            raise ConfigError(
                f"{reason} needs {blocks * shape.block_bytes >> 20} MiB for KV pages, but only "
                f"{available >> 20} MiB are free"
            )
    if blocks < 2:
        raise ConfigError(
            f"{reason} is too small for KV pages: two blocks of {shape.block_size} tokens take "
            f"{2 * shape.block_bytes} bytes"
        )
    return blocks
