"""Attention that reads and writes pages in place, in Triton.

A sequence's only token attends by flash-decoding: its keys are cut into splits, which many programs
attend to at once, and the results are merged. How it is cut depends on its own length alone, so a
sequence gets the same bits in every batch. Longer chunks attend tile by tile (FlashAttention-2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from workers.attention import triton_ops
from workers.attention.context import ForwardContext
from workers.attention.kv_cache import KVCache

SPLITS = 32  # of one sequence, at most
LEAST_KEYS = 256  # in a split
PROGRAMS = 2048  # of one decode launch, about: several for each multiprocessor
STAGES = 3  # block ids are loaded two tiles ahead, keys and values one
LEAST_ROWS = 16  # of a tile, for the hardware's matrix products


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the kernels cut their work: a tile's queries and two stages of keys and values fit the
    99 KiB of shared memory that every GPU since 2020 has, its sums the registers (both are read
    off the compiled kernels in tests/workers/test_triton.py)."""

    columns: int  # head_dim, padded to a power of two
    keys: int
    rows: int  # queries of one head
    warps: int


def choose_tiles(head_dim: int, dtype: torch.dtype) -> Tiles:
    columns = max(LEAST_ROWS, triton.next_power_of_2(head_dim))
    wide = columns > 128
    if dtype.itemsize > 2:
        return Tiles(columns, keys=16 if wide else 32, rows=16 if wide else 32, warps=4)
    return Tiles(columns, keys=32 if wide else 64, rows=64 if wide else 128, warps=4 if wide else 8)


class TritonBackend:
    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.tiles = choose_tiles(cache.shape.head_dim, cache.shape.dtype)
        self.layers = [
            (cache.pages[:, layer, 0], cache.pages[:, layer, 1])
            for layer in range(cache.shape.layers)
        ]

    def plan(self, context: ForwardContext) -> TritonPlan:
        return TritonPlan(self, context)


class TritonPlan:
    """Of the step's host values it uses how many chunks there are of either kind, and the longest
    chunk; decode launches depend on their number alone, as a captured graph must."""

    def __init__(self, backend: TritonBackend, context: ForwardContext) -> None:
        self._context = context
        self._layers = backend.layers
        self._shape = shape = backend.cache.shape
        self._tiles = backend.tiles
        self._page_stride = backend.cache.pages.stride(0)
        queries = [context.queries(chunk) for chunk in range(len(context.lengths))]
        # Single tokens come first (see ForwardContext).
        self._decodes = sum(count == 1 for count in queries)
        self._longest = max(queries)
        self._scale = math.log2(math.e) / math.sqrt(shape.head_dim)
        self._partial: tuple[Tensor, Tensor] | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        pages = self._layers[layer]
        self._write(pages, key, value)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        if self._decodes:
            self._attend_singles(pages, query, out)
        if self._decodes < len(self._context.lengths):
            self._attend_chunks(pages, query, out)
        return out

    def _write(self, pages: tuple[Tensor, Tensor], key: Tensor, value: Tensor) -> None:
        tokens, kv_heads, head_dim = key.shape
        width = kv_heads * head_dim
        for rows in (key, value):
            assert rows.stride()[1:] == (head_dim, 1), "the heads of a token lie side by side"
        triton_ops.write_pages[(tokens,)](
            *(key, value, self._context.slots, *pages, key.stride(0), value.stride(0)),
            PAGE_STRIDE=self._page_stride,
            PAGE=self._shape.block_size,
            WIDTH=width,
            TILE=triton.next_power_of_2(width),
            num_warps=4,
        )

    def _attend_singles(self, pages: tuple[Tensor, Tensor], query: Tensor, out: Tensor) -> None:
        context, shape, tiles, count = self._context, self._shape, self._tiles, self._decodes
        heads = query.shape[1]
        group = heads // shape.kv_heads
        partial, partial_log = self._partials(query)
        programs = max(1, min(SPLITS, PROGRAMS // (count * shape.kv_heads)))
        tables = context.block_tables
        triton_ops.decode_splits[(count, shape.kv_heads, programs)](
            *(query, *pages, tables, context.lengths_tensor, partial, partial_log),
            *(self._scale, query.stride(0), tables.stride(0)),
            PAGE_STRIDE=self._page_stride,
            PAGE=shape.block_size,
            HEADS=shape.kv_heads,
            GROUP=group,
            WIDTH=shape.head_dim,
            ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)),
            COLUMNS=tiles.columns,
            KEYS=tiles.keys,
            SPLITS=SPLITS,
            LEAST=LEAST_KEYS,
            num_warps=4,
            num_stages=STAGES,
        )
        triton_ops.merge_splits[(count, heads)](
            *(partial, partial_log, context.lengths_tensor, out),
            HEADS=heads,
            WIDTH=shape.head_dim,
            COLUMNS=tiles.columns,
            SPLITS=SPLITS,
            LEAST=LEAST_KEYS,
            num_warps=4,
        )

    def _partials(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """One for all layers of the step: each is used up before the next begins."""
        if self._partial is None:
            shape = (self._decodes, query.shape[1], SPLITS, query.shape[2])
            outputs = torch.empty(shape, dtype=torch.float32, device=query.device)
            self._partial = outputs, outputs.new_empty(shape[:3])
        return self._partial

    def _attend_chunks(self, pages: tuple[Tensor, Tensor], query: Tensor, out: Tensor) -> None:
        context, shape, tiles, first = self._context, self._shape, self._tiles, self._decodes
        heads = query.shape[1]
        tables = context.block_tables
        grid = (triton.cdiv(self._longest, tiles.rows), heads, len(context.lengths) - first)
        triton_ops.attend_chunks[grid](
            *(query, *pages, tables[first:]),
            *(context.starts_tensor[first:], context.lengths_tensor[first:], out),
            *(self._scale, query.stride(0), tables.stride(0)),
            PAGE_STRIDE=self._page_stride,
            PAGE=shape.block_size,
            HEADS=shape.kv_heads,
            GROUP=heads // shape.kv_heads,
            WIDTH=shape.head_dim,
            ROWS=tiles.rows,
            COLUMNS=tiles.columns,
            KEYS=tiles.keys,
            num_warps=tiles.warps,
            num_stages=STAGES,
        )
