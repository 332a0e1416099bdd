"""Transport twin: links inside one process, whose deliveries tests can disturb."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from workers.core.errors import TransferError
from workers.core.runner import PageStore
from workers.transfer.link import HalfLink, Link


@dataclass(eq=False)
class Delivery:
    """One chunk of one lane on its way. `lost`: it never arrives. Changed `data` arrives changed;
    link.fail() breaks the lane."""

    link: MemoryLink
    seq: int
    data: bytearray
    lost: bool = False


async def undisturbed(_: Delivery) -> None:
    """The default fault."""


class MemoryFabric:
    """`delay_s`: what each chunk takes. `deadline_s`: of both ends of a chunk. `fault` is awaited
    before each chunk arrives: it may sleep (slow, reordered), never return (hung), lose, corrupt or
    break. The n-th send must meet the n-th receive, as with NCCL; `posts_first` says only who posts
    when."""

    name = "memory"

    def __init__(
        self,
        *,
        delay_s: float = 0.0,
        deadline_s: float = 5.0,
        posts_first: bool = True,
        fault: Callable[[Delivery], Awaitable[None]] = undisturbed,
    ) -> None:
        self.delay_s = delay_s
        self.deadline_s = deadline_s
        self.posts_first = posts_first
        self.fault = fault
        self.links: dict[bytes, MemoryLink] = {}  # whatever became of them

    def reaches(self, address: str) -> bool:
        return True

    async def offer(self, side: int, pages: PageStore, num_bytes: int) -> HalfLink:
        link = MemoryLink(self, pages.new_staging(num_bytes))
        half = _MemoryHalf(self, link)
        self.links[half.blob] = link
        return half

    def cut(self) -> None:
        """Break every link there is."""
        for link in self.links.values():
            link.fail("cut")


class _MemoryHalf:
    def __init__(self, fabric: MemoryFabric, link: MemoryLink) -> None:
        self.blob = secrets.token_bytes(8)
        self._fabric = fabric
        self._link = link

    async def join(self, peer_blob: bytes) -> Link:
        peer = self._fabric.links.get(peer_blob)
        if peer is None:
            raise TransferError("memory: nobody there")
        self._link.peer = peer
        return self._link

    def drop(self) -> None:
        self._link.close()


class MemoryLink:
    """Copies when a chunk has arrived, so that staging reused too early is seen."""

    threads = 0
    fds = 0

    def __init__(self, fabric: MemoryFabric, staging: Any) -> None:
        self.staging = staging
        self.posts_first = fabric.posts_first
        self.peer: MemoryLink | None = None
        self.posted: dict[int, _Receive] = {}  # by seq; those that nothing arrived for
        self.order: list[int] = []  # of everything that was posted here
        self.changed = asyncio.Event()
        self._fabric = fabric
        self._failed: str | None = None
        self._wire = asyncio.Lock()

    @property
    def failed(self) -> str | None:
        return self._failed

    def send(self, start: int, num_bytes: int, seq: int) -> Awaitable[None]:
        self._check()
        self.order.append(seq)
        return _under_way(self._send(start, num_bytes, seq))

    def recv(self, start: int, num_bytes: int, seq: int) -> Awaitable[None]:
        self._check()
        self.order.append(seq)
        receive = _Receive(start, num_bytes, asyncio.get_running_loop().create_future())
        self.posted[seq] = receive
        self.changed.set()
        return _under_way(self._recv(receive))

    async def _send(self, start: int, num_bytes: int, seq: int) -> None:
        try:
            async with asyncio.timeout(self._fabric.deadline_s):
                receive = await self._met(seq)
                async with self._wire:
                    await asyncio.sleep(self._fabric.delay_s)
                delivery = Delivery(self, seq, bytearray(self.staging[start : start + num_bytes]))
                await self._fabric.fault(delivery)
        except TimeoutError:
            self.fail("deadline")
        self._check()
        assert self.peer is not None
        assert receive.num_bytes == num_bytes, "sizes are agreed before anything is posted"
        self.peer.posted.pop(seq, None)
        if not delivery.lost and not receive.arrived.done():
            self.peer.staging[receive.start : receive.start + num_bytes] = delivery.data
            receive.arrived.set_result(None)

    async def _met(self, seq: int) -> _Receive:
        """The peer's receive for this send."""
        while True:
            self._check()
            peer = self.peer
            if peer is not None and seq in peer.posted:
                together = (self.order.index(seq), peer.order.index(seq))
                assert together[0] == together[1], f"{self.order} meets {peer.order}"
                return peer.posted[seq]
            assert peer is not None, "not joined"
            peer.changed.clear()
            await peer.changed.wait()

    async def _recv(self, receive: _Receive) -> None:
        try:
            async with asyncio.timeout(self._fabric.deadline_s):
                await receive.arrived
        except TimeoutError:
            self.fail("deadline")
            raise TransferError("memory: deadline") from None

    def _check(self) -> None:
        if self._failed is not None:
            raise TransferError(f"memory: {self._failed}")

    def fail(self, why: str) -> None:
        """Break both ends, as the death of a peer does."""
        for link in (self, self.peer):
            if link is None or link._failed is not None:
                continue
            link._failed = why
            link.changed.set()
            for receive in link.posted.values():
                if not receive.arrived.done():
                    receive.arrived.set_exception(TransferError(f"memory: {why}"))
                    receive.arrived.exception()  # told to whoever waits, if anybody does

    def close(self) -> None:
        self.fail("closed")


def _under_way(work: Coroutine[Any, Any, None]) -> Awaitable[None]:
    """Like the real ones, it ends by itself, whether or not anybody waits."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return asyncio.shield(task)


@dataclass(eq=False, slots=True)
class _Receive:
    start: int
    num_bytes: int
    arrived: asyncio.Future[None]
