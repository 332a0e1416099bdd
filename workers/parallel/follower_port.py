"""A follower's side of its Port: what the leader asks for, done by a LocalPort over this rank's
pages and this process's own transports. See port.py for the line between them."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from workers.attention.kv_cache import KVCache
from workers.core.errors import KvasirError, TransferError
from workers.core.lanes import Lane
from workers.core.span import Span
from workers.core.waits import let_go
from workers.parallel.control import Line
from workers.parallel.steps import Steps
from workers.transfer.link import Transport
from workers.transfer.port import LocalPort
from workers.transfer.threads import on_thread

LONGEST = 1 << 24  # bytes of a line: it names each block of a slot
LOOK_S = 0.25  # between two looks at links that nobody uses

# From what the leader says first: its TransportConfig as a dict, and its host.
MakeTransports = Callable[[Line], Sequence[Transport]]


class FollowerPort:
    """Lives on a loop of its own, so that neither steps nor beats wait for it."""

    def __init__(
        self, pages: KVCache, own: Span, first_block: int, steps: Steps, transports: MakeTransports
    ) -> None:
        """`own`: the heads of this rank. `first_block`: the engine's name of block 0 here."""
        self._pages = pages
        self._own = own
        self._first_block = first_block
        self._steps = steps
        self._transports = transports
        self._failed: dict[str, str | None] = {}  # of each open lane, as the leader was told

    async def serve(self, to_leader: socket.socket) -> None:
        """Until the leader closes the line; then all links are closed."""
        to_leader.setblocking(False)
        reader, self._writer = await asyncio.open_connection(sock=to_leader, limit=LONGEST)
        try:
            first = await _next_line(reader)
            if first is None:
                return
            self._port = LocalPort(self._pages, self._own, self._transports(first), on_thread)
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._watch())
                while (line := await _next_line(reader)) is not None:
                    tasks.create_task(self._answer(line))
                for key in list(self._failed):
                    self._close(key)
                await let_go(watch)
        finally:
            self._writer.close()

    async def _answer(self, line: Line) -> None:
        try:
            value = await self._do(line["id"], line["do"], line["args"])
        except KvasirError as error:
            self._tell_failures()
            self._say({"id": line["id"], "error": error.message})
        else:
            self._say({"id": line["id"], "is": value})

    async def _do(self, number: int, do: str, args: list[Any]) -> Any:
        port = self._port
        match do:
            case "offer":
                return await self._offer(*args)
            case "join":
                return await self._join(*args)
            case "gather":
                key, slot, blocks, checksums, after = args
                await self._reached(after)
                return await port.gather(key, slot, self._own_blocks(blocks), checksums)
            case "scatter":
                key, slot, blocks, crcs, after = args
                await self._reached(after)
                return await port.scatter(key, slot, self._own_blocks(blocks), crcs)
            case "send":
                await port.send(*args)
            case "recv":
                arrival: Awaitable[None] = await port.recv(*args)
                self._say({"id": number, "posted": True})
                await arrival
            case "close":
                self._close(*args)
            case _:
                raise AssertionError(f"nobody says {do!r}")
        return None

    async def _offer(
        self,
        key: str,
        backend: str,
        side: int,
        ends: list[int],
        blocks_per_slot: int,
        slots: int,
    ) -> str:
        source, target, *heads = ends
        lane = Lane(source, target, Span(*heads))
        self._failed[key] = None
        blob = await self._port.offer(key, backend, side, lane, blocks_per_slot, slots)
        if key not in self._failed:  # closed before there was anything to close
            self._port.close(key)
            raise TransferError(f"{key}: closed")
        return base64.b64encode(blob).decode()

    async def _join(self, key: str, blob: str, blocks_per_slot: int, slots: int) -> list[int]:
        posts_first = await self._port.join(key, base64.b64decode(blob), blocks_per_slot, slots)
        return [posts_first, *self._port.cost(key)]

    def _close(self, key: str) -> None:
        self._failed.pop(key, None)
        self._port.close(key)

    async def _reached(self, steps: int) -> None:
        if self._steps.done < steps:
            await on_thread(self._steps.wait, steps)

    def _own_blocks(self, blocks: Sequence[int]) -> list[int]:
        return [block - self._first_block for block in blocks]

    async def _watch(self) -> None:
        """A link whose peer is gone fails without being asked."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._tell_failures()

    def _tell_failures(self) -> None:
        for key, told in self._failed.items():
            why = self._port.failed(key)
            # Before it was offered there is nothing, which is not a failure.
            if told is None and why is not None and why != "closed":
                self._failed[key] = why
                self._say({"failed": key, "why": why})

    def _say(self, line: Line) -> None:
        self._writer.write(json.dumps(line).encode() + b"\n")


async def _next_line(reader: asyncio.StreamReader) -> Line | None:
    """None at its end: the leader closed it, or is gone."""
    try:
        data = await reader.readline()
    except OSError:
        return None
    line: Line | None = json.loads(data) if data.endswith(b"\n") else None
    return line
