"""Batch -> tensors: which row is which, and where its KV goes."""

from __future__ import annotations

from array import array

import torch

from workers.attention.context import ForwardContext
from workers.core.batch import Batch, Chunk
from workers.core.hashing import BlockHasher
from workers.core.request import Request, SamplingParams, Sequence
from workers.runner.inputs import build_inputs, to_device

BLOCK = 4


def new_sequence(tokens: range, blocks: list[int]) -> Sequence:
    request = Request("r", tuple(tokens), len(tokens), SamplingParams(temperature=0.0))
    sequence = Sequence(request, BlockHasher(b"", BLOCK))
    sequence.blocks = array("i", blocks)
    return sequence


def context_of(
    batch: Batch, places: dict[Sequence, int] | None = None, sampled: list[int] | None = None
) -> ForwardContext:
    inputs = build_inputs(batch, BLOCK, places or {})
    tokens = torch.tensor(sampled or [], dtype=torch.int64)
    return to_device(inputs, torch.device("cpu"), tokens)


def test_single_tokens_come_first_by_length_then_the_others() -> None:
    long = new_sequence(range(100, 110), [7, 2, 5])
    prompt = new_sequence(range(200, 209), [9, 1, 4])
    short = new_sequence(range(300, 303), [8])
    silent = new_sequence(range(400, 406), [6, 3])
    batch = Batch(
        (
            Chunk(prompt, 3, 6, sample=True),
            Chunk(long, 9, 1, sample=True),
            Chunk(silent, 0, 5, sample=False),
            Chunk(short, 2, 1, sample=True),
        )
    )
    context = context_of(batch)
    assert context.token_ids.tolist() == [302, 109, *range(203, 209), *range(400, 405)]
    assert context.positions.tolist() == [2, 9, *range(3, 9), *range(5)]
    places = [(8, 2), (5, 1), (9, 3), (1, 0), (1, 1), (1, 2), (1, 3), (4, 0)]
    places += [(6, 0), (6, 1), (6, 2), (6, 3), (3, 0)]
    assert context.slots.tolist() == [block * BLOCK + offset for block, offset in places]
    assert context.block_tables.tolist() == [[8, 8, 8], [7, 2, 5], [9, 1, 4], [6, 3, 6]]
    assert context.starts == (0, 1, 2, 8, 13)
    assert context.lengths == (3, 10, 9, 5)
    assert context.sample_rows.tolist() == [7, 1, 0], "in the order of the batch"


def test_the_tensors_say_what_the_tuples_say() -> None:
    sequence = new_sequence(range(6), [2, 0])
    context = context_of(Batch((Chunk(sequence, 0, 4, False),)))
    assert context.starts_tensor.tolist() == list(context.starts) == [0, 4]
    assert context.lengths_tensor.tolist() == list(context.lengths) == [4]
    for tensor in (context.starts_tensor, context.lengths_tensor, context.block_tables):
        assert tensor.dtype is torch.int32 and tensor.is_contiguous()
    for tensor in (context.token_ids, context.positions, context.slots, context.sample_rows):
        assert tensor.dtype is torch.int64 and tensor.is_contiguous()
    assert context.sample_rows.numel() == 0


def test_a_step_that_runs_does_not_see_what_becomes_of_its_sequences() -> None:
    sequence = new_sequence(range(6), [2, 1])
    context = context_of(Batch((Chunk(sequence, 5, 1, True),)))
    sequence.tokens[5] = 77
    sequence.blocks[0] = 9
    assert context.token_ids.tolist() == [5]
    assert context.block_tables.tolist() == [[2, 1]]


def test_a_token_that_is_not_known_yet_comes_from_the_step_before() -> None:
    known = new_sequence(range(300, 303), [8])
    awaited = new_sequence(range(100, 105), [7, 2])
    over = new_sequence(range(100, 109), [1, 3, 5])
    chunks = (Chunk(over, 9, 1, True), Chunk(known, 2, 1, True), Chunk(awaited, 5, 1, True))
    sampled = [77, -1, 55]  # the second had no usable logits: its row must only do no harm
    context = context_of(Batch(chunks), {awaited: 2, over: 1}, sampled)
    assert context.token_ids.tolist() == [302, 55, 0]
    assert context.positions.tolist() == [2, 5, 9]
    assert context.sample_rows.tolist() == [2, 0, 1]
