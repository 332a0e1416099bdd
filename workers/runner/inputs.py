"""Batch -> tensors."""

from __future__ import annotations

from itertools import accumulate

import torch

from workers.attention.context import ForwardContext
from workers.core.batch import Batch, Chunk


def build_context(batch: Batch, block_size: int, device: torch.device) -> ForwardContext:
    """Reads the sequences now: nothing of them is needed once this has returned."""
    chunks = sorted(batch.chunks, key=_place)
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    last_rows: dict[Chunk, int] = {}
    for chunk in chunks:
        sequence = chunk.sequence
        assert len(sequence.blocks) * block_size >= chunk.end, f"no page for {chunk}"
        span = range(chunk.start, chunk.end)
        token_ids += sequence.tokens[chunk.start : chunk.end]
        positions += span
        slots += [sequence.blocks[i // block_size] * block_size + i % block_size for i in span]
        last_rows[chunk] = len(token_ids) - 1

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    pages = [-(-chunk.end // block_size) for chunk in chunks]
    tables = torch.empty((len(pages), max(pages)), dtype=torch.int64)
    for row, (chunk, count) in enumerate(zip(chunks, pages, strict=True)):
        tables[row, :count] = torch.tensor(chunk.sequence.blocks[:count])
        tables[row, count:] = chunk.sequence.blocks[0]
    return ForwardContext(
        token_ids=tensor(token_ids),
        positions=tensor(positions),
        slots=tensor(slots),
        block_tables=tables.to(device),
        starts=(0, *accumulate(chunk.num_tokens for chunk in chunks)),
        lengths=tuple(chunk.end for chunk in chunks),
        sample_rows=tensor([last_rows[chunk] for chunk in batch.chunks if chunk.sample]),
    )


def _place(chunk: Chunk) -> tuple[bool, int]:
    """Single tokens by the length of what they attend to, then the others as they come."""
    return (False, chunk.end) if chunk.num_tokens == 1 else (True, 0)
