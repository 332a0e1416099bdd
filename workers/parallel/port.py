"""The Port of a follower, as its leader has it: requests and answers on a line of their own.

JSON lines over the second line that each follower opens (see Team.lines_beside); requests are
numbered and many may be under way. Of a range of blocks there is one request each for its gather,
its send, its receive and its scatter; the blocks themselves never come here.

    leader      {"id": 7, "do": "recv", "args": [...]}
    follower    {"id": 7, "posted": true}   and then   {"id": 7, "is": null}
                {"id": 7, "error": "..."}   in place of either
                {"failed": key, "why": "..."}   at any time
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from workers.core.errors import KvasirError, TransferError, Unavailable
from workers.core.lanes import Lane
from workers.core.waits import to_the_end
from workers.parallel.control import Line
from workers.parallel.steps import Steps
from workers.transfer.port import Cost

# A gather or a scatter: longer than a follower waits for its steps and its device. What a link
# waits for has deadlines of its own.
COPY_S = 60.0


class RemotePort:
    """`lose(error)`: the rank is of no more use, and so is the replica. A rank that is gone fails
    all its lanes, and what waits for them, at once."""

    def __init__(
        self, line: PortLine, rank: int, steps: Steps, lose: Callable[[KvasirError], None]
    ) -> None:
        self._line = line
        self._rank = rank
        self._steps = steps
        self._lose = lose
        self._costs: dict[str, Cost] = {}

    async def offer(
        self, key: str, backend: str, side: int, lane: Lane, blocks_per_slot: int, slots: int
    ) -> bytes:
        self._line.failures[key] = None
        ends = [lane.source, lane.target, *lane.heads]
        blob = await self._ask("offer", key, backend, side, ends, blocks_per_slot, slots).over
        return base64.b64decode(blob)

    async def join(self, key: str, peer_blob: bytes, blocks_per_slot: int, slots: int) -> bool:
        blob = base64.b64encode(peer_blob).decode()
        posts_first, *cost = await self._ask("join", key, blob, blocks_per_slot, slots).over
        self._costs[key] = Cost(*cost)
        return bool(posts_first)

    async def gather(
        self, key: str, slot: int, blocks: Sequence[int], checksums: bool
    ) -> list[int]:
        copy = self._copy("gather", key, slot, list(blocks), checksums)
        return await to_the_end(copy)

    def send(self, key: str, slot: int, num_blocks: int, seq: int) -> Awaitable[None]:
        return self._ask("send", key, slot, num_blocks, seq).over

    async def recv(self, key: str, slot: int, num_blocks: int, seq: int) -> Awaitable[None]:
        request = self._ask("recv", key, slot, num_blocks, seq)
        await request.posted
        return request.over

    async def scatter(
        self, key: str, slot: int, blocks: Sequence[int], crcs: Sequence[int]
    ) -> list[int]:
        return await to_the_end(self._copy("scatter", key, slot, list(blocks), list(crcs)))

    def failed(self, key: str) -> str | None:
        return self._line.gone or self._line.failures.get(key, "closed")

    def cost(self, key: str) -> Cost:
        return self._costs.get(key, Cost(0, 0, 0))

    def close(self, key: str) -> None:
        self._costs.pop(key, None)
        if key in self._line.failures:
            del self._line.failures[key]
            self._line.ask("close", key)

    def _ask(self, do: str, key: str, *args: Any) -> Request:
        if (why := self.failed(key)) is not None:
            raise TransferError(f"rank {self._rank}: {why}")
        return self._line.ask(do, key, *args)

    async def _copy(self, do: str, *args: Any) -> list[int]:
        """After the steps that are over here: a rank of another shard may still be in their last
        layers. Without an answer nobody knows whether pages are still touched."""
        try:
            async with asyncio.timeout(COPY_S):
                blocks: list[int] = await self._ask(do, *args, self._steps.done).over
        except TimeoutError:
            why = f"rank {self._rank} has not copied pages for {COPY_S:.0f} s"
            self._lose(Unavailable(why))
            raise TransferError(why) from None
        return blocks


class Request:
    """One that is under way: `posted` for a receive, then `over` with what it returns."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.posted: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[Any] = loop.create_future()
        for future in (self.posted, self.over):  # not everybody waits for both
            future.add_done_callback(_forget)

    def end(self, value: Any) -> None:
        if not self.over.done():
            self.over.set_result(value)

    def fail(self, why: str) -> None:
        for future in (self.posted, self.over):
            if not future.done():
                future.set_exception(TransferError(why))

    def is_posted(self) -> None:
        if not self.posted.done():
            self.posted.set_result(None)


class PortLine(asyncio.Protocol):
    """The leader's end. `failures`: of each open lane, None while it works. `asked`: how many
    requests so far."""

    def __init__(self, rank: int) -> None:
        self.gone: str | None = None
        self.failures: dict[str, str | None] = {}
        self._rank = rank
        self._transport: asyncio.Transport | None = None
        self._requests: dict[int, Request] = {}
        self.asked = 0
        self._buffer = bytearray()

    @classmethod
    async def over(cls, line: socket.socket, rank: int) -> PortLine:
        line.setblocking(False)
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(lambda: cls(rank), sock=line)
        return protocol

    def open(self, line: Line) -> None:
        """What the follower must know first."""
        assert self._transport is not None
        self._transport.write(json.dumps(line).encode() + b"\n")

    def ask(self, do: str, *args: Any) -> Request:
        request = Request()
        self.asked += 1
        if self.gone is not None or self._transport is None:
            request.fail(self.gone or "not connected")
            return request
        self._requests[self.asked] = request
        line = {"id": self.asked, "do": do, "args": args}
        self._transport.write(json.dumps(line).encode() + b"\n")
        return request

    def end(self, why: str) -> None:
        """Idempotent."""
        if self.gone is None:
            self.gone = why
        if self._transport is not None:
            self._transport.abort()
        while self._requests:
            self._requests.popitem()[1].fail(self.gone)

    # -- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class

    def connection_lost(self, error: Exception | None) -> None:
        self.end(f"rank {self._rank} is gone")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        for line in lines:
            self._take(json.loads(line))

    def _take(self, line: Line) -> None:
        key = line.get("failed")
        if key is not None and key in self.failures:
            self.failures[key] = line["why"]
        request = self._requests.get(line.get("id", 0))
        if request is None:
            return
        if "posted" in line:
            request.is_posted()
            return
        del self._requests[line["id"]]
        if "error" in line:
            request.fail(line["error"])
        else:
            request.end(line["is"])


def _forget(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
