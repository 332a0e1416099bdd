"""The router comparison without the routers: its mock, its client, its prompts, its table."""

from __future__ import annotations

import asyncio

import pytest

from load_tests.peers import router_mock
from load_tests.peers.router_client import at_once, http_request, one_by_one
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
