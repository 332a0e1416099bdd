"""An OpenAI endpoint that streams made-up tokens, for testing the load generator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass
class FakeOpenAI:
    takes_ids: bool = True
    fail_every: int | None = None
    hold: asyncio.Event | None = None  # answers wait for it
    bodies: list[dict[str, Any]] = field(default_factory=list)

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/completions", self.completions, methods=["POST"]),
            ]
        )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://fake") as client:
            yield client

    async def models(self, _: Request) -> Response:
        return JSONResponse({"data": [{"id": "fake", "max_model_len": 256}]})

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        if not self.takes_ids and not isinstance(body["prompt"], str):
            return JSONResponse({"error": {"message": "prompt must be text"}}, 400)
        self.bodies.append(body)
        if self.fail_every and len(self.bodies) % self.fail_every == 0:
            return JSONResponse({"error": {"message": "overloaded"}}, 429)
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        if self.hold is not None:
            await self.hold.wait()
        for number in range(body["max_tokens"]):
            last = number == body["max_tokens"] - 1
            choice = {"text": f" t{number}", "finish_reason": "length" if last else None}
            yield f"data: {json.dumps({'choices': [choice]})}\n\n"
        usage = {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": body["max_tokens"],
            "prompt_tokens_details": {"cached_tokens": 1},
        }
        yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"
