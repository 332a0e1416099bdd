"""The router comparison without the routers: its mock, its client, its prompts, its table."""

from __future__ import annotations

import asyncio
import json

import pytest

from load_tests.peers import router_mock, router_turns
from load_tests.peers.router_client import (
    at_once,
    count_tokens,
    http_request,
    one_by_one,
)
from load_tests.peers.router_compare import COLUMNS, table
from load_tests.peers.router_model import Prose, alone, shared

PROMPT = [{"role": "user", "content": "How cold is the river?"}]


async def test_the_mock_streams_to_the_client() -> None:
    async with await asyncio.start_server(router_mock.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        requests = [http_request(PROMPT, 3, {"x-name": "value"})] * 5
        answers = [*await one_by_one(port, requests), *await at_once(port, iter(requests), 2)]
    assert len(answers) == 10
    assert all(0 < answer.first_s <= answer.whole_s for answer in answers)


async def test_the_client_takes_no_other_answer() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Busy\r\n\r\nnot now")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        with pytest.raises(RuntimeError, match="503 Busy.*\n.*\n*not now"):
            await one_by_one(server.sockets[0].getsockname()[1], [http_request(PROMPT, 3)])


@pytest.mark.parametrize(
    "usage, counted", [({"prompt_tokens": 11, "completion_tokens": 3}, (11, 3)), (None, None)]
)
async def test_tokens_are_counted_by_the_last_usage_of_a_stream(
    usage: dict[str, int] | None, counted: tuple[int, int] | None
) -> None:
    chunks = [{"choices": [{"delta": {"content": " word"}}], "usage": None}, {"usage": usage}]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        if counted is None:
            with pytest.raises(RuntimeError, match="no usage"):
                await count_tokens(port, PROMPT, 3)
        else:
            assert await count_tokens(port, PROMPT, 3) == counted


@pytest.mark.parametrize("size", [2_048, 16_384])
def test_prompts_have_the_size_asked_for_and_share_what_they_should(size: int) -> None:
    prose = Prose(1)
    single, halves = list(alone(prose, size, 40)), list(shared(prose, size, 40))
    for prompt in (*single, *halves):
        assert sum(len(message["content"].encode()) for message in prompt) == size
    assert len({prompt[0]["content"] for prompt in single}) == 40
    assert len({prompt[0]["content"] for prompt in halves}) == 16
    assert len({prompt[1]["content"] for prompt in halves}) == 40


def test_the_table_has_a_line_for_each_router_and_prompt() -> None:
    rows = [
        {"router": router, "kind": "alone", "size": 2_048} | dict.fromkeys(COLUMNS, float(repeat))
        for repeat in (1, 2, 4)
        for router in ("ours", "theirs")
    ]
    head, _, *lines = table(rows).splitlines()
    assert len(lines) == 2 and head.count("|") == lines[0].count("|")
    assert lines[0].startswith("| 2,048 | alone | ours | 2.00 (1.00-4.00) |")


def test_the_table_has_no_figure_for_workers_that_only_their_router_can_ask() -> None:
    row = {"router": "theirs", "kind": "alone", "size": 2_048} | dict.fromkeys(COLUMNS, 1.0)
    known = {key: value for key, value in row.items() if not key.startswith("direct")}
    [line] = table([known]).splitlines()[2:]
    assert line.split(" | ").count("-") == sum(key.startswith("direct") for key in COLUMNS) > 0


def test_turns_are_compared_round_by_round() -> None:
    # The second round falls into a busy moment: the ratio of the medians would be 1.
    costs = {(2_048, "alone"): {"ours": [1.0, 4.0, 2.0], "theirs": [2.0, 8.0, 1.0]}}
    lines = router_turns.table(costs).splitlines()[2:]
    assert lines == [
        "| 2,048 | alone | ours | 2.00 (1.00-4.00) | 1.00 |",
        "| 2,048 | alone | theirs | 2.00 (1.00-8.00) | 0.50 |",
    ]
