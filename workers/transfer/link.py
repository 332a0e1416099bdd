"""The seam of the data plane: one end of one lane of one pair generation.

A link never touches pages. It moves ranges of its staging to or from the peer's staging; only
gather and scatter, which are local copies, hold pages. A failed link stays failed: a new generation
takes its place, and staging lives until its last operation has returned.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol

from workers.core.runner import PageStore

SENDER, RECEIVER = 0, 1  # sides of a link


class Link(Protocol):
    """`staging`: slots of equal size, one after another: a uint8 tensor, or a memoryview in
    simulation. `posts_first`: receives may be posted long before the send; otherwise both sides
    post when the sender says Go. `threads` and `fds`: what this end holds."""

    staging: Any
    posts_first: bool
    fds: int

    @property
    def threads(self) -> int: ...

    @property
    def failed(self) -> str | None:
        """Why nothing more can be sent, or None."""

    def send(self, start: int, num_bytes: int, seq: int) -> Awaitable[None]:
        """Post staging[start : start + num_bytes] now; done when the peer has the bytes. Raises
        TransferError, now or when awaited, at the latest after the chunk deadline."""

    def recv(self, start: int, num_bytes: int, seq: int) -> Awaitable[None]:
        """Post now; done when the bytes are in staging. Raises TransferError like send."""

    def close(self) -> None: ...


class HalfLink(Protocol):
    """Our half of the rendezvous: `blob` goes to the peer by RPC, join() takes the peer's."""

    blob: bytes

    async def join(self, peer_blob: bytes) -> Link:
        """Raises TransferError."""

    def drop(self) -> None:
        """The peer never answered: give everything back."""


class Transport(Protocol):
    """Makes links. A worker may have several; the first that reaches a peer is taken."""

    name: str

    def reaches(self, address: str) -> bool:
        """Whether it can connect to a worker at this host:port (shared memory: the same host)."""

    async def offer(self, side: int, pages: PageStore, num_bytes: int) -> HalfLink:
        """Staging of `num_bytes` is made now or at join, and lies where `pages` can copy to and
        from it. Raises TransferError."""
