"""A Generator that says what a test tells it to, and a real HTTP server in the test's own loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

from router.api import Call, Delta, ModelCard, Usage
from workers.core.errors import KvasirError
from workers.core.request import FinishReason, SampledToken
from workers.core.validation import check_params

VOCAB = 1000


class FakeGenerator:
    """Answers each call with `pieces`, one token each. Token i reads "t<i>"; 999 is half a
    character. `gate` holds back the deltas from `gate_at` on until it is set."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces or ("Hel", "", "lo")
        self.calls: list[Call] = []
        self.started = asyncio.Event()
        self.ended = 0
        self.gate = asyncio.Event()
        self.gate_at: int | None = None
        self.error: KvasirError | None = None
        self.error_at = 0

    def models(self) -> list[ModelCard]:
        return [ModelCard("demo", 2048, 1_700_000_000), ModelCard("org/other", 64, 1_700_000_000)]

    def serves(self, model: str) -> bool:
        return model in ("demo", "org/other")

    def token_text(self, token_id: int) -> str:
        return "\ufffd" if token_id == 999 else f"t{token_id}"

    async def generate(self, call: Call) -> AsyncGenerator[Delta]:
        self.calls.append(call)
        check_params(call.params, VOCAB)
        self.started.set()
        try:
            for i, piece in enumerate(self.pieces):
                if i == self.gate_at:
                    await self.gate.wait()
                if self.error is not None and i == self.error_at:
                    raise self.error
                yield self._delta(call, i, piece)
        finally:
            await asyncio.sleep(0)  # closing takes a turn of the loop, as with real workers
            self.ended += 1

    def _delta(self, call: Call, i: int, piece: str) -> Delta:
        count = call.params.logprobs
        logprob = None if count is None else -0.5 - i
        top = tuple((10 * i + k, -0.25 - k) for k in range(count or 0))
        token = SampledToken(10 * i + 1, 7 + i, logprob, top)
        if i + 1 < len(self.pieces):
            return Delta(piece, (token,))
        usage = Usage(prompt_tokens=7, completion_tokens=len(self.pieces), cached_tokens=4)
        return Delta(piece, (token,), FinishReason.STOP, usage)


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """The base address of a real server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_keep_alive=1)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            while not server.started:  # uvicorn has no event for it
                await asyncio.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
