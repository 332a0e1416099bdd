"""Sends one request to an OpenAI endpoint and notes when its tokens came."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from cluster.bench.workload import Job
from workers.core.clock import Clock
from workers.core.errors import Unavailable


@dataclass(slots=True)
class Sample:
    """One request as the client saw it. Times are the clock's; `due`: when it should have gone."""

    due: float
    sent: float
    arrivals: list[float] = field(default_factory=list)  # one per chunk that brought output
    ended: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.sent

    @property
    def e2e(self) -> float:
        return self.ended - self.sent

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]

    @property
    def mean_itl(self) -> float:
        """Seconds per token after the first, however the server bundles tokens into chunks."""
        return (self.arrivals[-1] - self.arrivals[0]) / max(1, self.output_tokens - 1)


class Target:
    """An OpenAI endpoint and one of its models."""

    def __init__(self, client: httpx.AsyncClient, clock: Clock, model: str) -> None:
        self._client = client
        self._clock = clock
        self.model = model
        self.takes_ids = True

    async def probe(self) -> None:
        """Find out whether prompts may be token ids. Raises Unavailable where nothing works."""
        for self.takes_ids in (True, False):
            sample = await self.send(Job(0.0, 4, 1, "probe"), due=self._clock.now())
            if sample.error is None:
                return
        raise Unavailable(f"{self._client.base_url} refuses a small request: {sample.error}")

    async def send(self, job: Job, *, due: float) -> Sample:
        """Never raises for what the server or the network does: that is the sample's `error`."""
        sample = Sample(due=due, sent=self._clock.now(), input_tokens=job.input_tokens)
        await self.stream(job, sample)
        return sample

    async def stream(self, job: Job, sample: Sample) -> None:
        """`send` for those who watch `sample` while it fills."""
        prompt = job.token_ids() if self.takes_ids else job.text()
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": job.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                if not response.is_success:
                    text = (await response.aread()).decode(errors="replace")
                    sample.error = f"HTTP {response.status_code}: {text[:300]}"
                else:
                    async for event in _events(response):
                        self._note(sample, event)
        except httpx.HTTPError as error:
            sample.error = f"{type(error).__name__}: {error}"
        except (ValueError, KeyError, TypeError) as error:
            sample.error = f"not an OpenAI stream: {error!r}"
        sample.ended = self._clock.now()
        if sample.error is None and not sample.arrivals:
            sample.error = "the stream ended without any output"

    def _note(self, sample: Sample, event: dict[str, Any]) -> None:
        if "error" in event:
            sample.error = str(event["error"])[:300]
            return
        for choice in event["choices"]:
            # Text may be empty while a character is incomplete; only the closing chunk has none.
            if choice["text"] or choice.get("finish_reason") is None:
                sample.arrivals.append(self._clock.now())
                sample.output_tokens += 1
        usage = event.get("usage")
        if usage:
            sample.input_tokens = usage["prompt_tokens"]
            sample.output_tokens = usage["completion_tokens"]
            details = usage.get("prompt_tokens_details") or {}
            sample.cached_tokens = details.get("cached_tokens") or 0


async def find_model(client: httpx.AsyncClient, wanted: str | None) -> tuple[str, int | None]:
    """(model id, context length where the server tells). Raises Unavailable."""
    try:
        response = await client.get("/v1/models")
        response.raise_for_status()
        cards = response.json()["data"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise Unavailable(f"no list of models from {client.base_url}: {error}") from None
    for card in cards:
        if wanted in (None, card["id"]):
            return card["id"], card.get("context_length") or card.get("max_model_len")
    names = ", ".join(card["id"] for card in cards) or "nothing"
    raise Unavailable(f"{client.base_url} does not serve {wanted!r}; it serves {names}")


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to [DONE]."""
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data = line[5:].strip()
            if data == "[DONE]":
                return
            yield json.loads(data)
