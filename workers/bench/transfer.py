"""`kvasir bench transfer`: how fast KV travels between two processes, beside a plain socket and a
memcpy of the same run."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from workers.allocator import keep_freed_memory
from workers.bench.engine import Row
from workers.bench.handoff import Handoffs
from workers.bench.pages import Pools, some_blocks
from workers.bench.reshard import resharding
from workers.bench.transfer_peer import HOST, SLOTS
from workers.config import TransportConfig
from workers.core.clock import Clock, SystemClock
from workers.peer_client import GrpcPeers
from workers.transfer.link import RECEIVER, Link
from workers.transfer.pick import pick_transports
from workers.wire import worker_pb2 as worker

ROUND_BYTES = 128 << 20  # of one message size in one round
LEAST_MESSAGES = 4
ROUNDS = 5  # of each way in turn; the best counts, of what is measured and of its limit
KIB, MIB = 1 << 10, 1 << 20


def size_name(num_bytes: int) -> str:
    return f"{num_bytes // MIB}MiB" if num_bytes >= MIB else f"{num_bytes // KIB}KiB"


class Peer:
    """The sending process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin and process.stdout
        self._orders, self._answers = process.stdin, process.stdout

    def tell(self, line: str) -> None:
        self._orders.write(line.encode() + b"\n")

    async def says(self) -> str:
        return (await asyncio.wait_for(self._answers.readline(), 60)).decode().strip()


@asynccontextmanager
async def peer() -> AsyncIterator[Peer]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workers.bench.transfer_peer"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    try:
        made = Peer(process)
        assert await made.says() == "ready"
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Wire:
    """The receiving process's ways to measure: bytes a second of messages of one size."""

    def __init__(self, sender: Peer) -> None:
        self._sender = sender
        self._clock: Clock = SystemClock()
        self._pools = Pools()
        self._links: dict[str, Link] = {}
        self._seq = 0

    async def link(self, name: str, num_bytes: int) -> Link:
        """A new one of two slots of `num_bytes`."""
        (transport,) = pick_transports(TransportConfig.model_validate({"backend": name}), HOST)
        half = await transport.offer(RECEIVER, self._pools.of(0), SLOTS * num_bytes)
        self._sender.tell(f"link {name} {SLOTS * num_bytes}")
        blob = bytes.fromhex(await self._sender.says())
        self._sender.tell(half.blob.hex())
        link = await half.join(blob)
        assert await self._sender.says() == "joined"
        self._seq = 0
        return link

    async def receive(self, link: Link, size: int, count: int, scatter: bool) -> float:
        """`count` messages, posted as slots get free."""
        pages = self._pools.of(size)
        blocks = some_blocks(pages, size)
        first, self._seq = self._seq + 1, self._seq + count

        def post(index: int) -> Awaitable[None]:
            return link.recv(index % SLOTS * size, size, first + index)

        arriving = [post(index) for index in range(SLOTS)]
        began = self._clock.now()
        self._sender.tell(f"send {size} {count}")
        for index in range(count):
            await arriving.pop(0)
            if scatter:
                start = index % SLOTS * size
                pages.scatter(link.staging[start : start + size], next(blocks))
            if index + SLOTS < count:
                arriving.append(post(index + SLOTS))
                if scatter:
                    self._sender.tell("taken")
        seconds = self._clock.now() - began
        assert await self._sender.says() == "sent"
        return count * size / seconds

    async def plain(self, size: int, count: int) -> float:
        """What a plain TCP connection on the loopback carries."""
        listener = socket.create_server((HOST, 0))
        with listener:
            self._sender.tell(f"socket {listener.getsockname()[1]} {size} {count}")
            return await asyncio.to_thread(self._drain, listener, size, count)

    def _drain(self, listener: socket.socket, size: int, count: int) -> float:
        data = memoryview(bytearray(size))
        came, _ = listener.accept()
        with came:
            began = self._clock.now()
            for _ in range(count):
                left = data
                while left:
                    left = left[came.recv_into(left) :]
            return count * size / (self._clock.now() - began)

    async def inline(self, size: int, count: int) -> float:
        """Through a worker's own server and client, from staging to staging."""
        self._sender.tell(f"inline {size} {count}")
        peers, pages = GrpcPeers(self._clock), self._pools.of(size)
        address = f"{HOST}:{await self._sender.says()}"
        left, began = size * count, 0.0
        async for response in peers.at(address).fetch(_asking()):
            # From the first on: opening a stream is not what is measured here.
            began = began or self._clock.now()
            left -= len(pages.from_bytes(response.inline.data))
        seconds = self._clock.now() - began
        assert left == 0, f"{left} bytes did not come"
        await peers.close()
        return size * count / seconds

    async def memcpy(self, size: int, count: int) -> float:
        """One thread's, from pages to pages, which are in no cache."""
        source, target = self._pools.of(size).pages.view(-1).view(torch.uint8).chunk(2)
        windows = source.numel() // size
        began = self._clock.now()
        for index in range(count):
            here = slice(index % windows * size, (index % windows + 1) * size)
            target[here].copy_(source[here])
        return count * size / (self._clock.now() - began)


