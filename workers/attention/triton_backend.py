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
from workers.attention.backend import Scores
from workers.attention.context import ForwardContext
from workers.attention.kv_cache import KVCache

SPLITS = 32  # of one sequence, at most
LEAST_KEYS = 256  # in a split
PROGRAMS = 2048  # of one decode launch, about: several for each multiprocessor
STAGES = 3  # block ids are loaded two tiles ahead, keys and values one
LOG2_E = math.log2(math.e)
LEAST_ROWS = 16  # of a tile, for the hardware's matrix products


LATENT_HEADS = 16  # that share a tile: a wide latent leaves registers for no more


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the kernels cut their work: a tile's queries and two stages of keys and values fit the
    99 KiB of shared memory that every GPU since 2020 has (latents in float32: the 163 KiB of data
    centre GPUs), its sums the registers (both are read off the compiled kernels in
    tests/workers/test_triton.py)."""

    columns: int  # of a value, padded to a power of two
    rest: int  # of a key besides, where its value is a part of it; else 0
    keys: int
    rows: int  # queries of one head
    warps: int


def choose_tiles(head_dim: int, value_dim: int, dtype: torch.dtype) -> Tiles:
    columns, rest = _padded(value_dim), _padded(head_dim - value_dim)
    wide = columns > 128
    if dtype.itemsize > 2:
        keys = 16 if wide else 32
        return Tiles(columns, rest, keys, rows=keys, warps=4)
    if columns > 256:
        return Tiles(columns, rest, keys=16, rows=32, warps=8)
    keys, rows, warps = (32, 64, 4) if wide else (64, 128, 8)
    return Tiles(columns, rest, keys, rows, warps)


def _padded(width: int) -> int:
    return max(LEAST_ROWS, triton.next_power_of_2(width)) if width else 0


class TritonBackend:
    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        pages = cache.pages
        self.layers = [
            (pages[:, layer, 0], pages[:, layer, -1]) for layer in range(cache.shape.layers)
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
        self._pages = {"PAGE_STRIDE": backend.cache.pages.stride(0), "PAGE": shape.block_size}
        queries = [context.queries(chunk) for chunk in range(len(context.lengths))]
        # Single tokens come first (see ForwardContext).
        self._decodes = sum(count == 1 for count in queries)
        self._longest = max(queries)
        self._partial: tuple[Tensor, Tensor] | None = None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor | None, scores: Scores
    ) -> Tensor:
        pages = self._layers[layer]
        self._write(pages, key, value)
        width = scores.value_dim or self._shape.head_dim
        out = query.new_empty(*query.shape[:2], width)
        if self._decodes:
            self._attend_singles(pages, query, scores, out)
        if self._decodes < len(self._context.lengths):
            self._attend_chunks(pages, query, scores, out)
        return out

    def _write(self, pages: tuple[Tensor, Tensor], key: Tensor, value: Tensor | None) -> None:
        tokens, kv_heads, head_dim = key.shape
        width = kv_heads * head_dim
        sides = (key, key if value is None else value)
        for rows in sides:
            assert rows.stride()[1:] == (head_dim, 1), "the heads of a token lie side by side"
        triton_ops.write_pages[(tokens,)](
            *(*sides, self._context.slots, *pages, *(rows.stride(0) for rows in sides)),
            **self._pages,
            WIDTH=width,
            TILE=triton.next_power_of_2(width),
            SIDES=self._shape.sides,
            num_warps=4,
        )

    def _attend_singles(
        self, pages: tuple[Tensor, Tensor], query: Tensor, scores: Scores, out: Tensor
    ) -> None:
        context, shape, count = self._context, self._shape, self._decodes
        heads = query.shape[1]
        group, window = heads // shape.kv_heads, scores.window or 0
        tiles = choose_tiles(shape.head_dim, out.shape[2], shape.dtype)
        rows = decode_rows(group, tiles)
        parts = shape.kv_heads * triton.cdiv(group, rows)
        partial, partial_log = self._partials(out)
        programs = max(1, min(SPLITS, PROGRAMS // (count * parts)))
        tables = context.block_tables
        triton_ops.decode_splits[(count, parts, programs)](
            *(query, *pages, tables, context.lengths_tensor, partial, partial_log),
            *(scores.scale * LOG2_E, query.stride(0), tables.stride(0)),
            **self._pages,
            HEADS=shape.kv_heads,
            GROUP=group,
            WIDTH=shape.head_dim,
            VALUE=out.shape[2],
            ROWS=rows,
            COLUMNS=tiles.columns,
            REST=tiles.rest,
            KEYS=tiles.keys,
            WINDOW=window,
            SPLITS=SPLITS,
            LEAST=LEAST_KEYS,
            num_warps=4,
            num_stages=STAGES,
        )
        sinks = scores.sinks
        triton_ops.merge_splits[(count, heads)](
            *(partial, partial_log, context.lengths_tensor, query if sinks is None else sinks, out),
            HEADS=heads,
            VALUE=out.shape[2],
            COLUMNS=tiles.columns,
            WINDOW=window,
            SINKS=sinks is not None,
            SPLITS=SPLITS,
            LEAST=LEAST_KEYS,
            num_warps=4,
        )

    def _partials(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """One for all layers of the step: each is used up before the next begins."""
        if self._partial is None:
            shape = (self._decodes, out.shape[1], SPLITS, out.shape[2])
            outputs = torch.empty(shape, dtype=torch.float32, device=out.device)
            self._partial = outputs, outputs.new_empty(shape[:3])
        return self._partial

    def _attend_chunks(
        self, pages: tuple[Tensor, Tensor], query: Tensor, scores: Scores, out: Tensor
    ) -> None:
        context, shape, first = self._context, self._shape, self._decodes
        heads, sinks = query.shape[1], scores.sinks
        tiles = choose_tiles(shape.head_dim, out.shape[2], shape.dtype)
        tables = context.block_tables
        grid = (triton.cdiv(self._longest, tiles.rows), heads, len(context.lengths) - first)
        triton_ops.attend_chunks[grid](
            *(query, *pages, tables[first:]),
            *(context.starts_tensor[first:], context.lengths_tensor[first:]),
            *(query if sinks is None else sinks, out),
            *(scores.scale * LOG2_E, query.stride(0), tables.stride(0)),
            **self._pages,
            HEADS=shape.kv_heads,
            GROUP=heads // shape.kv_heads,
            WIDTH=shape.head_dim,
            VALUE=out.shape[2],
            ROWS=tiles.rows,
            COLUMNS=tiles.columns,
            REST=tiles.rest,
            KEYS=tiles.keys,
            WINDOW=scores.window or 0,
            SINKS=sinks is not None,
            num_warps=tiles.warps,
            num_stages=STAGES,
        )


def decode_rows(group: int, tiles: Tiles) -> int:
    """Query heads of a KV head that attend together."""
    rows = max(LEAST_ROWS, triton.next_power_of_2(group))
    return min(rows, LATENT_HEADS) if tiles.rest else rows
