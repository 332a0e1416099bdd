"""The seam of the data plane: one end of one pair generation, and its in-process twin.

A link never touches pages. It moves the first bytes of its staging to or from the peer's staging;
only gather and scatter, which are local copies, hold pages. A failed link stays failed: a new
generation takes its place, and staging lives until its last operation has returned.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable
from typing import Any, Protocol

from workers.core.errors import TransferError


class Link(Protocol):
    staging: Any

    @property
    def failed(self) -> str | None:
        """Why nothing more can be sent, or None."""

    def send(self, num_bytes: int, seq: int) -> Awaitable[None]:
        """Post now; done when the peer has the bytes. Raises TransferError, at the latest after the
        chunk deadline."""

    def recv(self, num_bytes: int, seq: int) -> Awaitable[None]:
        """Post now; done when the bytes are in staging. Raises TransferError like send."""

    def close(self) -> None: ...


class HalfLink(Protocol):
    """Our half of the rendezvous: `blob` goes to the peer by RPC, join() takes the peer's."""

    blob: bytes

    async def join(self, peer_blob: bytes) -> Link: ...


class Transport(Protocol):
    """Makes links. rank 0 sends, rank 1 receives."""

    name: str

    async def offer(self, rank: int, staging: Any) -> HalfLink: ...


class MemoryFabric:
    """Transport twin: links of one process. `delay_s` is the time a chunk takes."""

    name = "memory"

    def __init__(self, *, delay_s: float = 0.0, deadline_s: float = 5.0) -> None:
        self.delay_s = delay_s
        self.deadline_s = deadline_s
        self.halves: dict[bytes, _MemoryHalf] = {}

    async def offer(self, rank: int, staging: Any) -> HalfLink:
        half = _MemoryHalf(self, staging)
        self.halves[half.blob] = half
        return half


class _MemoryHalf:
    def __init__(self, fabric: MemoryFabric, staging: Any) -> None:
        self.blob = secrets.token_bytes(8)
        self.link = MemoryLink(fabric, staging)
        self._fabric = fabric

    async def join(self, peer_blob: bytes) -> Link:
        self.link.peer = self._fabric.halves[peer_blob].link
        return self.link


class MemoryLink:
    """Strict like NCCL: sends meet receives in the order in which they were posted."""

    def __init__(self, fabric: MemoryFabric, staging: Any) -> None:
        self.staging = staging
        self.peer: MemoryLink | None = None
        self._fabric = fabric
        self._failed: str | None = None
        self._receives: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._posted = asyncio.Event()

    @property
    def failed(self) -> str | None:
        return self._failed

    def send(self, num_bytes: int, seq: int) -> Awaitable[None]:
        return self._send(num_bytes, seq)

    async def _send(self, num_bytes: int, seq: int) -> None:
        peer = self.peer
        assert peer is not None, "not joined"
        try:
            async with asyncio.timeout(self._fabric.deadline_s):
                while not peer._receives:
                    self._check(peer)
                    peer._posted.clear()
                    await peer._posted.wait()
                await asyncio.sleep(self._fabric.delay_s)
        except TimeoutError:
            self.fail("deadline")
        self._check(peer)
        posted, arrived = peer._receives.popleft()
        assert posted == seq, f"{seq} sent where {posted} was posted: order is the contract"
        peer.staging[:num_bytes] = self.staging[:num_bytes]
        if not arrived.done():
            arrived.set_result(None)

    def recv(self, num_bytes: int, seq: int) -> Awaitable[None]:
        if self._failed is not None:
            raise TransferError(f"memory link: {self._failed}")
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._receives.append((seq, arrived))
        self._posted.set()
        return self._recv(arrived)

    async def _recv(self, arrived: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(self._fabric.deadline_s):
                await arrived
        except TimeoutError:
            self.fail("deadline")
            raise TransferError("memory link: deadline") from None

    def _check(self, peer: MemoryLink) -> None:
        for link in (self, peer):
            if link._failed is not None:
                raise TransferError(f"memory link: {link._failed}")

    def fail(self, why: str) -> None:
        """Break both ends, as the death of a peer does."""
        for link in (self, self.peer):
            if link is None or link._failed is not None:
                continue
            link._failed = why
            link._posted.set()
            for _, arrived in link._receives:
                if not arrived.done():
                    arrived.set_exception(TransferError(f"memory link: {why}"))

    def close(self) -> None:
        self.fail("closed")
