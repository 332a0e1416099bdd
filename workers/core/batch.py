"""What one step runs, and what comes back. Plain data: no torch, any runner can read it.

What a step makes for each sequence is a NamedTuple: a frozen dataclass takes three times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from workers.core.errors import KvasirError
from workers.core.request import SampledToken, Sequence


class Chunk(NamedTuple):
    """`num_tokens` tokens of a sequence from `start` on. `sample`: it ends at the last token known,
    so its logits choose the next one."""

    sequence: Sequence
    start: int
    num_tokens: int
    sample: bool

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def is_decode(self) -> bool:
        return self.num_tokens == 1 and self.sample


@dataclass(frozen=True, slots=True)
class Batch:
    """Chunks of one step, shard by shard; in each decodes first, then prefill chunks."""

    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def context_tokens(self) -> int:
        """KV tokens that the step reads."""
        return sum(chunk.end for chunk in self.chunks)


Choice: TypeAlias = SampledToken | KvasirError  # an error ends its own sequence, no neighbour's


@dataclass(frozen=True, slots=True)
class StepOutput:
    """`tokens` has one entry for each sampling chunk, in the batch's order."""

    tokens: tuple[Choice, ...]


class SequenceUpdate(NamedTuple):
    """What a step did to one sequence: more of its prompt computed, a token, perhaps its end;
    `error`: why it ended before its time."""

    sequence: Sequence
    tokens: tuple[SampledToken, ...] = ()
    finished: bool = False
    error: KvasirError | None = None