async def _asking() -> AsyncIterator[worker.FetchRequest]:
    yield worker.FetchRequest(redeem=worker.Redeem())


@dataclass(frozen=True, slots=True)
class Plan:
    """`parts`: of bandwidth, reshard, protocol, overlap, deaths. `model`, for the overlap: large
    enough that its prompts take longer than their transfers."""

    sizes: Sequence[int]  # bytes
    small_model: str
    model: str
    overlap_tokens: int
    parts: frozenset[str]


async def measure(plan: Plan, folder: Path) -> AsyncIterator[Row]:
    """Each row as soon as it is there. Logs go to `folder`."""
    torch.set_num_threads(1)
    keep_freed_memory()
    if "bandwidth" in plan.parts:
        async for row in bandwidths(plan.sizes):
            yield row
    if "reshard" in plan.parts:
        for row in resharding():
            yield row
    handoffs = Handoffs(folder, plan.small_model)
    if "protocol" in plan.parts:
        async with peer() as sender:
            rate = await Wire(sender).plain(64 * KIB, ROUND_BYTES // (64 * KIB))
        async for row in handoffs.protocol(rate):
            yield row
    if "overlap" in plan.parts:
        async for row in Handoffs(folder, plan.model).overlap(plan.overlap_tokens):
            yield row
    if "deaths" in plan.parts:
        async for row in handoffs.deaths():
            yield row


async def bandwidths(sizes: Sequence[int]) -> AsyncIterator[Row]:
    """Rows by message size."""
    async with peer() as sender:
        wire = Wire(sender)
        for size in sizes:
            for row in await _of_size(wire, size):
                yield row


async def _of_size(wire: Wire, size: int) -> list[Row]:
    count = max(ROUND_BYTES // size, LEAST_MESSAGES)

    async def through(name: str) -> float:
        link = await wire.link(name, size)
        try:
            await wire.receive(link, size, LEAST_MESSAGES, name == "shm")
            return await wire.receive(link, size, count, name == "shm")
        finally:
            link.close()

    ways: dict[str, Callable[[], Awaitable[float]]] = {
        "socket": lambda: wire.plain(size, count),
        "gloo": lambda: through("gloo"),
        "grpc": lambda: wire.inline(size, count),
        "memcpy": lambda: wire.memcpy(size, count),
        "shm": lambda: through("shm"),
    }
    best = dict.fromkeys(ways, 0.0)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            best[name] = max(best[name], await way())
    name = size_name(size)
    rows = []
    for limit in ("socket", "memcpy"):
        rows.append(Row(f"{limit}/{name}", best[limit] / 1e9, "GB/s", None, None))
    for what, limit in (("gloo", "socket"), ("grpc", "socket"), ("shm", "memcpy")):
        ratio = best[what] / best[limit]
        rows.append(Row(f"{what}/{name}", best[what] / 1e9, "GB/s", best[limit] / 1e9, ratio))
    return rows
