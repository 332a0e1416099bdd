"""Bad requests and failing generators: OpenAI's error object, its status, the field's name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from router.gateway.app import create_app
from tests.router.fake_generator import FakeGenerator
from workers.core.errors import (
    ContextTooLong,
    InvalidRequest,
    KvasirError,
    Overloaded,
    Unavailable,
)

CHAT_URL = "/v1/chat/completions"
TEXT_URL = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator("a", "b", "c")


@pytest.fixture
async def http(generator: FakeGenerator) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(generator, ready=lambda: True, max_body_bytes=10_000)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def refused(http: httpx.AsyncClient, url: str, status: int, **kwargs: Any) -> dict[str, Any]:
    response = await http.post(url, **kwargs)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


CHAT_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"frobnicate": 1}, "frobnicate", "unknown field 'frobnicate'"),
    ({"messages": None}, "messages", "valid list, not null"),
    ({"messages": []}, "messages", "must not be empty"),
    ({"messages": "hi"}, "messages", "valid list, not a string"),
    ({"messages": ["hi"]}, "messages[0]", "not a string"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "is required"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "is required"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "not a number"),
    ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role", "'assistant'"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "is required"),
    ({"messages": [{**MESSAGES[0], "mood": 1}]}, "messages[0].mood", "unknown field"),
    (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
        "messages[0].tool_calls",
        "not an array",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content",
        "not of type text",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content", "[0]"),
    ({"model": None}, "model", "not null"),
    ({"model": 7}, "model", "not a number"),
    ({"temperature": "hot"}, "temperature", "valid number, not a string"),
    ({"temperature": True}, "temperature", "not a boolean"),
    ({"temperature": -1}, "temperature", "[0, 2]"),
    ({"temperature": 2.5}, "temperature", "[0, 2]"),
    ({"temperature": 10**400}, "temperature", "number"),
    ({"top_p": 0}, "top_p", "(0, 1]"),
    ({"min_p": 1.5}, "min_p", "[0, 1]"),
    ({"presence_penalty": 3}, "presence_penalty", "[-2, 2]"),
    ({"frequency_penalty": -3}, "frequency_penalty", "[-2, 2]"),
    ({"repetition_penalty": 0}, "repetition_penalty", "[0.01, 10]"),
    ({"n": 0}, "n", "[1, 16]"),
    ({"n": 17}, "n", "[1, 16]"),
    ({"n": 1.5}, "n", "integer"),
    ({"max_tokens": 0}, "max_tokens", "[1,"),
    ({"max_tokens": -5}, "max_tokens", "[1,"),
    ({"max_tokens": 10**30}, "max_tokens", "must lie in"),
    ({"max_tokens": 10**4000}, "max_tokens", "must lie in"),
    ({"max_tokens": "5"}, "max_tokens", "integer, not a string"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "[1,"),
    ({"min_tokens": 9, "max_tokens": 5}, "min_tokens", "more than max_tokens"),
    ({"top_k": -2}, "top_k", "[0,"),
    ({"seed": 1.5}, "seed", "integer"),
    ({"seed": 1 << 70}, "seed", "must lie in"),
    ({"top_logprobs": 2}, "top_logprobs", "logprobs is true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "[0, 20]"),
    ({"logprobs": 1}, "logprobs", "boolean"),
    ({"stop": ""}, "stop", "empty"),
    ({"stop": ["x"] * 17}, "stop", "at most 16"),
    ({"stop": [1]}, "stop[0]", "string"),
    ({"stop_token_ids": [10**6]}, "stop_token_ids", "outside the vocabulary"),
    ({"stop_token_ids": 5}, "stop_token_ids", "list"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "[-100, 100]"),
    ({"logit_bias": [1]}, "logit_bias", "dictionary"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "when stream is true"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown field"),
    ({"tools": [{"type": "function"}]}, "tools", "not supported yet"),
    ({"tool_choice": "required"}, "tool_choice", "not supported yet"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported yet"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "not supported yet"),
    ({"store": True}, "store", "not supported yet"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault, param, words", CHAT_FAULTS, ids=[f"{i}-{f[1]}" for i, f in enumerate(CHAT_FAULTS)]
)
async def test_chat_faults_name_the_field(
    http: httpx.AsyncClient, fault: dict[str, Any], param: str, words: str, stream: bool
) -> None:
    body = {"model": "demo", "messages": MESSAGES, "stream": stream, **fault}
    if stream and fault.get("stream_options") and "stream" not in fault:
        return  # allowed there
    error = await refused(http, CHAT_URL, 400, content=json.dumps(body).encode())
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert words in error["message"] and param in error["message"], error["message"]


@pytest.mark.parametrize(
    "fault, param",
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a"] * 33, "n": 2}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": True}, "best_of"),
        ({"echo": 0}, "echo"),
        ({"messages": MESSAGES}, "messages"),
    ],
)
async def test_completion_faults(
    http: httpx.AsyncClient, fault: dict[str, Any], param: str
) -> None:
    body = {"model": "demo", "prompt": "hi", **fault}
    error = await refused(http, TEXT_URL, 400, content=json.dumps(body).encode())
    assert error["param"] == param and param in error["message"]


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"model": NaN}', "NaN is not a JSON number"),
        (b'{"model": -Infinity}', "-Infinity is not a JSON number"),
        (b"\xff\xfe\xfd", "not valid JSON"),
        (b"[" * 9_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 9_000 + b"}", "not valid JSON"),
        (b'{"model": "\\uD800"}', "surrogates not allowed"),
        (b'{"\\udfff": 1}', "surrogates not allowed"),
        (b'{"\\ud83d\\ude00": 1}', "unknown field '\U0001f600'"),
        (b"[]", "must be a JSON object, not an array"),
        (b"null", "must be a JSON object, not null"),
        (b'"hi"', "must be a JSON object, not a string"),
    ],
)
async def test_bodies_that_are_no_object(http: httpx.AsyncClient, raw: bytes, words: str) -> None:
    error = await refused(http, CHAT_URL, 400, content=raw)
    assert words in error["message"]


async def test_infinite_numbers_in_disguise(http: httpx.AsyncClient) -> None:
    raw = b'{"model": "demo", "messages": [{"role": "user", "content": ""}], "top_p": 1e999}'
    assert (await refused(http, CHAT_URL, 400, content=raw))["param"] == "top_p"


async def test_unknown_model(http: httpx.AsyncClient) -> None:
    for stream in (False, True):
        body = {"model": "gpt-9", "messages": MESSAGES, "stream": stream}
        error = await refused(http, CHAT_URL, 404, json=body)
        assert error["code"] == "model_not_found" and "served here: demo" in error["message"]
    response = await http.get("/v1/models/gpt-9")
    assert response.status_code == 404 and response.json()["error"]["param"] == "model"


async def test_unknown_paths_and_methods(http: httpx.AsyncClient) -> None:
    error = await refused(http, "/v1/embeddings", 404, json={})
    assert "/v1/embeddings" in error["message"]
    response = await http.get(CHAT_URL)
    assert response.status_code == 405 and response.headers["allow"] == "POST"
    assert "does not take GET" in response.json()["error"]["message"]


async def test_body_over_the_limit_by_its_own_word(http: httpx.AsyncClient) -> None:
    error = await refused(http, CHAT_URL, 413, content=b" " * 10_001)
    assert "10000 bytes" in error["message"]


async def test_body_over_the_limit_while_it_comes_in(http: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * 1000

    await refused(http, CHAT_URL, 413, content=pieces())


ERRORS = [
    (Overloaded("full", retry_after_s=2.3), 429, "rate_limit_error", "3"),
    (Unavailable("nobody there"), 503, "service_unavailable_error", None),
    (Unavailable("starting", retry_after_s=0.2), 503, "service_unavailable_error", "1"),
    (ContextTooLong(3000, 2048), 400, "invalid_request_error", None),
    (InvalidRequest("no", param="prompt"), 400, "invalid_request_error", None),
    (KvasirError("broken"), 500, "server_error", None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error, status, kind, retry", ERRORS)
async def test_errors_before_the_first_token_have_their_status(
    http: httpx.AsyncClient,
    generator: FakeGenerator,
    stream: bool,
    error: KvasirError,
    status: int,
    kind: str,
    retry: str | None,
) -> None:
    generator.error = error
    for n in (1, 2):
        body = {"model": "demo", "messages": MESSAGES, "stream": stream, "n": n}
        response = await http.post(CHAT_URL, json=body)
        assert response.status_code == status
        assert response.headers.get("retry-after") == retry
        assert response.json()["error"]["type"] == kind
        assert response.json()["error"]["message"] == error.message
    assert generator.ended == len(generator.calls) == 3


async def test_context_errors_have_openais_code(
    http: httpx.AsyncClient, generator: FakeGenerator
) -> None:
    generator.error = ContextTooLong(3000, 2048)
    error = await refused(http, CHAT_URL, 400, json={"model": "demo", "messages": MESSAGES})
    assert error["code"] == "context_length_exceeded"
    assert "3000" in error["message"] and "2048" in error["message"]


@pytest.mark.parametrize(
    "url, prompt", [(CHAT_URL, {"messages": MESSAGES}), (TEXT_URL, {"prompt": "x"})]
)
async def test_an_error_within_a_stream_is_its_last_event(
    http: httpx.AsyncClient, generator: FakeGenerator, url: str, prompt: dict[str, Any]
) -> None:
    generator.error, generator.error_at = Unavailable("worker gone"), 1
    response = await http.post(url, json={"model": "demo", "stream": True, **prompt})
    assert response.status_code == 200
    *_, last, end = response.text.split("\n\n")
    assert end == "" and "[DONE]" not in response.text
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "worker gone"


async def test_an_error_in_the_middle_of_a_whole_answer(
    http: httpx.AsyncClient, generator: FakeGenerator
) -> None:
    generator.error, generator.error_at = Unavailable("worker gone"), 2
    await refused(http, CHAT_URL, 503, json={"model": "demo", "messages": MESSAGES, "n": 2})
    assert generator.ended == 2


async def test_bugs_are_hidden_but_answered(
    http: httpx.AsyncClient, generator: FakeGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(token_id: int) -> str:
        raise RuntimeError("secret")

    monkeypatch.setattr(generator, "token_text", broken)
    body = {"model": "demo", "prompt": "x", "logprobs": 1}
    error = await refused(http, TEXT_URL, 500, json=body)
    assert error["message"] == "internal error"


async def test_an_answer_without_an_end_is_an_error(
    http: httpx.AsyncClient, generator: FakeGenerator
) -> None:
    generator.pieces = ()
    error = await refused(http, CHAT_URL, 500, json={"model": "demo", "messages": MESSAGES})
    assert "finish reason" in error["message"]
