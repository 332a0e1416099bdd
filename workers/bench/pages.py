"""Pages of 64 KiB for measuring transfers: more of them than any cache holds, taken at random."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from workers.attention.kv_cache import KVCache, KVShape

SHAPE = KVShape(8, 2, 64, 16, torch.bfloat16)
POOL_BYTES = 256 << 20


def bench_pages() -> KVCache:
    pages = KVCache(SHAPE, POOL_BYTES // SHAPE.block_bytes, torch.device("cpu"))
    pages.pages.fill_(1)
    return pages


def some_blocks(num_bytes: int) -> Iterator[list[int]]:
    """Again and again as many blocks as fill so many bytes, never the same ones twice in a row."""
    order = list(range(POOL_BYTES // SHAPE.block_bytes))
    random.Random(0).shuffle(order)
    count = num_bytes // SHAPE.block_bytes
    while True:
        for start in range(0, len(order) - count + 1, count):
            yield order[start : start + count]
