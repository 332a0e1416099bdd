"""A request as the engine sees it, and the sequence it becomes while it runs."""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from workers.core.hashing import BlockHasher


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens; defaults choose plainly from the model's distribution.

    `logprobs`: None = none; n = the chosen token's and n alternatives. `max_tokens` None = until
    the context is full. `top_k` 0 = whole vocabulary. temperature 0 = greedy.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    logprobs: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


@dataclass(frozen=True, slots=True)
class Request:
    """`token_ids` is the prompt and, on a retry, what was emitted already; `prompt_len` of them are
    the client's. `attempt` is echoed with every token, so that a late worker cannot speak twice."""

    id: str
    token_ids: tuple[int, ...]
    prompt_len: int
    params: SamplingParams
    attempt: int = 0
    cache_salt: str = ""
    traceparent: str = ""
    tracestate: str = ""


class SampledToken(NamedTuple):
    """`position` is the index in prompt + output. `top_logprobs` = ((token, logprob), ...)."""

    id: int
    position: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class SequenceStatus(StrEnum):
    """See TRANSITIONS for who may become what."""

    WAITING = "waiting"  # in the queue, holds no pages
    RESERVED = "reserved"  # decode side: pages held while KV is on its way
    RUNNING = "running"
    HELD = "held"  # stands still, pages pinned for a ticket: prefilled, or on its way elsewhere
    FINISHED = "finished"


S = SequenceStatus
TRANSITIONS: frozenset[tuple[SequenceStatus, SequenceStatus]] = frozenset(
    {
        (S.WAITING, S.RUNNING),  # admitted: prefix matched, pages for all its tokens allocated
        (S.WAITING, S.RESERVED),  # receiving side: pages allocated, KV still to arrive
        (S.WAITING, S.FINISHED),  # aborted in the queue
        (S.RESERVED, S.RUNNING),  # KV arrived
        (S.RESERVED, S.FINISHED),  # fetch failed or cancelled
        (S.RUNNING, S.WAITING),  # preempted: pages given back, computed again later
        (S.RUNNING, S.HELD),  # prefill done, or frozen to be handed on; a ticket pins the pages
        (S.RUNNING, S.FINISHED),  # stop, length, abort
        (S.HELD, S.RUNNING),  # nobody took it: it goes on here
        (S.HELD, S.FINISHED),  # ticket redeemed, released or expired
    }
)


class Sequence:
    """The running state of one request: tokens, pages, and how far its KV reaches.

    `num_computed` tokens have their KV in `blocks`; sampling needs num_computed == len(tokens).
    `num_cached` is how many of them were found in the prefix cache when it was admitted. While
    steps are under way, `num_launched` tokens will have their KV once those are over, and
    `num_awaited` tokens that follow `tokens` are being sampled. It ends with `most_tokens`.

    `hold`: it stands still after its next token; `frozen`: only until it is known who goes on with
    it. `pinned`: somebody else reads its pages, so it is not preempted. `to_come`: tokens that
    arrive with its KV (receiving side).
    """

    def __init__(
        self,
        request: Request,
        hasher: BlockHasher,
        *,
        hold: bool = False,
        to_come: int = 0,
        most_tokens: int | None = None,
    ) -> None:
        self.request = request
        self.id = request.id
        self.params = request.params
        self.tokens: list[int] = list(request.token_ids)
        self.prompt_len = request.prompt_len
        self.hasher = hasher
        self.hold = hold
        self.frozen = False
        self.pinned = False
        self.to_come = to_come
        self.status = SequenceStatus.WAITING
        self.shard = 0  # where its blocks lie
        self.blocks: array[int] = array("i")  # not a list: a step copies the ids of every sequence
        self.most_tokens = sys.maxsize if most_tokens is None else most_tokens
        self.num_computed = 0
        self.num_launched = 0
        self.num_awaited = 0
        self.steps_under_way = 0
        self.num_cached = 0
        self.num_committed = 0  # leading blocks that stand in the hash table
        self.admitted_at: float | None = None  # on the engine's clock, the first time
        self.finish_reason: FinishReason | None = None
        self.story: list[str] = []

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def num_unlaunched(self) -> int:
        """Tokens, known or awaited, whose KV no step computes yet."""
        return len(self.tokens) + self.num_awaited - self.num_launched

    def begin_at(self, num_tokens: int) -> None:
        """Their KV is in its pages; no step is under way."""
        self.num_computed = self.num_launched = num_tokens

    def __repr__(self) -> str:
        return (
            f"Sequence({self.id} {self.status} tokens={len(self.tokens)} "
            f"computed={self.num_computed} blocks={len(self.blocks)})"
        )
