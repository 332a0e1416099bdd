"""An engine that answers at once: OpenAI streams of as many chunks as tokens were asked for.

    python -m load_tests.peers.router_mock PORT

Every other path but /health and /v1/models is answered with 404, as an engine answers what it does
not know.
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop

from load_tests.peers.router_client import MODEL

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"
NOTHING = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
FRAME = {"id": "mock-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith((b"GET ", b"POST ")):  # whether it speaks HTTP/2: it does not
                break
            path = head.split(b" ")[1]
            body = await reader.readexactly(_length(head))
            if path in (b"/v1/chat/completions", b"/v1/completions"):
                await _answer(writer, json.loads(body))
            elif path in (b"/health", b"/v1/models"):
                data = MODELS if path == b"/v1/models" else b"{}"
                writer.write(HEAD % b"application/json" + _chunk(data) + _chunk(b""))
            else:
                writer.write(NOTHING)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has left
    writer.close()


async def _answer(writer: asyncio.StreamWriter, asked: dict[str, object]) -> None:
    writer.write(HEAD % b"text/event-stream")
    count = asked.get("max_completion_tokens") or asked["max_tokens"]  # some rename it
    assert isinstance(count, int)
    for number in range(count):
        finish = "length" if number == count - 1 else None
        choice = {"index": 0, "delta": {"content": " word"}, "finish_reason": finish}
        data = json.dumps({**FRAME, "choices": [choice]})
        writer.write(_chunk(f"data: {data}\n\n".encode()))
        await asyncio.sleep(0)  # each chunk is sent by itself, as by an engine that steps
    writer.write(_chunk(b"data: [DONE]\n\n") + _chunk(b""))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=1 << 22)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
