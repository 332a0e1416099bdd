"""Batch -> tensors."""

from __future__ import annotations

import math
from array import array

import torch
from torch import Tensor

from workers.attention.context import ForwardContext
from workers.core.batch import Batch


def build_context(batch: Batch, block_size: int, device: torch.device) -> ForwardContext:
    """Reads the sequences now: nothing of them is needed once this has returned."""
    # Single tokens by the length of what they attend to, then the others as they come.
    places = [chunk.start if chunk.num_tokens == 1 else math.inf for chunk in batch.chunks]
    order = sorted(range(len(places)), key=places.__getitem__)
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    tables: list[array[int]] = []
    starts = [0]
    lengths: list[int] = []
    for index in order:
        sequence, start, count, _ = batch.chunks[index]
        end = start + count
        blocks = sequence.blocks[: -(-end // block_size)]
        assert len(blocks) * block_size >= end, f"no page for {sequence} up to {end}"
        if count == 1:
            token_ids.append(sequence.tokens[start])
            positions.append(start)
            slots.append(blocks[-1] * block_size + start % block_size)
        else:
            span = range(start, end)
            token_ids += sequence.tokens[start:end]
            positions += span
            slots += [blocks[i // block_size] * block_size + i % block_size for i in span]
        tables.append(blocks)
        starts.append(len(token_ids))
        lengths.append(end)
    return make_context(
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        sample_rows=_sample_rows(batch, order, starts),
        tables=tables,
        starts=starts,
        lengths=lengths,
        device=device,
    )


def make_context(
    *,
    token_ids: list[int],
    positions: list[int],
    slots: list[int],
    sample_rows: list[int],
    tables: list[array[int]],
    starts: list[int],
    lengths: list[int],
    device: torch.device,
) -> ForwardContext:
    """The fields of a ForwardContext as host data; `tables`: the block ids ("i") of each chunk."""
    width = max(map(len, tables))
    table = bytearray().join(
        blocks if len(blocks) == width else blocks + blocks[:1] * (width - len(blocks))
        for blocks in tables
    )
    # One buffer and one copy for all: what is small costs by the call. 8-byte items first.
    wide = [array("q", values) for values in (token_ids, positions, slots, sample_rows)]
    narrow: list[array[int] | bytearray] = [array("i", starts), array("i", lengths), table]
    data = _to_device(bytearray().join([*wide, *narrow]), device)
    num_wide = sum(map(len, wide))
    counts = [len(starts), len(lengths), len(tables) * width]
    ids, places, at, rows = data[: 8 * num_wide].view(torch.int64).split([*map(len, wide)])
    offsets, ends, pages = data[8 * num_wide :].view(torch.int32).split(counts)
    return ForwardContext(
        token_ids=ids,
        positions=places,
        slots=at,
        sample_rows=rows,
        block_tables=pages.view(len(tables), width),
        starts=tuple(starts),
        lengths=tuple(lengths),
        starts_tensor=offsets,
        lengths_tensor=ends,
    )


def _to_device(data: bytearray, device: torch.device) -> Tensor:
    """uint8, over the bytes themselves on a CPU."""
    host = torch.frombuffer(data, dtype=torch.uint8)
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)


def _sample_rows(batch: Batch, order: list[int], starts: list[int]) -> list[int]:
    """The last row of each sampling chunk, in the batch's order. `order`: of its chunks in T."""
    last = [0] * len(order)
    for place, chunk in enumerate(order):
        last[chunk] = starts[place + 1] - 1
    return [row for row, chunk in zip(last, batch.chunks, strict=True) if chunk.sample]
