"""One rank's end of the data plane: its pages, and the links of its lanes.

A pair has a lane for each (sender rank, receiver rank) that have KV heads in common. The leader of
a replica speaks the protocol; what each rank does for it stands behind that rank's Port.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from zlib import crc32

from workers.core.errors import TransferError
from workers.core.lanes import Lane
from workers.core.runner import PageStore
from workers.core.span import Span
from workers.core.waits import Offload, to_the_end
from workers.transfer.link import HalfLink, Link, Transport


class Cost(NamedTuple):
    """What one end of a lane holds."""

    staging_bytes: int
    threads: int
    fds: int


class Port(Protocol):
    """Links stand under keys of the leader's choice. Block ids are those of the engine. Whatever
    fails between workers raises TransferError."""

    async def offer(
        self, key: str, backend: str, side: int, lane: Lane, blocks_per_slot: int, slots: int
    ) -> bytes:
        """Begin a link; the blob for the peer's join()."""

    async def join(self, key: str, peer_blob: bytes, blocks_per_slot: int, slots: int) -> bool:
        """Finish it, with the sizes that both agreed on, never more than offered. Returns whether
        its receives may be posted before the sender says Go."""

    async def gather(
        self, key: str, slot: int, blocks: Sequence[int], checksums: bool
    ) -> list[int]:
        """Copy the lane's part of `blocks` into the slot, to the end even when cancelled. The crc32
        of each block's part, or nothing."""

    def send(self, key: str, slot: int, num_blocks: int, seq: int) -> Awaitable[None]:
        """Post now; done when the peer has the bytes."""

    async def recv(self, key: str, slot: int, num_blocks: int, seq: int) -> Awaitable[None]:
        """Returns when the receive is posted; what it returns is done when the bytes are here."""

    async def scatter(
        self, key: str, slot: int, blocks: Sequence[int], crcs: Sequence[int]
    ) -> list[int]:
        """Check where there are `crcs`, and copy into pages, to the end even when cancelled. The
        indices of blocks whose checksum is wrong; those are not copied."""

    def failed(self, key: str) -> str | None:
        """Why nothing more can go over it, or None."""

    def cost(self, key: str) -> Cost: ...

    def close(self, key: str) -> None:
        """Idempotent, at any time."""


@dataclass(frozen=True, slots=True)
class Ports:
    """All of a replica, by shard and rank. `block_bytes`: of a whole block, with all heads."""

    by_shard: tuple[tuple[Port, ...], ...]
    kv_heads: int
    block_bytes: int

    @property
    def ranks(self) -> int:
        """That share out the heads of a shard."""
        return len(self.by_shard[0])

    def of(self, shard: int) -> tuple[Port, ...]:
        """Raises TransferError: a peer's word is not to be trusted with an index."""
        if not 0 <= shard < len(self.by_shard):
            raise TransferError(f"there is no shard {shard} here, only {len(self.by_shard)}")
        return self.by_shard[shard]


@dataclass(eq=False)
class _End:
    """One end of a lane. `block_bytes`: of the lane's heads; `heads`: where the pages have them."""

    half: HalfLink
    block_bytes: int
    heads: slice
    blocks_per_slot: int
    slots: int
    link: Link | None = None

    def slot(self, index: int, num_blocks: int) -> tuple[int, int]:
        """(start, bytes) of so many blocks in a slot of the staging."""
        assert 0 <= index < self.slots and num_blocks <= self.blocks_per_slot
        return index * self.blocks_per_slot * self.block_bytes, num_blocks * self.block_bytes


