"""One end of a pair: the lanes of a generation, their slots, and the order of what goes over them.

A pair is (sender replica and shard, receiver replica and shard, generation). It has a lane for each
(sender rank, receiver rank) that have KV heads in common. Several fetches share it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from workers.core.errors import TransferError
from workers.core.lanes import Lane
from workers.transfer.chunk import Turns
from workers.transfer.link import RECEIVER, SENDER
from workers.transfer.port import Cost, Port
from workers.wire import worker_pb2 as worker

T = TypeVar("T")
CHECK_S = 0.1  # how often one who waits looks whether the pair has failed


class Pair:
    """`peer`: the other replica's id. `block_bytes`: of a whole block, with all heads. `shards`:
    the sender's and the receiver's. A chunk has `deadline_s` for each thing that the peer does.
    `broke` is called once, if it fails while it is used."""

    def __init__(
        self,
        peer: str,
        side: int,
        backend: str,
        generation: int,
        lanes: Sequence[Lane],
        ports: Sequence[Port],
        block_bytes: int,
        *,
        name: str,
        shards: tuple[int, int],
        slot_bytes: int,
        slots: int,
        deadline_s: float,
        broke: Callable[[], None] = lambda: None,
    ) -> None:
        self.peer = peer
        self.side = side
        self.backend = backend
        self.generation = generation
        self.shards = shards
        self.deadline_s = deadline_s
        self.bytes_of_block = sum(lane.bytes_of(block_bytes) for lane in lanes)
        self.blocks_per_slot = max(1, slot_bytes // self.bytes_of_block)
        self.slots = slots
        self.posts_first = True
        self.turns = Turns()
        self.chunks = 0  # that were moved
        self.num_bytes = 0
        self._lanes = [
            (ports[lane.source if side == SENDER else lane.target], f"{name} {i}", lane)
            for i, lane in enumerate(lanes)
        ]
        self._broke = broke
        self._failed: str | None = None
        self._users = 0
        self._seq = 0
        self._free: deque[int] = deque()
        self._waiting: deque[asyncio.Future[int]] = deque()

    # -- making it -----------------------------------------------------------------------------

    @property
    def slot_bytes(self) -> int:
        """Over all lanes."""
        return self.blocks_per_slot * self.bytes_of_block

    async def offer(self) -> list[bytes]:
        """Our rendezvous for each lane. Raises TransferError, and has then given all back."""
        sizes = self.blocks_per_slot, self.slots
        return await self._all(
            port.offer(key, self.backend, self.side, lane, *sizes)
            for port, key, lane in self._lanes
        )

    async def join(self, blobs: Sequence[bytes], slot_bytes: int, slots: int) -> None:
        """With the peer's rendezvous and the sizes agreed on. Raises TransferError like offer."""
        blocks_per_slot = slot_bytes // self.bytes_of_block
        fits = 0 < blocks_per_slot <= self.blocks_per_slot and 0 < slots <= self.slots
        if not fits or len(blobs) != len(self._lanes):
            self.retire("no agreement")
            raise TransferError(
                f"{self.peer} answers with {len(blobs)} lanes and {slots} slots of {slot_bytes} "
                f"bytes, where {len(self._lanes)} lanes and {self.slots} of {self.slot_bytes} were "
                "offered"
            )
        self.blocks_per_slot, self.slots = blocks_per_slot, slots
        posts_first = await self._all(
            port.join(key, blob, blocks_per_slot, slots)
            for (port, key, _), blob in zip(self._lanes, blobs, strict=True)
        )
        self.posts_first = all(posts_first)
        self._free.extend(range(slots))

    async def _all(self, work: Iterable[Awaitable[T]]) -> list[T]:
        """One for each lane; if any fails, nothing is left of the pair."""
        made = False
        try:
            done = await _every(work)
            made = True
            return done
        finally:
            if not made:
                self.retire("it could not be made")

    # -- its life ------------------------------------------------------------------------------

    @property
    def failed(self) -> str | None:
        """Why nothing more can go over it, or None."""
        if self._failed is None:
            why = next((w for port, key, _ in self._lanes if (w := port.failed(key))), None)
            if why is not None:
                self.retire(why)
        return self._failed

    def retire(self, why: str) -> None:
        """For good: something was interrupted half way, and nobody can know what the peer has
        posted. Idempotent."""
        if self._failed is not None:
            return
        self._failed = why
        if self._users:
            self._broke()
        self.turns.end(why)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(TransferError(why))
        for port, key, _ in self._lanes:
            port.close(key)

    @contextmanager
    def used(self) -> Iterator[None]:
        """By a fetch: a pair in use does not make room for another."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    @property
    def busy(self) -> bool:
        return self._users > 0 and self._failed is None

    # -- slots and order, for the sender -------------------------------------------------------

    async def take_slot(self) -> int:
        """First come, first served. Raises TransferError when the pair fails."""
        self.check()
        if self._free:
            return self._free.popleft()
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self.free_slot(waiting.result())
            raise
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def free_slot(self, slot: int) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(slot)
                return
        self._free.append(slot)

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    @property
    def under_way(self) -> int:
        """Offers: what is neither free nor was ever."""
        return self.slots - len(self._free) if self._failed is None else 0

    async def turn(self, seq: int) -> None:
        """Until `seq` may be posted. Raises TransferError like in_time."""
        waiting = asyncio.ensure_future(self.turns.wait(seq))
        try:
            await self.in_time(waiting, f"the turn of chunk {seq}")
        finally:
            waiting.cancel()

    async def in_time(self, waiting: asyncio.Future[T], what: str) -> T:
        """Raises TransferError when the pair fails first, or the deadline is over: then the
        generation is retired."""
        deadline = asyncio.get_running_loop().time() + self.deadline_s
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=CHECK_S)
            if not waiting.done() and asyncio.get_running_loop().time() >= deadline:
                self.retire(f"{what} did not come in {self.deadline_s:.0f} s")
            if not waiting.done():
                self.check()
        return waiting.result()

    def check(self) -> None:
        """Raises TransferError when it has failed."""
        if self.failed is not None:
            raise TransferError(f"pair with {self.peer}: {self.failed}")

    # -- moving blocks -------------------------------------------------------------------------

    async def gather(self, slot: int, blocks: Sequence[int], checksums: bool) -> list[int]:
        """Into the slot of every lane, to the end even when cancelled. The crc32 of each block,
        lane after lane, or nothing."""
        parts = await _every(
            port.gather(key, slot, blocks, checksums) for port, key, _ in self._lanes
        )
        return [crc for part in parts for crc in part]

    def send(self, slot: int, num_blocks: int, seq: int) -> Awaitable[Any]:
        """Posted now, in `seq`'s turn."""
        posted = [
            asyncio.ensure_future(port.send(key, slot, num_blocks, seq))
            for port, key, _ in self._lanes
        ]
        self._count(num_blocks)
        return asyncio.gather(*posted)

    async def recv(self, slot: int, num_blocks: int, seq: int) -> Awaitable[Any]:
        """Returns when every lane's receive is posted, in `seq`'s turn."""
        posted = await _every(port.recv(key, slot, num_blocks, seq) for port, key, _ in self._lanes)
        self._count(num_blocks)
        return asyncio.gather(*posted)

    async def scatter(self, slot: int, blocks: Sequence[int], crcs: Sequence[int]) -> list[int]:
        """Check and copy into pages; the indices of blocks whose checksum is wrong in any lane."""
        count = len(blocks) if crcs else 0
        bad = await _every(
            port.scatter(key, slot, blocks, crcs[i * count : (i + 1) * count])
            for i, (port, key, _) in enumerate(self._lanes)
        )
        return sorted({index for part in bad for index in part})

    def _count(self, num_blocks: int) -> None:
        self.chunks += 1
        self.num_bytes += num_blocks * self.bytes_of_block

    @property
    def num_lanes(self) -> int:
        return len(self._lanes)

    def report(self) -> worker.PairInfo:
        costs = [port.cost(key) for port, key, _ in self._lanes]
        total = Cost(*(sum(part) for part in zip(*costs, strict=True)))
        return worker.PairInfo(
            peer=self.peer,
            sending=self.side == SENDER,
            transport=self.backend,
            generation=self.generation,
            lanes=self.num_lanes,
            staging_bytes=total.staging_bytes,
            threads=total.threads,
            fds=total.fds,
            offers_under_way=self.under_way if self.side != RECEIVER else 0,
            chunks=self.chunks,
            num_bytes=self.num_bytes,
            failed=self.failed or "",
        )


async def _every(work: Iterable[Awaitable[T]]) -> list[T]:
    """All results, when all have ended, even where one fails or the caller is cancelled: none of
    them touches pages any more."""
    ended = await asyncio.gather(*work, return_exceptions=True)
    for result in ended:
        if isinstance(result, BaseException):
            raise result
    return ended  # type: ignore[return-value]
