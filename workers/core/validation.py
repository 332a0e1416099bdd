"""What a request may ask: gateway, gRPC clients and the offline LLM get the same answers."""

from __future__ import annotations

import math
from collections.abc import Iterable

from workers.core.errors import InvalidRequest
from workers.core.request import SamplingParams

MAX_TOKENS = (1 << 31) - 1
MAX_SEED = (1 << 63) - 1
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_STOP_TOKENS = 1024
MAX_LOGPROBS = 20
MAX_NAME = 256
MAX_PRIORITY = 1000
MIN_REPETITION_PENALTY = 0.009999999776482582  # 0.01 as the float32 that messages carry


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """Raises InvalidRequest that names the field, what it is and what it may be."""
    _within("temperature", params.temperature, 0.0, 2.0)
    _within("top_p", params.top_p, 0.0, 1.0, open_low=True)
    _within("min_p", params.min_p, 0.0, 1.0)
    _within("repetition_penalty", params.repetition_penalty, MIN_REPETITION_PENALTY, 10.0)
    _within("presence_penalty", params.presence_penalty, -2.0, 2.0)
    _within("frequency_penalty", params.frequency_penalty, -2.0, 2.0)
    _within("top_k", params.top_k, 0, MAX_TOKENS)
    if params.seed is not None:
        _within("seed", params.seed, 0, MAX_SEED)
    if params.max_tokens is not None:
        _within("max_tokens", params.max_tokens, 1, MAX_TOKENS)
        if params.min_tokens > params.max_tokens:
            raise InvalidRequest(
                f"min_tokens is {params.min_tokens}, more than max_tokens, {params.max_tokens}",
                param="min_tokens",
            )
    _within("min_tokens", params.min_tokens, 0, MAX_TOKENS)
    if params.logprobs is not None:
        _within("logprobs", params.logprobs, 0, MAX_LOGPROBS)
    _check_stop(params.stop)
    if len(params.stop_token_ids) > MAX_STOP_TOKENS:
        raise InvalidRequest(
            f"stop_token_ids has {len(params.stop_token_ids)} ids, at most {MAX_STOP_TOKENS}",
            param="stop_token_ids",
        )
    check_token_ids(params.stop_token_ids, vocab_size, "stop_token_ids")
    check_token_ids(params.logit_bias, vocab_size, "logit_bias")
    for bias in params.logit_bias.values():
        _within("logit_bias", bias, -100.0, 100.0)


def check_names(**names: str) -> None:
    """Names by their fields: they travel with every message and stand in every log line."""
    for param, value in names.items():
        if len(value) > MAX_NAME:
            raise InvalidRequest(
                f"{param} has {len(value)} characters, at most {MAX_NAME}", param=param
            )


def check_priority(priority: int) -> None:
    _within("priority", priority, -MAX_PRIORITY, MAX_PRIORITY)


def check_token_ids(ids: Iterable[int], vocab_size: int, param: str) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"{param}: token id {token} is outside the vocabulary of {vocab_size}", param=param
            )


def _check_stop(stop: tuple[str, ...]) -> None:
    if isinstance(stop, str):
        raise InvalidRequest("stop must be a list of strings", param="stop")
    if len(stop) > MAX_STOPS:
        raise InvalidRequest(f"stop has {len(stop)} strings, at most {MAX_STOPS}", param="stop")
    for text in stop:
        if not text:
            raise InvalidRequest("stop has an empty string", param="stop")
        if len(text) > MAX_STOP_LENGTH:
            raise InvalidRequest(
                f"stop has a string of {len(text)} characters, at most {MAX_STOP_LENGTH}",
                param="stop",
            )


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    too_low = value <= low if open_low else value < low
    if not math.isfinite(value) or too_low or value > high:
        bracket = "(" if open_low else "["
        raise InvalidRequest(
            f"{name} is {_shown(value)}; it must lie in {bracket}{_shown(low)}, {_shown(high)}]",
            param=name,
        )


def _shown(value: float) -> str:
    """Integers in full."""
    return str(value) if isinstance(value, int) else f"{value:g}"
