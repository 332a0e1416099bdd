"""Connections that dawdle or flood: they end, and nobody else notices."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

import httpx
import pytest

from router.config import Address
from router.doors.http import MAX_HEAD_BYTES, SILENT_MS, Patience, listen, serve_http
from router.gateway.app import create_app
from tests.router.fake_generator import FakeGenerator

POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
QUICK = Patience(body_bytes=10_000, head_s=0.3, message_s=0.3)
CALM = Patience(body_bytes=10_000, head_s=60.0, message_s=60.0)


@asynccontextmanager
async def door(patience: Patience, generator: FakeGenerator | None = None) -> AsyncIterator[int]:
    app = create_app(
        generator or FakeGenerator(),
        ready=lambda: True,
        max_body_bytes=patience.body_bytes,
    )
    with listen("http", Address(port=0)) as sock:
        port = sock.getsockname()[1]
        async with asyncio.timeout(60), serve_http(app, sock, 1.0, patience):
            yield port


async def answer(port: int, *pieces: bytes, again: bytes = b"") -> bytes:
    """All that comes back until the server closes. `again` is sent until then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reading = asyncio.create_task(reader.read())
    try:
        for piece in pieces:
            writer.write(piece)
        while again and not reading.done():
            writer.write(again)
            await asyncio.wait_for(writer.drain(), 10)
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    try:
        return await reading
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def works(port: int) -> bool:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        return (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ((), b"408"),
        ((b"GET /health HT",), b"408"),
        ((b"GET /health HTTP/1.1\r\nhost: x\r\nx-half: ",), b"408"),
        ((POST + b"content-length: 100\r\n\r\n{",), b"408"),
        ((CHUNKED + b"1\r\n{\r\n",), b"408"),
    ],
)
async def test_what_does_not_come_is_not_waited_for(sent: Sequence[bytes], status: bytes) -> None:
    generator = FakeGenerator()
    async with door(QUICK, generator) as port:
        assert (await answer(port, *sent)).startswith(b"HTTP/1.1 " + status)
        assert await works(port)
    assert not generator.calls


@pytest.mark.parametrize(
    ("first", "again", "status"),
    [
        (b"GET /health HTTP/1.1\r\n", b"x-a: " + b"b" * 1000 + b"\r\n", b"431"),
        (b"GET /" + b"a" * 1000, b"a" * 1000, b"431"),
        (CHUNKED, b"5\r\n[1,1,\r\n" * 50, b"413"),
        # Trailers are headers after the body.
        (CHUNKED + b"0\r\n", b"x-a: " + b"b" * 1000 + b"\r\n", b"4"),
    ],
)
async def test_what_never_ends_is_ended(first: bytes, again: bytes, status: bytes) -> None:
    generator = FakeGenerator()
    async with door(CALM, generator) as port:
        said = await answer(port, first, again=again)
        assert not said or said.startswith(b"HTTP/1.1 " + status), said[:80]
        assert await works(port)
    assert not generator.calls


async def test_an_answer_that_takes_long_is_no_fault_of_its_client() -> None:
    generator = FakeGenerator()
    generator.gate_at = 1
    body = b'{"model": "demo", "prompt": "hi", "stream": true}'
    whole = POST + b"content-length: %d\r\n\r\n" % len(body) + body
    async with door(QUICK, generator) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        # The second one waits in the connection until the first is answered.
        writer.write(whole + whole[: len(whole) // 2])
        await generator.started.wait()
        await asyncio.sleep(3 * QUICK.message_s)
        writer.write(whole[len(whole) // 2 :])
        generator.gate.set()
        for _ in range(2):
            said = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)
            assert said.startswith(b"HTTP/1.1 200") and b"[DONE]" in said
        writer.close()


async def test_more_connections_than_there_may_be_are_closed_at_once() -> None:
    async with door(Patience(body_bytes=10_000, connections=2)) as port:
        first = await asyncio.open_connection("127.0.0.1", port)
        second = await asyncio.open_connection("127.0.0.1", port)
        assert await answer(port, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n") == b""
        first[1].close()
        await first[1].wait_closed()
        while not await answer(port, b"GET /health HTTP/1.0\r\nhost: x\r\n\r\n"):
            await asyncio.sleep(0.01)
        second[1].close()


async def test_clients_that_vanish_are_noticed_by_the_kernel() -> None:
    """What it accepts inherits this from the socket that listens."""
    with listen("http", Address(port=0)) as sock, socket.create_connection(sock.getsockname()):
        accepted, _ = sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            timeout = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert timeout == SILENT_MS


async def test_a_large_head_in_many_small_pieces(tmp_path: Path) -> None:
    async with door(CALM) as port:
        line = b"x-a: " + b"b" * 993 + b"\r\n"
        fits = line * (MAX_HEAD_BYTES // len(line) - 1)
        request = b"GET /health HTTP/1.0\r\n" + fits
        said = await answer(
            port, *(request[at : at + 500] for at in range(0, len(request), 500)), b"\r\n"
        )
        assert said.startswith(b"HTTP/1.1 200")


async def test_a_door_closes_no_log_handler_of_others() -> None:
    others = MemoryHandler(1, target=logging.NullHandler())
    async with door(CALM) as port:
        assert await works(port)
        assert others.target is not None, "Ray Serve takes a replica without its own for broken"
    others.close()