class LocalPort:
    """The port of a rank in this process, over the pages of that rank, which have the heads `own`
    of the model's."""

    def __init__(
        self, pages: PageStore, own: Span, transports: Sequence[Transport], offload: Offload
    ) -> None:
        self._pages = pages
        self._own = own
        self._transports = {transport.name: transport for transport in transports}
        self._offload = offload
        self._ends: dict[str, _End] = {}

    async def offer(
        self, key: str, backend: str, side: int, lane: Lane, blocks_per_slot: int, slots: int
    ) -> bytes:
        transport = self._transports.get(backend)
        if transport is None:
            ours = ", ".join(self._transports) or "inline"
            raise TransferError(f"no {backend} transport here, only {ours}")
        block_bytes = self._pages.block_bytes // self._own.size * lane.heads.size
        size = slots * blocks_per_slot * block_bytes
        half = await transport.offer(side, self._pages, size)
        heads = lane.heads.within(self._own)
        self._ends[key] = _End(half, block_bytes, heads, blocks_per_slot, slots)
        return half.blob

    async def join(self, key: str, peer_blob: bytes, blocks_per_slot: int, slots: int) -> bool:
        end = self._end(key)
        assert blocks_per_slot <= end.blocks_per_slot and slots <= end.slots
        end.blocks_per_slot, end.slots = blocks_per_slot, slots
        link = await end.half.join(peer_blob)
        if self._ends.get(key) is not end:  # closed meanwhile
            link.close()
            raise TransferError(f"{key}: closed")
        end.link = link
        return link.posts_first

    async def gather(
        self, key: str, slot: int, blocks: Sequence[int], checksums: bool
    ) -> list[int]:
        end, link = self._joined(key)
        start, size = end.slot(slot, len(blocks))
        staging = link.staging[start : start + size]
        return await to_the_end(self._offload(self._gather, end, staging, blocks, checksums))

    def _gather(
        self, end: _End, staging: memoryview, blocks: Sequence[int], checksums: bool
    ) -> list[int]:
        self._pages.gather(blocks, staging, end.heads)
        return block_checksums(self._pages, staging, len(blocks)) if checksums else []

    def send(self, key: str, slot: int, num_blocks: int, seq: int) -> Awaitable[None]:
        end, link = self._joined(key)
        return link.send(*end.slot(slot, num_blocks), seq)

    async def recv(self, key: str, slot: int, num_blocks: int, seq: int) -> Awaitable[None]:
        end, link = self._joined(key)
        return link.recv(*end.slot(slot, num_blocks), seq)

    async def scatter(
        self, key: str, slot: int, blocks: Sequence[int], crcs: Sequence[int]
    ) -> list[int]:
        end, link = self._joined(key)
        start, size = end.slot(slot, len(blocks))
        staging = link.staging[start : start + size]
        return await to_the_end(
            self._offload(scatter_checked, self._pages, staging, blocks, crcs, end.heads)
        )

    def failed(self, key: str) -> str | None:
        end = self._ends.get(key)
        if end is None:
            return "closed"
        return None if end.link is None else end.link.failed

    def cost(self, key: str) -> Cost:
        end = self._ends.get(key)
        if end is None or end.link is None:
            return Cost(0, 0, 0)
        return Cost(
            end.slots * end.blocks_per_slot * end.block_bytes, end.link.threads, end.link.fds
        )

    def close(self, key: str) -> None:
        end = self._ends.pop(key, None)
        if end is None:
            return
        if end.link is None:
            end.half.drop()
        else:
            end.link.close()

    def _end(self, key: str) -> _End:
        end = self._ends.get(key)
        if end is None:
            raise TransferError(f"{key}: closed")
        return end

    def _joined(self, key: str) -> tuple[_End, Link]:
        end = self._end(key)
        if end.link is None:
            raise TransferError(f"{key}: not joined")
        return end, end.link


def block_checksums(pages: PageStore, staging: memoryview, count: int) -> list[int]:
    """The crc32 of each of `count` equal blocks that fill `staging`."""
    size = len(staging) // count
    data = memoryview(pages.to_bytes(staging, len(staging)))
    return [crc32(data[i * size : (i + 1) * size]) for i in range(count)]


def scatter_checked(
    pages: PageStore,
    staging: memoryview,
    blocks: Sequence[int],
    crcs: Sequence[int],
    heads: slice | None = None,
) -> list[int]:
    """Copy into `blocks` what fills `staging`, but for those whose checksum is not that of `crcs`
    (empty: all are taken); the indices of these."""
    if not crcs:
        pages.scatter(staging, blocks, heads)
        return []
    size = len(staging) // len(blocks)
    found = block_checksums(pages, staging, len(blocks))
    bad = [i for i, crc in enumerate(found) if crc != crcs[i]]
    for first, end in _runs_between(bad, len(blocks)):
        pages.scatter(staging[first * size : end * size], blocks[first:end], heads)
    return bad


def _runs_between(bad: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    first = 0
    for index in (*bad, count):
        if first < index:
            yield first, index
        first = index + 1
