"""Pages for measuring transfers: more of them than any cache holds, taken at random. Blocks have
1 MiB, as those of real models; 64 KiB for messages that are smaller."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

import torch

from workers.attention.kv_cache import KVCache, KVShape

LARGE = KVShape(16, 8, 128, 16, torch.bfloat16)
SMALL = KVShape(8, 2, 64, 16, torch.bfloat16)
POOL_BYTES = 256 << 20


class Pools:
    """`of(num_bytes)`: the pages for messages of so many bytes, made once."""

    def __init__(self) -> None:
        self._made = cache(_pool)

    def of(self, num_bytes: int) -> KVCache:
        return self._made(LARGE if num_bytes >= LARGE.block_bytes else SMALL)


def _pool(shape: KVShape) -> KVCache:
    pages = KVCache(shape, POOL_BYTES // shape.block_bytes, torch.device("cpu"))
    pages.pages.fill_(1)
    return pages


def some_blocks(pages: KVCache, num_bytes: int) -> Iterator[list[int]]:
    """Again and again as many blocks as fill so many bytes, never the same ones twice in a row."""
    order = list(range(pages.num_blocks))
    random.Random(0).shuffle(order)
    count = num_bytes // pages.block_bytes
    while True:
        for start in range(0, len(order) - count + 1, count):
            yield order[start : start + count]
