"""Steps of a model over pages without an engine: chunks in, the logits of all their tokens out."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.config import EngineConfig
from workers.core.batch import Batch, Chunk
from workers.core.hashing import BlockHasher
from workers.core.request import Request, SamplingParams, Sequence
from workers.parallel.group import SINGLE, Ranks
from workers.runner.forward import Forward
from workers.runner.inputs import build_inputs, to_device
from workers.runner.load import load_forward

BLOCK = 4
CPU = torch.device("cpu")
NONE_SAMPLED = torch.zeros(0, dtype=torch.int64)


def tokens_of(seed: int, length: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(260) for _ in range(length)]


def new_sequence(tokens: list[int], blocks: list[int], name: str = "a") -> Sequence:
    request = Request(name, tuple(tokens), len(tokens), SamplingParams(temperature=0.0))
    sequence = Sequence(request, BlockHasher(b"", BLOCK))
    sequence.blocks = array("i", blocks)
    return sequence


def load(
    directory: Path, dtype: Any = "float32", *, ranks: Ranks = SINGLE, **sizes: Any
) -> Forward:
    config = EngineConfig(**{"dtype": dtype, "block_size": BLOCK, "kv_tokens": 1200} | sizes)
    return load_forward(str(directory), config, ranks=ranks, device="cpu")[1]


def step(forward: Forward, *chunks: tuple[Sequence, int, int]) -> Tensor | None:
    """Logits [T, vocab] of every token of a step over (sequence, start, end), in this order; None
    on a rank that has none."""
    batch = Batch(tuple(Chunk(s, start, end - start, True) for s, start, end in chunks))
    context = to_device(build_inputs(batch, BLOCK, {}), CPU, NONE_SAMPLED)
    with torch.inference_mode():
        found = forward.decoder.logits(forward.hidden(context))
    if found is None:
        return None
    ends = [row + 1 for row in context.sample_rows.tolist()]  # rows stand in another order
    spans = [(end - chunk.num_tokens, end) for end, chunk in zip(ends, batch.chunks, strict=True)]
    return torch.cat([found[start:end] for start, end in spans])


def logits(forward: Forward, *chunks: tuple[Sequence, int, int]) -> Tensor:
    """Of `step`, on a rank that has them."""
    found = step(forward, *chunks)
    assert found is not None
    return found
