"""The chunks of one fetch that go through a pair, on the sending side: from Offer to Taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from workers.core.errors import TransferError
from workers.transfer.chunk import Chunk, ChunkState
from workers.transfer.fetch import Fetch
from workers.transfer.pair import Pair
from workers.wire import worker_pb2 as worker

LEAST_BYTES = 1 << 20  # of a chunk, where a range is cut only so that copies and wire overlap


class _Offered(Chunk):
    """`ready` and `taken` come from the receiver; False: it left before."""

    def __init__(self, seq: int, slot: int, first: int, count: int) -> None:
        super().__init__(seq, slot, first, count)
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[bool] = loop.create_future()
        self.taken: asyncio.Future[bool] = loop.create_future()


class Offers:
    """`say` puts a message into the stream, at once."""

    def __init__(
        self,
        fetch: Fetch,
        pair: Pair,
        tasks: asyncio.TaskGroup,
        say: Callable[[worker.FetchResponse], None],
        checksums: bool,
    ) -> None:
        self._fetch = fetch
        self._pair = pair
        self._tasks = tasks
        self._say = say
        self._checksums = checksums
        self._chunks: dict[int, _Offered] = {}  # under way, by seq
        self._carrying: set[asyncio.Task[None]] = set()

    # -- what the receiver says ------------------------------------------------------------------

    def ready(self, seq: int) -> None:
        if seq in self._chunks:
            _settle(self._chunks[seq].ready, True)

    def taken(self, seq: int) -> None:
        if seq in self._chunks:
            _settle(self._chunks[seq].taken, True)

    def received(self) -> None:
        for chunk in self._chunks.values():
            _settle(chunk.taken, True)

    def left(self) -> None:
        """It says nothing more: it receives what it was ready for, and drops it."""
        for chunk in self._chunks.values():
            _settle(chunk.ready, False)
            _settle(chunk.taken, False)

    def again(self, blocks: Sequence[int]) -> None:
        """A chunk of these that is under way was lost to it."""
        for chunk in self._chunks.values():
            if not chunk.taken.done() and not set(blocks).isdisjoint(chunk.blocks):
                self._pair.retire(f"the receiver has lost {chunk}")
                _settle(chunk.ready, False)
                _settle(chunk.taken, False)

    # -- chunks ----------------------------------------------------------------------------------

    @property
    def possible(self) -> bool:
        return self._pair.failed is None

    async def offer(self, first: int, pages: Sequence[int]) -> bool:
        """False when the pair fails before anything was said. Raises TicketError and TransferError
        as Fetch does."""
        slot = await self._slot()
        if slot is None:
            return False
        said = False
        try:
            with self._fetch.reading():
                crcs = await self._gather(slot, pages)
            if crcs is None or not self.possible or self._fetch.left.is_set():
                return False
            chunk = _Offered(self._pair.next_seq(), slot, first, len(pages))
            self._chunks[chunk.seq] = chunk
            self._say(worker.FetchResponse(offer=self._message(chunk, crcs)))
            said = True
        finally:
            if not said:
                self._pair.free_slot(slot)
        task = self._tasks.create_task(self._carry(chunk))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)
        return True

    async def _slot(self) -> int | None:
        taking = asyncio.ensure_future(self._take_slot())
        kept = False
        try:
            slot = await self._fetch.unless_stopped(taking)
            kept = True
            return slot
        finally:
            if not kept and taking.done() and not taking.cancelled():
                slot = taking.result()
                if slot is not None:
                    self._pair.free_slot(slot)

    async def _take_slot(self) -> int | None:
        try:
            return await self._pair.take_slot()
        except TransferError:
            return None

    async def _gather(self, slot: int, pages: Sequence[int]) -> list[int] | None:
        try:
            return await self._pair.gather(slot, pages, self._checksums)
        except TransferError:
            return None  # the pair was closed under it

    def _message(self, chunk: Chunk, crcs: Sequence[int]) -> worker.Offer:
        return worker.Offer(
            epoch=self._fetch.redeem.epoch,
            first_block=chunk.first,
            num_blocks=chunk.count,
            num_bytes=chunk.count * self._pair.bytes_of_block,
            generation=self._pair.generation,
            pair_seq=chunk.seq,
            crc32=crcs,
            slot=chunk.slot,
        )

    async def _carry(self, chunk: _Offered) -> None:
        """What does not end well retires the generation."""
        pair = self._pair
        try:
            await self._carried(chunk)
        except TransferError as error:
            pair.retire(error.message)
        if chunk.under_way:
            chunk.move(ChunkState.LOST)
        del self._chunks[chunk.seq]
        pair.turns.over(chunk.seq)
        pair.free_slot(chunk.slot)

    async def _carried(self, chunk: _Offered) -> None:
        pair = self._pair
        ready = await pair.in_time(chunk.ready, f"Ready for {chunk}")
        pair.check()
        if not ready:
            chunk.move(ChunkState.VOID)
            return
        chunk.move(ChunkState.READY)
        await pair.turn(chunk.seq)
        if not pair.posts_first:
            if self._fetch.left.is_set():
                chunk.move(ChunkState.VOID)
                return
            self._say(worker.FetchResponse(go=worker.Go(pair_seq=chunk.seq)))
        sent = pair.send(chunk.slot, chunk.count, chunk.seq)
        chunk.move(ChunkState.POSTED)
        pair.turns.over(chunk.seq)
        await sent
        chunk.move(ChunkState.ARRIVED)
        await pair.in_time(chunk.taken, f"Taken for {chunk}")
        chunk.move(ChunkState.TAKEN)

    async def drained(self) -> None:
        """All chunks under way have ended: their receives were posted, or never will be."""
        while self._carrying:
            await asyncio.wait(set(self._carrying))

    def broken(self) -> None:
        """The stream is gone; nobody can know what the receiver has posted of what is left."""
        if self._chunks:
            self._pair.retire(f"the stream broke under {list(self._chunks.values())}")


def chunk_blocks(blocks: int, block_bytes: int, *, slots: int, blocks_per_slot: int) -> int:
    """Of each chunk of a range: what a slot holds, or less where the range is short, so that
    gather, wire and scatter overlap all the same."""
    least = max(1, LEAST_BYTES // block_bytes)
    parts = max(1, min(2 * slots, blocks // least), -(-blocks // blocks_per_slot))
    return -(-blocks // parts)


def _settle(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)
