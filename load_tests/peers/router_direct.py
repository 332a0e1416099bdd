"""Asks one of our workers what a router would ask it: token ids over gRPC."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

from load_tests.peers.router_client import Answer, Messages
from router.worker_client import WorkerClient
from workers.core.request import Request, SamplingParams
from workers.text import Tokenizer

Send = Callable[[Messages, int], Awaitable[Answer]]


@asynccontextmanager
async def worker_connection(model: Path, port: int) -> AsyncIterator[Send]:
    """Tokenising is not in the times."""
    tokenizer = Tokenizer.load(str(model))
    client = WorkerClient("direct", f"127.0.0.1:{port}")
    numbers = itertools.count()

    async def send(messages: Messages, tokens: int) -> Answer:
        ids = tuple(tokenizer.apply_chat_template(messages))
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        request = Request(f"direct-{next(numbers)}", ids, len(ids), params, attempt=1)
        first, sent = 0.0, perf_counter()
        stream = client.decode(request)
        while (event := await stream.read()) is not None:
            if not first and event.HasField("tokens"):
                first = perf_counter()
        return Answer(first - sent, perf_counter() - sent)

    try:
        yield send
    finally:
        await client.close()
