"""Decode steps as CUDA graphs: one launch in place of some hundred, whatever the host is doing.

A graph runs again what was run when it was captured, on the same memory: so each batch size has a
graph of its own, all read their inputs from buffers that stay where they are, and a batch between
two sizes is padded up. A row of padding has slot -1, which no page has, and length 0: it writes
nothing and attends to nothing, so it needs no page of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from workers.attention.context import ForwardContext

Forward: TypeAlias = Callable[[ForwardContext], Tensor]  # states [T, hidden]; writes pages
Replay: TypeAlias = Callable[[], None]

NOWHERE = -1  # slot of a row of padding; attention backends on CUDA write no KV for it


class Capture(Protocol):
    def __call__(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Calls `run`. Returns what runs it again, and its result, which a replay overwrites."""


class CudaCapture:
    """Graphs share one memory pool: only one runs at a time. Call it on the step's thread, in
    inference mode, while nobody else uses the device."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        run()  # compiles kernels and makes workspaces: neither can be captured
        graph = torch.cuda.CUDAGraph()
        # A cudaMalloc of another thread is its own affair.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = run()
        return graph.replay, result


class EagerCapture:
    """The plain twin: runs everything again, for any device."""

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        result = run()

        def replay() -> None:
            result.copy_(run())

        return replay, result


class DecodeGraphs:
    """Runs steps of single tokens, up to `most_rows` of them with up to `most_blocks` each."""

    def __init__(
        self,
        forward: Forward,
        capture: Capture,
        *,
        most_rows: int,
        most_blocks: int,
        device: torch.device,
    ) -> None:
        self._forward = forward
        self._capture = capture
        self._sizes = batch_sizes(most_rows)
        self._inputs = _padding(most_rows, most_blocks, device)
        self._graphs: dict[int, tuple[Replay, Tensor]] = {}

    def capture(self) -> None:
        """All sizes, the largest first: the others fit into the memory that it took."""
        for rows in reversed(self._sizes):
            inputs = _first_rows(self._inputs, rows)
            self._graphs[rows] = self._capture(partial(self._forward, inputs))

    def run(self, context: ForwardContext) -> Tensor | None:
        """States [T, hidden], valid until the next step; None: this step is not for a graph."""
        rows = len(context.lengths)
        single = context.token_ids.shape[0] == rows
        if not single or not self._graphs or rows > self._sizes[-1]:
            return None
        if context.block_tables.shape[1] > self._inputs.block_tables.shape[1]:
            return None
        size = self._sizes[bisect_left(self._sizes, rows)]
        self._fill(context, rows, size)
        replay, states = self._graphs[size]
        replay()
        return states[:rows]

    def _fill(self, context: ForwardContext, rows: int, size: int) -> None:
        """What a row of padding holds besides its slot and length does not matter."""
        inputs, width = self._inputs, context.block_tables.shape[1]
        inputs.token_ids[:rows].copy_(context.token_ids)
        inputs.positions[:rows].copy_(context.positions)
        inputs.slots[:rows].copy_(context.slots)
        inputs.lengths_tensor[:rows].copy_(context.lengths_tensor)
        inputs.block_tables[:rows, :width].copy_(context.block_tables)
        inputs.slots[rows:size].fill_(NOWHERE)
        inputs.lengths_tensor[rows:size].fill_(0)


def batch_sizes(most: int) -> list[int]:
    """1, 2, 4, 8, 16, 24, ... and `most` itself: padding costs less than eight rows."""
    return [*(size for size in (1, 2, 4) if size < most), *range(8, most, 8), most]


def _padding(rows: int, blocks: int, device: torch.device) -> ForwardContext:
    """A step that consists of padding."""
    wide = partial(torch.zeros, dtype=torch.int64, device=device)
    narrow = partial(torch.zeros, dtype=torch.int32, device=device)
    return ForwardContext(
        token_ids=wide(rows),
        positions=wide(rows),
        slots=wide(rows).fill_(NOWHERE),
        sample_rows=wide(0),
        block_tables=narrow(rows, blocks),
        starts=tuple(range(rows + 1)),
        lengths=(0,) * rows,
        starts_tensor=torch.arange(rows + 1, dtype=torch.int32, device=device),
        lengths_tensor=narrow(rows),
    )


def _first_rows(context: ForwardContext, rows: int) -> ForwardContext:
    """Views of the first single-token chunks."""
    return ForwardContext(
        token_ids=context.token_ids[:rows],
        positions=context.positions[:rows],
        slots=context.slots[:rows],
        sample_rows=context.sample_rows,
        block_tables=context.block_tables[:rows],
        starts=context.starts[: rows + 1],
        lengths=context.lengths[:rows],
        starts_tensor=context.starts_tensor[: rows + 1],
        lengths_tensor=context.lengths_tensor[:rows],
    )
