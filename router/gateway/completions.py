"""POST /v1/completions: calls from a body, and answers in OpenAI's older shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from router.api import Call, Delta, Terms
from router.gateway.answers import Choice, chunk_frame, logprob
from router.gateway.schemas import CompletionBody
from workers.core.request import SampledToken

ID_PREFIX = "cmpl-"


def completion_calls(body: CompletionBody, answer_id: str, terms: Terms) -> list[Call]:
    """n samples of the first prompt, then of the second, and so on: the order of `choices`."""
    calls = [
        (prompt, body.sample_params(sample))
        for prompt in body.prompt
        for sample in range(body.samples)
    ]
    return [
        Call(
            model=body.model,
            prompt=prompt,
            params=params,
            request_id=answer_id if len(calls) == 1 else f"{answer_id}-{index}",
            cache_salt=body.cache_salt or "",
            terms=terms,
        )
        for index, (prompt, params) in enumerate(calls)
    ]


class CompletionShape:
    def __init__(
        self, body: CompletionBody, answer_id: str, created: int, token_text: Callable[[int], str]
    ) -> None:
        self._head = {
            "id": answer_id,
            "object": "text_completion",
            "created": created,
            "model": body.model,
        }
        self._logprobs = body.logprobs is not None
        self._token_text = token_text
        self._offsets: dict[int, int] = {}  # choice -> characters in its tokens so far
        self._before, self._after = chunk_frame(self._head, body.include_usage)

    def chunks(self, index: int, delta: Delta) -> Iterator[str]:
        logprobs = self._logprobs_of(index, delta.tokens) if delta.tokens else None
        if not (delta.text or logprobs or delta.finish_reason):
            return
        shown = "null" if logprobs is None else json.dumps(logprobs)
        finish = "null" if delta.finish_reason is None else f'"{delta.finish_reason}"'
        yield (
            f'{self._before}{{"index": {index}, "text": {json.dumps(delta.text)}, '
            f'"logprobs": {shown}, "finish_reason": {finish}}}{self._after}'
        )

    def usage_chunk(self, usage: dict[str, Any]) -> str:
        return json.dumps({**self._head, "choices": [], "usage": usage})

    def whole(self, choices: Sequence[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        listed = [
            {
                "index": index,
                "text": choice.text,
                "logprobs": self._logprobs_of(index, choice.tokens),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "choices": listed, "usage": usage}

    def _logprobs_of(self, index: int, tokens: Sequence[SampledToken]) -> dict[str, Any] | None:
        """Parallel lists; offsets count characters of the choice's tokens from its beginning."""
        if not self._logprobs:
            return None
        texts = [self._token_text(token.id) for token in tokens]
        offsets = []
        offset = self._offsets.get(index, 0)
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        self._offsets[index] = offset
        return {
            "tokens": texts,
            "token_logprobs": [logprob(token.logprob) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": offsets,
        }

    def _top(self, token: SampledToken) -> dict[str, float]:
        """The likeliest, and the chosen one whether it is among them or not."""
        ranked = (*token.top_logprobs, (token.id, token.logprob))
        shown: dict[str, float] = {}
        for token_id, value in ranked:
            shown.setdefault(self._token_text(token_id), logprob(value))
        return shown
