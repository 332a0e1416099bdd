"""The sending process of `kvasir bench transfer`: it is "ready", then takes one order a line on
stdin and answers on stdout.

link NAME BYTES      its blob; then the receiver's blob comes: "joined"
send SLOT_BYTES N    N messages over the link, in turn from each of two slots: "sent". Over shared
                     memory pages are gathered, after a "taken" for what stood in the slot before
socket PORT BYTES N  N messages to a plain socket of the receiver
inline BYTES N       N messages of inline blocks to who fetches: the port
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from workers.allocator import keep_freed_memory
from workers.attention.kv_cache import KVCache
from workers.bench.pages import Pools, some_blocks
from workers.config import TransportConfig
from workers.server import start_server
from workers.transfer.link import SENDER, Link
from workers.transfer.pick import pick_transports
from workers.transfer.sender import MESSAGE_BYTES
from workers.wire import worker_pb2 as worker

HOST = "127.0.0.1"
SLOTS = 2


class Sender:
    def __init__(self, orders: asyncio.StreamReader) -> None:
        self._orders = orders
        self._pools = Pools()
        self._link: Link | None = None
        self._seq = 0

    async def run(self) -> None:
        """Until stdin ends."""
        orders: dict[str, Callable[..., Awaitable[None]]] = {
            "link": self._join,
            "send": self._send,
            "socket": self._socket,
            "inline": self._inline,
        }
        while line := await self._line():
            order, *arguments = line.split()
            await orders[order](*arguments)

    async def _line(self) -> str:
        return (await self._orders.readline()).decode().strip()

    async def _join(self, name: str, num_bytes: str) -> None:
        if self._link is not None:
            self._link.close()
        (transport,) = pick_transports(TransportConfig.model_validate({"backend": name}), HOST)
        half = await transport.offer(SENDER, self._pools.of(0), int(num_bytes))
        _say(half.blob.hex())
        self._link = await half.join(bytes.fromhex(await self._line()))
        self._gathers, self._seq = name == "shm", 0
        _say("joined")

    async def _send(self, slot_bytes: str, count: str) -> None:
        size, pages = int(slot_bytes), self._pools.of(int(slot_bytes))
        blocks = some_blocks(pages, size)
        under_way: list[asyncio.Future[None]] = []
        link = self._link
        assert link is not None, "no link"
        for index in range(int(count)):
            start = index % SLOTS * size
            if index >= SLOTS:
                await under_way.pop(0)
            if self._gathers:
                if index >= SLOTS:
                    await self._line()
                pages.gather(next(blocks), link.staging[start : start + size])
            self._seq += 1
            under_way.append(asyncio.ensure_future(link.send(start, size, self._seq)))
        await asyncio.gather(*under_way)
        _say("sent")

    async def _socket(self, port: str, num_bytes: str, count: str) -> None:
        await asyncio.to_thread(_stream, int(port), int(num_bytes), int(count))

    async def _inline(self, num_bytes: str, count: str) -> None:
        desk = _Desk(self._pools.of(0), int(num_bytes), int(count))
        server, port = await start_server(SimpleNamespace(desk=desk), HOST, 0)  # type: ignore[arg-type]
        _say(str(port))
        await desk.fetched.wait()
        await server.stop(1.0)


class _Desk:
    """Stands where a worker's would: its stream holds blocks that have been gathered."""

    patience_s = 60.0

    def __init__(self, pages: KVCache, num_bytes: int, count: int) -> None:
        self.fetched = asyncio.Event()
        self._pages, self._num_bytes, self._count = pages, num_bytes, count
        self._staging = pages.new_staging(min(num_bytes, MESSAGE_BYTES)).fill_(1)

    async def fetch(
        self, requests: AsyncIterator[worker.FetchRequest]
    ) -> AsyncIterator[worker.FetchResponse]:
        await anext(requests)
        size = len(self._staging)
        try:
            for _ in range(self._count * (self._num_bytes // size)):
                data = self._pages.to_bytes(self._staging, size)
                yield worker.FetchResponse(inline=worker.InlineBlocks(data=data))
        finally:
            self.fetched.set()


def _stream(port: int, num_bytes: int, count: int) -> None:
    data = memoryview(bytearray(b"x" * num_bytes))
    with socket.create_connection((HOST, port)) as peer:
        for _ in range(count):
            peer.sendall(data)


def _say(line: str) -> None:
    print(line, flush=True)


async def _main() -> None:
    orders = asyncio.StreamReader(limit=1 << 20)
    protocol: Any = asyncio.StreamReaderProtocol(orders)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    keep_freed_memory()
    sender = Sender(orders)
    _say("ready")
    await sender.run()


if __name__ == "__main__":
    asyncio.run(_main())
