"""The gateway's answers, whole and streamed, in process."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from router.gateway.app import create_app
from tests.router.fake_generator import FakeGenerator
from workers.core.rng import derived_seed

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "demo", "prompt": "hi"}
CHAT_URL = "/v1/chat/completions"
TEXT_URL = "/v1/completions"
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 4},
}


def client(generator: FakeGenerator, **kwargs: Any) -> httpx.AsyncClient:
    app = create_app(generator, **{"ready": lambda: True, **kwargs})
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def post(url: str, body: dict[str, Any], generator: FakeGenerator) -> dict[str, Any]:
    async with client(generator) as http:
        response = await http.post(url, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def events(url: str, body: dict[str, Any], generator: FakeGenerator) -> list[dict[str, Any]]:
    """The chunks of a stream that ends well."""
    async with client(generator) as http:
        response = await http.post(url, json={**body, "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_chat() -> None:
    generator = FakeGenerator()
    answer = await post(CHAT_URL, CHAT, generator)
    (call,) = generator.calls
    assert call.prompt == [{"role": "user", "content": "hi"}]
    assert call.request_id == answer["id"] and answer["id"].startswith("chatcmpl-")
    assert call.params.max_tokens is None and call.params.temperature == 1.0
    assert answer["object"] == "chat.completion" and answer["model"] == "demo"
    assert answer["usage"] == USAGE
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


async def test_chat_stream() -> None:
    chunks = await events(CHAT_URL, CHAT, FakeGenerator())
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 3 + ["stop"]


async def test_stream_usage_comes_last_and_is_null_before() -> None:
    for url, body in ((CHAT_URL, CHAT), (TEXT_URL, TEXT)):
        body = {**body, "stream_options": {"include_usage": True}}
        *chunks, last = await events(url, body, FakeGenerator())
        assert all(chunk["usage"] is None for chunk in chunks)
        assert last["choices"] == [] and last["usage"] == USAGE


async def test_chat_logprobs() -> None:
    body = {**CHAT, "logprobs": True, "top_logprobs": 2}
    answer = await post(CHAT_URL, body, FakeGenerator("a", "b"))
    content = answer["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["t1", "t11"]
    assert content[0]["logprob"] == -0.5 and content[0]["bytes"] == list(b"t1")
    assert [top["token"] for top in content[1]["top_logprobs"]] == ["t10", "t11"]
    chunks = await events(CHAT_URL, body, FakeGenerator("a", "b"))
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry for part in streamed if part for entry in part["content"]] == content


async def test_logprobs_without_alternatives() -> None:
    answer = await post(CHAT_URL, {**CHAT, "logprobs": True}, FakeGenerator("a"))
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_tokens_whose_text_is_held_back_keep_their_logprobs() -> None:
    chunks = await events(CHAT_URL, {**CHAT, "logprobs": True}, FakeGenerator("", "", "abc"))
    shown = [c["choices"][0] for c in chunks if c["choices"][0]["logprobs"]]
    assert [choice["delta"]["content"] for choice in shown] == ["", "", "abc"]


async def test_completion() -> None:
    generator = FakeGenerator()
    answer = await post(TEXT_URL, TEXT, generator)
    (call,) = generator.calls
    assert call.prompt == "hi" and call.params.max_tokens == 16
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert answer["usage"] == USAGE
    choice = {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}
    assert answer["choices"] == [choice]


async def test_completion_stream() -> None:
    chunks = await events(TEXT_URL, TEXT, FakeGenerator())
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hel", "lo"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]


async def test_completion_logprobs() -> None:
    body = {**TEXT, "logprobs": 1}
    answer = await post(TEXT_URL, body, FakeGenerator("a", "b"))
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["t1", "t11"],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{"t0": -0.25, "t1": -0.5}, {"t10": -0.25, "t11": -1.5}],
        "text_offset": [0, 2],
    }
    chunks = await events(TEXT_URL, body, FakeGenerator("a", "b"))
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [2]]


@pytest.mark.parametrize(
    "prompt, prompts",
    [
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
async def test_prompt_shapes(prompt: object, prompts: list[object]) -> None:
    generator = FakeGenerator("x")
    answer = await post(TEXT_URL, {**TEXT, "prompt": prompt}, generator)
    assert sorted(call.prompt for call in generator.calls) == prompts
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(prompts)))
    assert answer["usage"]["prompt_tokens"] == 7 * len(prompts)
    assert len({call.request_id for call in generator.calls}) == len(prompts)


async def test_n_samples_have_their_own_seeds_and_share_the_prompt() -> None:
    generator = FakeGenerator("x", "y")
    answer = await post(CHAT_URL, {**CHAT, "n": 3, "seed": 5}, generator)
    assert [call.params.seed for call in generator.calls] == [
        derived_seed(5, i) & (2**63 - 1) for i in range(3)
    ]
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["xy"] * 3
    assert answer["usage"]["prompt_tokens"] == 7 and answer["usage"]["completion_tokens"] == 6
    generator.calls.clear()
    await post(CHAT_URL, {**CHAT, "n": 2}, generator)
    assert [call.params.seed for call in generator.calls] == [None, None]


async def test_streamed_samples_are_told_apart_by_index() -> None:
    chunks = await events(CHAT_URL, {**CHAT, "n": 2}, FakeGenerator("x", "y"))
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant" and mine[-1]["finish_reason"] == "stop"
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "xy"


async def test_all_sampling_fields_arrive() -> None:
    fields = {
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 1,
        "seed": 3,
        "stop": "END",
        "stop_token_ids": [5, 6],
        "ignore_eos": True,
        "max_tokens": 9,
        "min_tokens": 2,
        "logit_bias": {"7": -100},
    }
    generator = FakeGenerator()
    await post(TEXT_URL, {**TEXT, **fields, "logprobs": 3, "cache_salt": "mine"}, generator)
    (call,) = generator.calls
    expected = {**fields, "stop": ("END",), "stop_token_ids": (5, 6), "logit_bias": {7: -100.0}}
    assert {name: getattr(call.params, name) for name in fields} == expected
    assert call.params.logprobs == 3 and call.cache_salt == "mine"


async def test_null_means_the_default() -> None:
    generator = FakeGenerator()
    nulls = dict.fromkeys(("temperature", "top_p", "n", "stop", "seed", "max_tokens", "tools"))
    await post(CHAT_URL, {**CHAT, **nulls, "stream": None}, generator)
    await post(CHAT_URL, CHAT, generator)
    assert generator.calls[0].params == generator.calls[1].params


@pytest.mark.parametrize("off", [-1, 0])
async def test_top_k_off(off: int) -> None:
    generator = FakeGenerator()
    await post(CHAT_URL, {**CHAT, "top_k": off}, generator)
    assert generator.calls[0].params.top_k == 0


async def test_max_completion_tokens_goes_before_max_tokens() -> None:
    generator = FakeGenerator()
    await post(CHAT_URL, {**CHAT, "max_tokens": 5, "max_completion_tokens": 3}, generator)
    assert generator.calls[0].params.max_tokens == 3


async def test_message_forms() -> None:
    generator = FakeGenerator()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": [], "audio": None},
        {"role": "tool", "content": "d", "tool_call_id": "1"},
    ]
    await post(CHAT_URL, {**CHAT, "messages": messages}, generator)
    assert generator.calls[0].prompt == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "tool", "content": "d"},
    ]


async def test_fields_we_ignore_or_take_at_their_default() -> None:
    harmless = {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "store": False}
    default = {"response_format": {"type": "text"}, "tool_choice": "none", "modalities": ["text"]}
    await post(CHAT_URL, {**CHAT, **harmless, **default}, FakeGenerator())
    await post(TEXT_URL, {**TEXT, "best_of": 1, "echo": False, "suffix": None}, FakeGenerator())


async def test_models() -> None:
    async with client(FakeGenerator()) as http:
        listed = (await http.get("/v1/models")).json()
        one = (await http.get("/v1/models/org/other")).json()
    assert listed["object"] == "list" and [m["id"] for m in listed["data"]] == ["demo", "org/other"]
    assert one == listed["data"][1] and one["max_model_len"] == 64


async def test_health_follows_readiness() -> None:
    up = True
    async with client(FakeGenerator(), ready=lambda: up) as http:
        assert (await http.get("/health")).status_code == 200
        up = False
        response = await http.get("/health")
        assert response.status_code == 503


async def test_metrics_are_there_unless_switched_off() -> None:
    registry = CollectorRegistry()
    Counter("kvasir_things", "Things.", registry=registry).inc()
    async with client(FakeGenerator(), registry=registry) as http:
        assert "kvasir_things_total 1.0" in (await http.get("/metrics")).text
    async with client(FakeGenerator()) as http:
        assert (await http.get("/metrics")).status_code == 404


async def test_request_ids() -> None:
    async with client(FakeGenerator()) as http:
        echoed = await http.post(CHAT_URL, json=CHAT, headers={"x-request-id": "mine-1"})
        made = await http.get("/nothing")
        forged = await http.get("/health", headers={"x-request-id": "a b" * 100})
    assert echoed.headers["x-request-id"] == "mine-1"
    assert made.headers["x-request-id"].startswith("req-")
    assert forged.headers["x-request-id"].startswith("req-")


async def test_the_content_type_does_not_matter() -> None:
    async with client(FakeGenerator()) as http:
        raw = json.dumps(CHAT).encode()
        response = await http.post(CHAT_URL, content=raw, headers={"content-type": "text/plain"})
    assert response.status_code == 200
