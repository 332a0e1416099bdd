"""POST /v1/chat/completions: calls from a body, and answers in OpenAI's chat shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from router.api import Call, Delta, Terms
from router.gateway.answers import Choice, chunk_frame, logprob
from router.gateway.schemas import ChatBody
from workers.core.request import SampledToken

ID_PREFIX = "chatcmpl-"


def chat_calls(body: ChatBody, answer_id: str, terms: Terms) -> list[Call]:
    """One for each of the n samples; they share the prompt and so, mostly, its KV."""
    prompt = [message.plain() for message in body.messages]
    return [
        Call(
            model=body.model,
            prompt=prompt,
            params=body.sample_params(sample),
            request_id=answer_id if body.samples == 1 else f"{answer_id}-{sample}",
            cache_salt=body.cache_salt or "",
            terms=terms,
        )
        for sample in range(body.samples)
    ]


class ChatShape:
    def __init__(
        self, body: ChatBody, answer_id: str, created: int, token_text: Callable[[int], str]
    ) -> None:
        self._head = {"id": answer_id, "created": created, "model": body.model}
        self._logprobs = bool(body.logprobs)
        self._token_text = token_text
        self._spoken: set[int] = set()  # choices whose role was said
        chunk_head = {**self._head, "object": "chat.completion.chunk"}
        self._before, self._after = chunk_frame(chunk_head, body.include_usage)

    def chunks(self, index: int, delta: Delta) -> Iterator[str]:
        """The role once, content as it comes, and the finish reason in a chunk of its own."""
        if index not in self._spoken:
            self._spoken.add(index)
            yield self._chunk(index, '{"role": "assistant", "content": ""}')
        logprobs = self._logprobs_of(delta.tokens) if delta.tokens else None
        if delta.text or logprobs:
            yield self._chunk(index, f'{{"content": {json.dumps(delta.text)}}}', logprobs)
        if delta.finish_reason is not None:
            yield self._chunk(index, "{}", finish=f'"{delta.finish_reason}"')

    def usage_chunk(self, usage: dict[str, Any]) -> str:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        return json.dumps(chunk)

    def whole(self, choices: Sequence[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        listed = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs_of(choice.tokens),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "object": "chat.completion", "choices": listed, "usage": usage}

    def _chunk(
        self,
        index: int,
        delta: str,
        logprobs: dict[str, Any] | None = None,
        finish: str = "null",
    ) -> str:
        shown = "null" if logprobs is None else json.dumps(logprobs)
        return (
            f'{self._before}{{"index": {index}, "delta": {delta}, "logprobs": {shown}, '
            f'"finish_reason": {finish}}}{self._after}'
        )

    def _logprobs_of(self, tokens: Sequence[SampledToken]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {"content": [self._token(token) for token in tokens], "refusal": None}

    def _token(self, token: SampledToken) -> dict[str, Any]:
        top = [self._entry(other, value) for other, value in token.top_logprobs]
        return {**self._entry(token.id, token.logprob), "top_logprobs": top}

    def _entry(self, token_id: int, value: float | None) -> dict[str, Any]:
        text = self._token_text(token_id)
        # A token may be a part of a character; then its bytes are not those of its text.
        raw = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": logprob(value), "bytes": raw}
