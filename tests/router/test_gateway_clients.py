"""The gateway behind a real server: the official client, and clients that leave in any phase."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from router.gateway.app import create_app
from tests.router.fake_generator import FakeGenerator, serving
from workers.core.errors import Overloaded, Unavailable

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator("Hel", "lo ", "👋")


@pytest.fixture
async def address(generator: FakeGenerator) -> AsyncIterator[str]:
    async with serving(create_app(generator, ready=lambda: True, max_body_bytes=100_000)) as base:
        yield base


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_the_official_client_chats(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="demo", messages=MESSAGES, logprobs=True, top_logprobs=2, extra_body={"top_k": 5}
    )
    assert answer.choices[0].message.content == "Hello 👋"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [2, 2, 2]


async def test_the_official_client_streams(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="demo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    async for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        usage = chunk.usage or usage
    assert text == "Hello 👋" and usage is not None and usage.total_tokens == 10


async def test_the_official_client_completes_text(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model="demo", prompt=["a", "b"], n=2, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["Hello 👋"] * 4
    stream = await client.completions.create(model="demo", prompt=[1, 2, 3], stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello 👋"


async def test_the_official_client_without_async(address: str) -> None:
    def talk() -> tuple[str, list[str], str | None]:
        with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
            streamed = "".join(c.choices[0].delta.content or "" for c in stream)
            models = [model.id for model in client.models.list()]
            answer = client.chat.completions.create(model="demo", messages=MESSAGES)
            return streamed, models, answer.choices[0].message.content

    assert await asyncio.to_thread(talk) == ("Hello 👋", ["demo", "org/other"], "Hello 👋")


async def test_answers_can_be_sent_back(client: AsyncOpenAI, generator: FakeGenerator) -> None:
    answer = await client.chat.completions.create(model="demo", messages=MESSAGES)
    history = [*MESSAGES, answer.choices[0].message, {"role": "user", "content": "and?"}]
    await client.chat.completions.create(model="demo", messages=history)
    dumped = answer.choices[0].message.model_dump()
    await client.chat.completions.create(model="demo", messages=[*MESSAGES, dumped])
    assert [message["role"] for message in generator.calls[1].prompt] == [  # type: ignore[index]
        *("user", "assistant", "user"),
    ]


async def test_the_official_clients_errors(client: AsyncOpenAI, generator: FakeGenerator) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.BadRequestError, match="temperature"):
        await create(model="demo", messages=MESSAGES, temperature=5)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await create(model="gpt-9", messages=MESSAGES)
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-9")
    generator.error = Overloaded("the queue is full", retry_after_s=4)
    with pytest.raises(openai.RateLimitError, match="queue is full") as caught:
        await create(model="demo", messages=MESSAGES)
    assert caught.value.response.headers["retry-after"] == "4"
    with pytest.raises(openai.RateLimitError):
        await create(model="demo", messages=MESSAGES, stream=True)
    generator.error = Unavailable("no decode worker")
    with pytest.raises(openai.InternalServerError, match="no decode worker"):
        await create(model="demo", messages=MESSAGES)
    generator.error_at = 1
    stream = await create(model="demo", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="no decode worker"):
        async for _ in stream:
            pass


async def send(
    address: str, body: dict[str, Any]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request on a bare connection, which a test can break."""
    port = int(address.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\n\r\n"
    writer.write(head.encode() + raw)
    await writer.drain()
    return reader, writer


async def ended(generator: FakeGenerator, count: int) -> None:
    async with asyncio.timeout(10):
        while generator.ended < count:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("gate_at", [0, 2])
async def test_a_client_that_leaves_frees_what_it_held(
    address: str, generator: FakeGenerator, stream: bool, n: int, gate_at: int
) -> None:
    """While waiting for the first token, and between two."""
    generator.gate_at = gate_at
    body = {"model": "demo", "messages": MESSAGES, "stream": stream, "n": n}
    reader, writer = await send(address, body)
    await generator.started.wait()
    if stream and gate_at > 0:
        await reader.readuntil(b"Hel")
    assert generator.ended == 0
    writer.close()
    await ended(generator, n)
    assert not generator.gate.is_set()


async def test_a_client_that_leaves_while_it_sends(address: str, generator: FakeGenerator) -> None:
    port = int(address.rsplit(":", 1)[1])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
        await client.models.list()
    assert generator.calls == []


async def test_a_cancelled_stream_of_the_official_client(
    client: AsyncOpenAI, generator: FakeGenerator
) -> None:
    generator.gate_at = 1
    stream = await client.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await ended(generator, 1)


async def test_a_body_over_the_limit_is_refused_before_it_is_read(address: str) -> None:
    port = int(address.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n{")
    assert b" 413 " in await reader.readline()
    writer.close()


async def test_many_streams_at_once(client: AsyncOpenAI, generator: FakeGenerator) -> None:
    async def one() -> str:
        stream = await client.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert await asyncio.gather(*(one() for _ in range(20))) == ["Hello 👋"] * 20
    assert generator.ended == 20
