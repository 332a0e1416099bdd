"""What clients may send: OpenAI's fields that we do and vLLM's extra ones.

Types, and what only this door knows, are checked here; ranges that gRPC clients must keep too are
checked once for both, in workers/core/validation.py.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from workers.core.request import SamplingParams
from workers.core.rng import derived_seed
from workers.core.validation import MAX_LOGPROBS, MAX_SEED, MAX_TOKENS

T = TypeVar("T")

MAX_CHOICES = 64  # prompts times n of one call
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


def refusal(problem: str, param: str | None = None) -> PydanticCustomError:
    """For validators; `param` where the field at fault is not the one being validated."""
    return PydanticCustomError("refusal", "{problem}", {"problem": problem, "param": param})


def _between(low: int, high: int) -> AfterValidator:
    def check(value: int) -> int:
        if not low <= value <= high:
            raise refusal(f"is {str(value)[:40]}; it must lie in [{low}, {high}]")
        return value

    return AfterValidator(check)


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _token_biases(value: object) -> object:
    """JSON has only strings for keys."""
    if not isinstance(value, dict):
        return value
    if not all(key.isascii() and key.isdigit() and len(key) <= 10 for key in value):
        raise refusal("must map token ids to numbers")
    return {int(key): bias for key, bias in value.items()}


def _text_of(content: object) -> object:
    """A list of text parts is their text, one a line."""
    if content is None:
        raise refusal("is required; there are no tool calls here yet")
    if not isinstance(content, list):
        return content
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise refusal(f"has a part [{i}] that is not of type text, the only one supported yet")
        if not isinstance(part.get("text"), str):
            raise refusal(f"has a part [{i}] without a text")
    return "\n".join(part["text"] for part in content)


def _prompts(value: object) -> list[str | list[int]]:
    """All four shapes as the last: a list of texts or of lists of token ids."""
    if isinstance(value, str) or (isinstance(value, list) and value and _are_tokens(value)):
        value = [value]
    if not isinstance(value, list) or not value:
        raise refusal("must be a text, a list of token ids, or a list of such")
    if not (all(isinstance(entry, str) for entry in value) or all(map(_are_tokens, value))):
        raise refusal("must hold only texts, or only lists of token ids")
    return value


def _are_tokens(value: object) -> bool:
    return isinstance(value, list) and all(type(entry) is int for entry in value)


def _none_if_empty(value: object) -> object:
    return None if value == [] else value


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


Int = Annotated[
    int, _between(-(1 << 63), (1 << 64) - 1)
]  # workers/core/validation.py knows the rest
Absent = Annotated[None, BeforeValidator(_none_if_empty)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # accepted; chunks are never padded


class Message(_Strict):
    """`name` and `tool_call_id` have no place in our templates; what says nothing is let through,
    so that an assistant's message can be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_text_of)]
    name: str | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: Absent = None
    audio: Absent = None
    function_call: Absent = None
    tool_calls: Absent = None

    def plain(self) -> dict[str, str]:
        """Templates know "developer" by its older name."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content}


class SamplingBody(_Strict):
    """What both endpoints share. Null means the default everywhere, as at OpenAI."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, _between(1, 16)] | None = None
    max_tokens: Int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Int | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_one_or_many)] = None
    logit_bias: Annotated[dict[int, float] | None, BeforeValidator(_token_biases)] = None
    top_k: Int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int | None = None
    stop_token_ids: list[Int] | None = None
    ignore_eos: bool | None = None
    cache_salt: str | None = Field(None, max_length=256)
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> SamplingBody:
        if self.stream_options is not None and not self.stream:
            raise refusal("is only allowed when stream is true", "stream_options")
        return self

    @property
    def samples(self) -> int:
        return _or(self.n, 1)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, sample: int, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """Of one of the n samples: each has its own seed, derived from the one given."""
        return SamplingParams(
            temperature=_or(self.temperature, 1.0),
            top_k=0 if self.top_k is None or self.top_k == -1 else self.top_k,
            top_p=_or(self.top_p, 1.0),
            min_p=_or(self.min_p, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            seed=None if self.seed is None else derived_seed(self.seed, sample) & MAX_SEED,
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            max_tokens=max_tokens,
            min_tokens=_or(self.min_tokens, 0),
            logprobs=logprobs,
            logit_bias=_or(self.logit_bias, {}),
        )


class ChatBody(SamplingBody):
    """POST /v1/chat/completions. Without a limit an answer may fill the context."""

    messages: list[Message]
    max_completion_tokens: Annotated[int, _between(1, MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, _between(0, MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _check(self) -> ChatBody:
        if not self.messages:
            raise refusal("must not be empty", "messages")
        if self.top_logprobs is not None and not self.logprobs:
            raise refusal("is only allowed when logprobs is true", "top_logprobs")
        return self

    def sample_params(self, sample: int) -> SamplingParams:
        limit = self.max_completion_tokens or self.max_tokens
        return self.sampling(sample, limit, _or(self.top_logprobs, 0) if self.logprobs else None)


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    prompt: Annotated[list[str | list[int]], PlainValidator(_prompts)]
    logprobs: Annotated[int, _between(0, MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _check(self) -> CompletionBody:
        if len(self.prompt) * self.samples > MAX_CHOICES:
            problem = f"holds {len(self.prompt)} prompts; times n at most {MAX_CHOICES} are allowed"
            raise refusal(problem, "prompt")
        return self

    def sample_params(self, sample: int) -> SamplingParams:
        return self.sampling(sample, _or(self.max_tokens, COMPLETION_TOKENS), self.logprobs)
