"""A runner without a model, for virtual time: any corruption of pages changes its tokens.

Each KV slot holds hash(token, position). The next token is a hash over every slot the sequence
reads, so a page that was reused, missed or mixed up shows as a wrong token: `sim_next_token` says
which is right.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from hashlib import blake2b
from typing import TypeAlias

from workers.core import request
from workers.core.batch import Batch, Chunk, StepOutput
from workers.core.request import SampledToken
from workers.core.runner import ModelInfo

SLOT_BYTES = 8

# A chunk, with its sequence's blocks and tokens at the time it was launched.
_Work: TypeAlias = tuple[Chunk, "array[int]", list[int]]


def _slot(token: int, position: int) -> bytes:
    return blake2b(f"{token},{position}".encode(), digest_size=SLOT_BYTES).digest()


def _draw(slots: bytes, vocab_size: int) -> int:
    return int.from_bytes(blake2b(slots, digest_size=8).digest(), "little") % vocab_size


def sim_next_token(tokens: Sequence[int], vocab_size: int) -> int:
    """The token that follows `tokens` when no page was ever corrupted."""
    return _draw(b"".join(_slot(token, i) for i, token in enumerate(tokens)), vocab_size)


class SimPages:
    """Pages in one bytearray; staging is a memoryview. Each of the `heads` that they have is an
    equal part of a slot."""

    def __init__(
        self, num_blocks: int, block_size: int, *, heads: int = 1, slot_bytes: int = SLOT_BYTES
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.block_bytes = block_size * slot_bytes
        self._heads = heads
        self._slot_bytes = slot_bytes
        self._data = bytearray(num_blocks * self.block_bytes)

    def new_staging(self, num_bytes: int) -> memoryview:
        return memoryview(bytearray(num_bytes))

    def gather(
        self, blocks: Sequence[int], staging: memoryview, heads: slice | None = None
    ) -> None:
        parts = (bytes(self._data[at]) for at in self._parts(blocks, heads))
        data = b"".join(parts)
        staging[: len(data)] = data

    def scatter(
        self, staging: memoryview, blocks: Sequence[int], heads: slice | None = None
    ) -> None:
        start = 0
        for at in self._parts(blocks, heads):
            end = start + at.stop - at.start
            self._data[at] = staging[start:end]
            start = end

    def _parts(self, blocks: Sequence[int], heads: slice | None) -> Iterator[slice]:
        """Where the bytes of these heads lie, one run after another."""
        if heads is None or heads == slice(0, self._heads):
            for block in blocks:
                yield slice(block * self.block_bytes, (block + 1) * self.block_bytes)
            return
        width = self._slot_bytes // self._heads
        for block in blocks:
            start = block * self.block_bytes
            for at in range(start, start + self.block_bytes, self._slot_bytes):
                yield slice(at + heads.start * width, at + heads.stop * width)

    def to_bytes(self, staging: memoryview, num_bytes: int) -> bytes:
        return bytes(staging[:num_bytes])

    def from_bytes(self, data: bytes) -> memoryview:
        return memoryview(bytearray(data))

    def write(self, blocks: Sequence[int], position: int, slot: bytes) -> None:
        at = self._offset(blocks, position)
        self._data[at : at + SLOT_BYTES] = slot

    def read(self, blocks: Sequence[int], num_tokens: int) -> bytes:
        whole = b"".join(self._block(block) for block in blocks)
        return whole[: num_tokens * SLOT_BYTES]

    def _block(self, block: int) -> bytearray:
        return self._data[block * self.block_bytes : (block + 1) * self.block_bytes]

    def _offset(self, blocks: Sequence[int], position: int) -> int:
        block = blocks[position // self.block_size]
        return block * self.block_bytes + position % self.block_size * SLOT_BYTES


class SimRunner:
    """`step_seconds(batch)` is how long a step takes on the loop's clock."""

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int = 4,
        context_length: int = 512,
        vocab_size: int = 1000,
        kv_abi: str = "sim",
        eos_token_ids: tuple[int, ...] = (),
        shards: int = 1,
        step_seconds: Callable[[Batch], float] = lambda batch: 0.001 * batch.num_tokens,
    ) -> None:
        self.pages = SimPages(num_blocks, block_size)
        self.info = ModelInfo(
            vocab_size=vocab_size,
            context_length=context_length,
            eos_token_ids=eos_token_ids,
            kv_abi=kv_abi,
            kv_bytes_per_token=SLOT_BYTES,
            shards=shards,
        )
        self._device = asyncio.Lock()
        self._sampled: dict[request.Sequence, int] = {}  # by the batch before
        self._step_seconds = step_seconds

    def execute(self, batch: Batch) -> Awaitable[StepOutput]:
        """Writes first, reads after the step's time has passed: a page given to somebody else in
        between is seen."""
        work = [(c, c.sequence.blocks[:], c.sequence.tokens[:]) for c in batch.chunks]
        return self._execute(batch, work)

    async def _execute(self, batch: Batch, work: list[_Work]) -> StepOutput:
        async with self._device:  # first come, first served
            for chunk, blocks, tokens in work:
                if chunk.start == len(tokens):
                    tokens.append(self._sampled[chunk.sequence])
                for position in range(chunk.start, chunk.end):
                    self.pages.write(blocks, position, _slot(tokens[position], position))
            await asyncio.sleep(self._step_seconds(batch))
            choices = [self._sample(chunk, blocks) for chunk, blocks, _ in work if chunk.sample]
            sampling = (chunk.sequence for chunk in batch.chunks if chunk.sample)
            self._sampled = {seq: token.id for seq, token in zip(sampling, choices, strict=True)}
            return StepOutput(tuple(choices))

    def _sample(self, chunk: Chunk, blocks: array[int]) -> SampledToken:
        slots = self.pages.read(blocks, chunk.end)
        return SampledToken(_draw(slots, self.info.vocab_size), position=chunk.end)

    async def close(self) -> None:
        return None
