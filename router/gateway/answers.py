"""Runs the calls of one HTTP request together and gives their deltas a shape: streamed or whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from router.api import Call, Delta, Generator, Usage
from router.gateway.sse import Emit
from workers.core.errors import KvasirError
from workers.core.request import FinishReason, SampledToken

_LOWEST_LOGPROB = -9999.0  # OpenAI's; JSON has no infinity


@dataclass
class Choice:
    """One call's whole answer."""

    text: str = ""
    tokens: list[SampledToken] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    usage: Usage | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.tokens += delta.tokens
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.usage = delta.usage or self.usage


class Shape(Protocol):
    """How one endpoint writes answers. Chunks are JSON texts."""

    def chunks(self, index: int, delta: Delta) -> Iterable[str]: ...

    def usage_chunk(self, usage: dict[str, Any]) -> str: ...

    def whole(self, choices: Sequence[Choice], usage: dict[str, Any]) -> dict[str, Any]: ...


async def stream(
    generator: Generator, calls: Sequence[Call], samples: int, shape: Shape, emit: Emit, usage: bool
) -> None:
    """Emit every choice's chunks as they come, and the usage at the end where it is asked for."""
    spent: list[Usage | None] = [None] * len(calls)

    async def take(index: int, delta: Delta) -> None:
        chunks = list(shape.chunks(index, delta))
        if chunks:
            await emit(*chunks)
        spent[index] = delta.usage or spent[index]

    await _run(generator, calls, take)
    if usage:
        await emit(shape.usage_chunk(_total(spent, samples)))


async def collect(
    generator: Generator, calls: Sequence[Call], samples: int, shape: Shape
) -> dict[str, Any]:
    choices = [Choice() for _ in calls]

    async def take(index: int, delta: Delta) -> None:
        choices[index].add(delta)

    await _run(generator, calls, take)
    return shape.whole(choices, _total([choice.usage for choice in choices], samples))


async def _run(
    generator: Generator,
    calls: Sequence[Call],
    take: Callable[[int, Delta], Awaitable[None]],
) -> None:
    """All calls at once. The first error ends the others; every iterator is closed in any case."""

    async def one(index: int, call: Call) -> None:
        finished = False
        async with aclosing(generator.generate(call)) as deltas:
            async for delta in deltas:
                await take(index, delta)
                finished = delta.finish_reason is not None
        if not finished:
            raise KvasirError("the answer broke off without a finish reason")

    if len(calls) == 1:
        await one(0, calls[0])
        return
    try:
        async with asyncio.TaskGroup() as group:
            for index, call in enumerate(calls):
                group.create_task(one(index, call))
    except* KvasirError as errors:
        raise errors.exceptions[0] from None


def _total(spent: Sequence[Usage | None], samples: int) -> dict[str, Any]:
    """A prompt counts once, however many samples were drawn of it."""
    done = [usage for usage in spent if usage is not None]
    prompts = done[::samples]
    prompt_tokens = sum(usage.prompt_tokens for usage in prompts)
    completion_tokens = sum(usage.completion_tokens for usage in done)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in prompts)},
    }


def logprob(value: float | None) -> float:
    return _LOWEST_LOGPROB if value is None else max(value, _LOWEST_LOGPROB)


def chunk_frame(head: dict[str, Any], include_usage: bool) -> tuple[str, str]:
    """What stands around the choices of every chunk: the constant part is written once."""
    before = json.dumps(head)[:-1] + ', "choices": ['
    return before, '], "usage": null}' if include_usage else "]}"
