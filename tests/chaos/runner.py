"""What a simulated worker computes, and what it must have computed."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b

from workers.core.batch import Batch, Chunk, StepOutput
from workers.core.block_pool import BlockPool
from workers.core.request import FinishReason, Request, SampledToken
from workers.core.sim_runner import SimPages, SimRunner, _draw, _slot, _Work

BLOCK = 4
VOCAB = 1000
CONTEXT = 256


class WatchedPages(SimPages):
    """Pages that tell `wrong` when somebody touches what is not theirs (any more): what is read is
    referenced, what is written has one owner and cannot be found by others."""

    def __init__(self, num_blocks: int, wrong: Callable[[str], None]) -> None:
        super().__init__(num_blocks, BLOCK)
        self.pool: BlockPool | None = None  # that gives them out
        self._wrong = wrong

    def gather(
        self, blocks: Sequence[int], staging: memoryview, heads: slice | None = None
    ) -> None:
        for block in blocks:
            if self._owners(block) < 1:
                self._wrong(f"page {block} was gathered after it had been given back")
        super().gather(blocks, staging, heads)

    def scatter(
        self, staging: memoryview, blocks: Sequence[int], heads: slice | None = None
    ) -> None:
        for block in blocks:
            self._check_written(block, "scattered into")
        super().scatter(staging, blocks, heads)

    def write(self, blocks: Sequence[int], position: int, slot: bytes) -> None:
        self._check_written(blocks[position // BLOCK], "written by a step")
        super().write(blocks, position, slot)

    def _owners(self, block: int) -> int:
        assert self.pool is not None
        return self.pool._refs[block]

    def _check_written(self, block: int, how: str) -> None:
        assert self.pool is not None
        if self._owners(block) != 1:
            self._wrong(f"page {block} was {how} while it had {self._owners(block)} owners")
        elif self.pool._id_of[block] is not None:
            self._wrong(f"page {block} was {how} while others could find it")


class ChaosRunner(SimRunner):
    """A SimRunner whose choice depends on the request's seed too, and whose steps write their pages
    to the end. `slow` stretches them."""

    def __init__(self, num_blocks: int, wrong: Callable[[str], None]) -> None:
        super().__init__(
            num_blocks=num_blocks,
            block_size=BLOCK,
            context_length=CONTEXT,
            vocab_size=VOCAB,
            step_seconds=self._seconds,
        )
        self.slow = 1.0
        self.pages: WatchedPages = WatchedPages(num_blocks, wrong)

    def _seconds(self, batch: Batch) -> float:
        return self.slow * (0.015 + 0.001 * batch.num_tokens)

    async def _execute(self, batch: Batch, work: list[_Work]) -> StepOutput:
        output = await super()._execute(batch, work)
        for chunk, blocks, tokens in work:
            for position in range(chunk.start, chunk.end):
                self.pages.write(blocks, position, _slot(tokens[position], position))
        return output

    def _sample(self, chunk: Chunk, blocks: array[int]) -> SampledToken:
        plain = super()._sample(chunk, blocks)
        return plain._replace(id=_seeded(plain.id, chunk.sequence.params.seed, chunk.end))


def _seeded(id_: int, seed: int | None, position: int) -> int:
    if seed is None:
        return id_
    drawn = blake2b(f"{id_},{seed},{position}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "little") % VOCAB


def expected(asked: Request) -> tuple[tuple[int, ...], FinishReason]:
    """The tokens of an undisturbed run, and why it ends."""
    tokens = list(asked.token_ids)
    slots = b"".join(_slot(token, i) for i, token in enumerate(tokens))
    while True:
        token = _seeded(_draw(slots, VOCAB), asked.params.seed, len(tokens))
        slots += _slot(token, len(tokens))
        tokens.append(token)
        output = len(tokens) - asked.prompt_len
        if token in asked.params.stop_token_ids:
            return tuple(tokens[asked.prompt_len :]), FinishReason.STOP
        if output == asked.params.max_tokens:
            return tuple(tokens[asked.prompt_len :]), FinishReason.LENGTH


def with_stop(asked: Request, after: int) -> Request:
    """The same request, stopped by the token that comes `after` so many."""
    tokens, _ = expected(asked)
    stop = (tokens[after],) if after < len(tokens) else ()
    return replace(asked, params=replace(asked.params, stop_token_ids=stop))
