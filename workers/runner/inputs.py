"""Batch -> plain bytes, which may travel to other ranks -> tensors."""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Mapping
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from workers.attention.context import ForwardContext
from workers.core.batch import Batch
from workers.core.request import Sequence

_WIDE = 6  # int64 fields come first, then int32 ones


class StepInputs(NamedTuple):
    """`data` holds, one after another: int64 token_ids, positions and slots [T], sample_rows,
    awaited_rows, awaited_from; int32 starts [n + 1], lengths [n], block_tables [n, width].

    `counts` are the lengths of these nine. Row awaited_rows[i] continues with the token that the
    step before sampled at place awaited_from[i] of those it sampled.
    """

    counts: tuple[int, ...]
    data: bytearray

    @property
    def num_tokens(self) -> int:
        return self.counts[0]

    @property
    def num_sampled(self) -> int:
        return self.counts[3]

    @property
    def num_awaited(self) -> int:
        return self.counts[4]


EMPTY = StepInputs((0,) * 9, bytearray())


def build_parts(
    batch: Batch, block_size: int, sampled: Mapping[Sequence, int], shards: int, shard_blocks: int
) -> list[StepInputs]:
    """The inputs of each shard, which has so many blocks; see build_inputs."""
    if shards == 1:
        return [build_inputs(batch, block_size, sampled)]
    parts = [EMPTY] * shards
    for shard, chunks in groupby(batch.chunks, lambda chunk: chunk.sequence.shard):
        own = Batch(tuple(chunks))
        parts[shard] = build_inputs(own, block_size, sampled, shard * shard_blocks)
    return parts


def build_inputs(
    batch: Batch, block_size: int, sampled: Mapping[Sequence, int], first_block: int = 0
) -> StepInputs:
    """Reads the sequences now: nothing of them is needed once this has returned. `sampled`: at
    which place the step before samples, for those whose token is not known yet. `first_block`: of
    the shard; the pages behind the inputs are counted from there."""
    # Single tokens by the length of what they attend to, then the others as they come.
    places = [chunk.start if chunk.num_tokens == 1 else math.inf for chunk in batch.chunks]
    order = sorted(range(len(places)), key=places.__getitem__)
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    awaited_rows: list[int] = []
    awaited_from: list[int] = []
    tables: list[array[int]] = []
    starts = [0]
    lengths: list[int] = []
    for index in order:
        sequence, start, count, _ = batch.chunks[index]
        end = start + count
        blocks = sequence.blocks[: -(-end // block_size)]
        assert len(blocks) * block_size >= end, f"no page for {sequence} up to {end}"
        if first_block:
            blocks = array("i", [block - first_block for block in blocks])
        if count == 1:
            if start < len(sequence.tokens):
                token_ids.append(sequence.tokens[start])
            else:
                awaited_rows.append(len(token_ids))
                awaited_from.append(sampled[sequence])
                token_ids.append(0)
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
    return pack(
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        sample_rows=_sample_rows(batch, order, starts),
        awaited_rows=awaited_rows,
        awaited_from=awaited_from,
        tables=tables,
        starts=starts,
        lengths=lengths,
    )


def pack(
    *,
    token_ids: list[int],
    positions: list[int],
    slots: list[int],
    sample_rows: list[int],
    tables: list[array[int]],
    starts: list[int],
    lengths: list[int],
    awaited_rows: Collection[int] = (),
    awaited_from: Collection[int] = (),
) -> StepInputs:
    """The fields of a step; `tables`: the block ids ("i") of each chunk."""
    width = max(map(len, tables))
    table = bytearray().join(
        blocks if len(blocks) == width else blocks + blocks[:1] * (width - len(blocks))
        for blocks in tables
    )
    fields = (token_ids, positions, slots, sample_rows, awaited_rows, awaited_from)
    wide = [array("q", values) for values in fields]
    narrow: list[array[int] | bytearray] = [array("i", starts), array("i", lengths), table]
    counts = (*map(len, wide), len(starts), len(lengths), len(tables) * width)
    return StepInputs(counts, bytearray().join([*wide, *narrow]))


def to_device(inputs: StepInputs, device: torch.device, sampled: Tensor) -> ForwardContext:
    """One buffer and one copy for all: what is small costs by the call. `sampled`: int64 tokens of
    the step before; those below 0 are nobody's any more."""
    counts = inputs.counts
    num_wide = sum(counts[:_WIDE])
    data = _copied(inputs.data, device)
    wide = data[: 8 * num_wide].view(torch.int64).split(counts[:_WIDE])
    starts, lengths, tables = data[8 * num_wide :].view(torch.int32).split(counts[_WIDE:])
    num_chunks = counts[_WIDE + 1]
    host = memoryview(inputs.data)[8 * num_wide :].cast("i")
    if inputs.num_awaited:
        wide[0].index_copy_(0, wide[4], sampled[wide[5]].clamp_(min=0))
    return ForwardContext(
        token_ids=wide[0],
        positions=wide[1],
        slots=wide[2],
        sample_rows=wide[3],
        block_tables=tables.view(num_chunks, -1),
        starts=tuple(host[: num_chunks + 1]),
        lengths=tuple(host[num_chunks + 1 : 2 * num_chunks + 1]),
        starts_tensor=starts,
        lengths_tensor=lengths,
    )


def _copied(data: bytearray, device: torch.device) -> Tensor:
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
