"""The data plane between simulated hosts: links that can be slow, cut, corrupted, and lose an end.

Strict like NCCL: sends meet receives in the order in which they were posted, and bytes lie in the
receiver's staging only after the time that the wire takes.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Coroutine
from typing import Any

from tests.chaos.hosts import Host, here
from tests.chaos.network import Network
from workers.core.errors import TransferError
from workers.core.runner import PageStore
from workers.wire import worker_pb2 as worker

DEADLINE_S = 5.0


class Fabric:
    """All links of a run. `corrupt`: so many messages with KV to come arrive with a wrong bit."""

    def __init__(self, network: Network, rng: random.Random, *, delay_s: float) -> None:
        self.network = network
        self.rng = rng
        self.delay_s = delay_s
        self.corrupt = 0
        self.corrupted = 0
        self.posts_first = rng.random() < 0.5
        self.halves: dict[bytes, SimLink] = {}
        self._made = 0
        network.on_write = self.spoil

    def blob(self) -> bytes:
        self._made += 1
        return b"link %d" % self._made

    def spoiled(self, data: bytes) -> bytes:
        """With one bit changed, where that is due."""
        if self.corrupt < 1 or not data:
            return data
        self.corrupt -= 1
        self.corrupted += 1
        wrong = bytearray(data)
        wrong[self.rng.randrange(len(wrong))] ^= 1 << self.rng.randrange(8)
        return bytes(wrong)

    def spoil(self, message: Any) -> None:
        """Blocks inside a stream change too."""
        if isinstance(message, worker.FetchResponse) and message.HasField("inline"):
            message.inline.data = self.spoiled(message.inline.data)

    def links_of(self, name: str) -> list[SimLink]:
        return [link for link in self.halves.values() if link.host.name == name]

    def died(self, host: Host) -> None:
        """The kernel closes its sockets: whoever has a link with it hears of that."""
        for link in self.halves.values():
            peer = link.peer
            if link.host is host and peer is not None and not peer.host.dead:
                loop = asyncio.get_running_loop()
                delay = self.network.delay_s(host.name, peer.host.name)
                loop.call_later(delay, peer.fail, "peer died", context=peer.host.context)


class SimTransport:
    """One worker's way to the fabric."""

    name = "sim"

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    def reaches(self, address: str) -> bool:
        return True

    async def offer(self, side: int, pages: PageStore, num_bytes: int) -> SimHalf:
        fabric = self._fabric
        await asyncio.sleep(fabric.rng.choice((0.0, 0.002)))
        link = SimLink(fabric, here(), pages.new_staging(num_bytes))
        half = SimHalf(fabric, link, fabric.blob())
        fabric.halves[half.blob] = link
        return half


class SimHalf:
    def __init__(self, fabric: Fabric, link: SimLink, blob: bytes) -> None:
        self.blob = blob
        self._fabric = fabric
        self._link = link

    async def join(self, peer_blob: bytes) -> SimLink:
        """Both ends must join, as sockets do."""
        peer = self._fabric.halves.get(peer_blob)
        if peer is None:
            raise TransferError("sim link: nobody is there")
        self._link.peer = peer
        self._link.joined.set()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await peer.joined.wait()
        except TimeoutError:
            raise TransferError("sim link: the peer never joined") from None
        return self._link

    def drop(self) -> None:
        self._link.close()


class SimLink:
    threads = 0
    fds = 0

    def __init__(self, fabric: Fabric, host: Host, staging: Any) -> None:
        self.staging = staging
        self.host = host
        self.peer: SimLink | None = None
        self.joined = asyncio.Event()
        self.posts_first = fabric.posts_first
        self._fabric = fabric
        self._failed: str | None = None
        self._receives: deque[tuple[int, int, int, asyncio.Future[None]]] = deque()
        self._news = asyncio.Event()  # something was posted, or it failed
        self._sent = 0  # sends that were posted here
        self._done = 0  # of those, that have ended

    @property
    def failed(self) -> str | None:
        return self._failed

    def send(self, start: int, num_bytes: int, seq: int) -> Awaitable[None]:
        self._check()
        self._sent += 1
        data = self.staging[start : start + num_bytes]
        return _posted(self._send(self._sent, bytes(data), seq))

    async def _send(self, turn: int, data: bytes, seq: int) -> None:
        peer = self.peer
        assert peer is not None, "not joined"
        try:
            async with asyncio.timeout(DEADLINE_S):
                while self._done < turn - 1 or not peer._receives:
                    self._check()
                    waiting = self if self._done < turn - 1 else peer
                    waiting._news.clear()
                    await waiting._news.wait()
                await asyncio.sleep(self._wire_s(peer))
        except TimeoutError:
            self.fail("deadline")
        if peer._failed is not None:  # and nobody has told us yet
            self._break(peer._failed)
        self._check()
        peer._land(data, seq)
        self._done += 1
        self._news.set()

    def _wire_s(self, peer: SimLink) -> float:
        fabric = self._fabric
        extra = fabric.network.delay_s(self.host.name, peer.host.name)
        return fabric.rng.uniform(0.0, 2 * fabric.delay_s) + extra

    def _land(self, data: bytes, seq: int) -> None:
        """Into the memory of a frozen host too, as with DMA."""
        posted, start, num_bytes, arrived = self._receives.popleft()
        assert posted == seq, f"{seq} sent where {posted} was posted: order is the contract"
        assert len(data) == num_bytes, "sizes are agreed before anything is posted"
        data = self._fabric.spoiled(data)
        self.staging[start : start + len(data)] = data
        if not arrived.done():
            arrived.set_result(None)

    def recv(self, start: int, num_bytes: int, seq: int) -> Awaitable[None]:
        self._check()
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._receives.append((seq, start, num_bytes, arrived))
        self._news.set()
        return _posted(self._recv(arrived))

    async def _recv(self, arrived: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.shield(arrived)
        except TimeoutError:
            self.fail("deadline")
            raise TransferError("sim link: deadline") from None

    def _check(self) -> None:
        if self._failed is not None:
            raise TransferError(f"sim link: {self._failed}")

    def fail(self, why: str) -> None:
        """Break both ends, as the death of a peer does. One that cannot be reached hears later."""
        self._break(why)
        peer = self.peer
        if peer is not None and peer._failed is None:
            delay = self._fabric.network.delay_s(self.host.name, peer.host.name)
            loop = asyncio.get_running_loop()
            loop.call_later(delay, peer._break, why, context=peer.host.context)

    def _break(self, why: str) -> None:
        if self._failed is not None:
            return
        self._failed = why
        self._news.set()
        for _, _, _, arrived in self._receives:
            if not arrived.done():
                arrived.set_exception(TransferError(f"sim link: {why}"))
                arrived.exception()
        self._receives.clear()

    def close(self) -> None:
        self.fail("closed")


def _posted(work: Coroutine[Any, Any, None]) -> Awaitable[None]:
    """It goes on whoever leaves it; nobody need ask how it ended."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_retrieve)
    return asyncio.shield(task)


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
