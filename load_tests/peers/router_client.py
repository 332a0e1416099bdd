"""The client of the router comparison: plain sockets, kept alive, and little work of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import httpx

MODEL = "peers"
ANSWER_S = 60.0
Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds from sending to the first token and to the end."""

    first_s: float
    whole_s: float


Ask = Callable[[Any], Awaitable[Answer]]


def http_request(
    messages: Messages, tokens: int, headers: Mapping[str, str] | None = None
) -> bytes:
    data = json.dumps(_body(messages, tokens)).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return f"{head}{lines}\r\n".encode() + data


def _body(messages: Messages, tokens: int) -> dict[str, Any]:
    body = {"model": MODEL, "messages": messages, "max_tokens": tokens, "stream": True}
    return body | {"temperature": 0, "ignore_eos": True}


async def count_tokens(port: int, messages: Messages, tokens: int) -> tuple[int, int]:
    """Of the prompt and of the answer, as the usage at the end of a stream says.

    Raises RuntimeError where there is none.
    """
    body = _body(messages, tokens) | {"stream_options": {"include_usage": True}}
    async with httpx.AsyncClient(timeout=ANSWER_S, trust_env=False) as client:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        lines = (await client.post(url, json=body)).text.splitlines()
    for line in reversed(lines):
        if line.startswith("data: {") and (usage := json.loads(line[6:]).get("usage")):
            return usage["prompt_tokens"], usage["completion_tokens"]
    raise RuntimeError(f"no usage at the end of a stream: {lines[-3:]}")


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[Ask]:
    """Asks one request after the other. Raises RuntimeError for anything but a whole stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)

    async def ask(request: bytes) -> Answer:
        async with asyncio.timeout(ANSWER_S):
            sent = perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{head.decode()}{(await reader.read(300)).decode()}")
            await reader.readuntil(b'"content"')
            first = perf_counter()
            rest = await reader.readuntil(b"\r\n0\r\n\r\n")
            if b"[DONE]" not in rest:
                raise RuntimeError(f"a stream without its end: {rest[-300:]!r}")
            return Answer(first - sent, perf_counter() - sent)

    try:
        yield ask
    finally:
        writer.close()


async def one_by_one(port: int, requests: Iterable[bytes]) -> list[Answer]:
    async with connection(port) as ask:
        return [await ask(request) for request in requests]


async def at_once(port: int, requests: Iterable[bytes], connections: int) -> list[Answer]:
    """All of them over so many connections, each with one request at a time."""
    left, answers = iter(requests), []

    async def work() -> None:
        async with connection(port) as ask:
            for request in left:
                answers.append(await ask(request))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(work())
    return answers
