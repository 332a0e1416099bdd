"""What the two front doors (gRPC service, OpenAI gateway) ask of the router, in core types.

A Call goes in, Deltas come out; errors are KvasirErrors, raised before the first delta or between
two. Closing the iterator cancels the request on every worker.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from router.tracing.visit import Visit
from workers.core.request import FinishReason, SampledToken, SamplingParams

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Terms:
    """How a client wants to be treated. `slo_class` None = the default one; `deadline_s`: an answer
    that begins later, counted from the call, is of no use to it; `priority` orders what waits of
    one tenant and class, higher first."""

    slo_class: str | None = None
    tenant: str = ""
    deadline_s: float | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """`prompt`: text (BOS added where the model has one), token ids (used as they are), or chat
    messages ({"role", "content"}: the model's template is applied). `also`: other names that the
    client has for the request. `visit`: the call at the door that it is a part of, traced."""

    model: str
    prompt: Prompt
    params: SamplingParams
    request_id: str
    cache_salt: str = ""
    terms: Terms = Terms()
    also: tuple[str, ...] = ()
    visit: Visit | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that became certain and the tokens that came with it. The last delta, and only it, has
    finish_reason and usage. Stop strings are cut off; text that may begin one is held back."""

    text: str
    tokens: tuple[SampledToken, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    id: str
    context_length: int
    created: int  # unix seconds


class Generator(Protocol):
    def models(self) -> list[ModelCard]: ...

    def serves(self, model: str) -> bool:
        """Whether it is one of these."""

    def token_text(self, token_id: int) -> str:
        """The token as logprobs show it."""

    def generate(self, call: Call) -> AsyncGenerator[Delta]: ...
