"""One fetch's stream on the receiving side, and the chunks that it announces. See sender.py for
what is said, chunk.py for a chunk's states.

Who leaves early (cancelled, or an error of its own) says so. What it was ready for still arrives,
in staging, and is dropped; what it was not is void on both sides. So the pair goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from workers.core.errors import KvasirError, TransferError
from workers.core.runner import PageStore
from workers.core.waits import Offload, to_the_end
from workers.transfer.arrivals import Arrivals
from workers.transfer.chunk import Chunk, ChunkState
from workers.transfer.pair import Pair
from workers.transfer.port import scatter_checked
from workers.transfer.receiver_pairs import Peer
from workers.wire import worker_pb2 as worker

SILENCE_S = 2.5  # the sender beats every second
LEAVE_S = 30.0  # for the sender to end the stream of one who leaves


class Landing(Protocol):
    """Where a ticket's blocks go."""

    def pages(self, first: int, count: int) -> Sequence[int]:
        """The pages of blocks first..first+count-1, which are the caller's alone; asked again, the
        same. Raises TransferError when there are none for blocks that nobody foresaw."""


class _Offered(Chunk):
    """`go`: the sender posts now; False: it never will."""

    def __init__(self, offer: worker.Offer, pages: Sequence[int]) -> None:
        super().__init__(offer.pair_seq, offer.slot, offer.first_block, offer.num_blocks)
        self.crcs = list(offer.crc32)
        self.pages = pages
        self.go: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


class Exchange:
    """run() outlives a caller of result() who leaves, until the sender has ended the stream."""

    def __init__(
        self,
        peer: Peer,
        redeem: worker.Redeem,
        pair: Pair | None,
        pages: PageStore,
        offload: Offload,
        landing: Landing,
        arrivals: Arrivals,
    ) -> None:
        self.pair_bytes = 0
        self.inline_bytes = 0
        self.computed_at: float | None = None  # when everything was; None: before it began
        self.bytes_before = 0  # that had come by then
        self._peer = peer
        self._pair = pair
        self._pages = pages
        self._offload = offload
        self._landing = landing
        self._arrivals = arrivals
        self._outbox: asyncio.Queue[worker.FetchRequest | None] = asyncio.Queue()
        self._say(redeem=redeem)
        self._outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left_at: float | None = None
        self._critical = 0  # sections that a caller who leaves waits for
        self._calm = asyncio.Event()
        self._chunks: dict[int, _Offered] = {}  # under way, by seq

    async def result(self) -> None:
        """Until everything is here and the sender knows it. Returns or raises when no page is
        written any more."""
        try:
            await asyncio.shield(self._outcome)
        except (asyncio.CancelledError, KvasirError):
            self._left_at = _now()
            await to_the_end(self._leave())
            raise

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._read(tasks)
                for chunk in self._chunks.values():
                    if not chunk.go.done():
                        chunk.go.set_result(False)
        finally:
            self._fail(TransferError("the exchange was broken off"))

    # -- the stream ------------------------------------------------------------------------------

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        stream = self._peer.fetch(_sent_from(self._outbox))
        try:
            while (response := await self._next(stream)) is not None:
                if self._outcome.done() or self._left_at is not None:
                    self._drop(response)
                    continue
                try:
                    await self._take(response, tasks)
                except KvasirError as error:
                    self._fail(error)
                    self._drop(response)
                if self._outcome.done() and self._outcome.exception() is None:
                    return
            self._fail(TransferError("the sender ended the stream"))
        except KvasirError as error:
            self._fail(error)
        finally:
            self._outbox.put_nowait(None)
            await stream.aclose()  # type: ignore[attr-defined]

    async def _next(
        self, stream: AsyncIterator[worker.FetchResponse]
    ) -> worker.FetchResponse | None:
        if self._left_at is not None and _now() > self._left_at + LEAVE_S:
            raise TransferError("the sender does not end the stream")
        try:
            async with asyncio.timeout(SILENCE_S):
                return await anext(stream, None)
        except TimeoutError:
            raise TransferError(f"the sender was silent for {SILENCE_S} s") from None

    async def _take(self, response: worker.FetchResponse, tasks: asyncio.TaskGroup) -> None:
        match response.WhichOneof("message"):
            case "offer":
                chunk = self._offered(response.offer)
                tasks.create_task(self._receive(chunk))
            case "go":
                self._go(response.go.pair_seq)
            case "inline":
                await self._take_inline(response.inline)
            case "complete":
                self.computed_at = _now() if self._arrivals.begun else None
                self.bytes_before = self.pair_bytes + self.inline_bytes
                self._arrivals.completed(response.complete)
                self._say_if_done()
            case "redeemed" if self._arrivals.done:
                self._outcome.set_result(None)
            case "heartbeat":
                return
            case other:
                raise TransferError(f"{other} is out of place")

    def _drop(self, response: worker.FetchResponse) -> None:
        """We leave: an offer is void, a receive that was promised is posted all the same."""
        match response.WhichOneof("message"):
            case "offer" if self._pair is not None and response.offer.pair_seq not in self._chunks:
                self._pair.turns.over(response.offer.pair_seq)
            case "go":
                self._go(response.go.pair_seq)

    def _go(self, seq: int) -> None:
        chunk = self._chunks.get(seq)
        if chunk is not None and not chunk.go.done():
            chunk.go.set_result(True)

    def _say(self, **what: object) -> None:
        self._outbox.put_nowait(worker.FetchRequest(**what))  # type: ignore[arg-type]

    def _say_if_done(self) -> None:
        if self._arrivals.done:
            self._say(received=worker.Received())

    def _fail(self, error: KvasirError) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(error)
            self._outcome.exception()  # told to who waits, unless they have left

    # -- leaving ---------------------------------------------------------------------------------

    @property
    def _leaving(self) -> bool:
        return self._left_at is not None or self._outcome.done()

    @contextmanager
    def _section(self) -> Iterator[None]:
        """Pages are written, or something is posted and not said: leaving waits for its end."""
        self._critical += 1
        self._calm.clear()
        try:
            yield
        finally:
            self._critical -= 1
            if not self._critical:
                self._calm.set()

    async def _leave(self) -> None:
        if self._critical:
            await self._calm.wait()
        self._say(leave=worker.Leave())
        self._outbox.put_nowait(None)

    # -- blocks in -------------------------------------------------------------------------------

    async def _take_inline(self, inline: worker.InlineBlocks) -> None:
        first, count = inline.first_block, inline.num_blocks
        size = count * self._pages.block_bytes
        data = inline.data  # each reading of the field copies it
        if len(data) != size or len(inline.crc32) not in (0, count):
            raise TransferError(f"{len(data)} inline bytes for {count} blocks")
        self._arrivals.came_inline(first, count)
        pages = self._landing.pages(first, count)
        staging = self._pages.from_bytes(data)
        with self._section():
            copied = self._offload(scatter_checked, self._pages, staging, pages, list(inline.crc32))
            bad = await to_the_end(copied)
        self.inline_bytes += size
        self._landed(range(first, first + count), bad)

    def _landed(self, blocks: range, bad: Sequence[int]) -> None:
        """Raises CorruptKV."""
        wrong = [blocks[index] for index in bad]
        self._arrivals.landed(block for block in blocks if block not in wrong)
        if wrong:
            self._arrivals.wrong(wrong)
            self._say(again=worker.Again(blocks=wrong))
        self._say_if_done()

    def _offered(self, offer: worker.Offer) -> _Offered:
        """Sizes are agreed before anything is posted: a receive too short aborts the process."""
        pair, count = self._pair, offer.num_blocks
        if pair is None or offer.generation != pair.generation:
            raise TransferError(f"offer for generation {offer.generation}, which is not ours")
        fits = 0 < count <= pair.blocks_per_slot and offer.slot < pair.slots
        if offer.pair_seq in self._chunks:
            raise TransferError(f"chunk {offer.pair_seq} comes a second time")
        if not fits or offer.num_bytes != count * pair.bytes_of_block:
            raise TransferError(f"{offer.num_bytes} bytes offered for {count} blocks")
        if len(offer.crc32) not in (0, count * pair.num_lanes):
            raise TransferError(f"{len(offer.crc32)} checksums for {count} blocks")
        self._arrivals.offered(offer.first_block, count)
        chunk = _Offered(offer, self._landing.pages(offer.first_block, count))
        self._chunks[chunk.seq] = chunk
        return chunk

    async def _receive(self, chunk: _Offered) -> None:
        """From Offer to Taken. What does not end well retires the generation, and comes inline."""
        pair = self._pair
        assert pair is not None
        bad: list[int] = []
        try:
            bad = await self._received(pair, chunk)
        except TransferError as error:
            pair.retire(error.message)
        if chunk.under_way:
            chunk.move(ChunkState.LOST)
        pair.turns.over(chunk.seq)
        del self._chunks[chunk.seq]
        if self._leaving:
            return
        if chunk.state is ChunkState.LOST:
            self._arrivals.lost(chunk.blocks)
            self._say(again=worker.Again(blocks=chunk.blocks))
            return
        self.pair_bytes += chunk.count * pair.bytes_of_block
        try:
            self._landed(chunk.blocks, bad)
        except KvasirError as error:
            self._fail(error)

    async def _received(self, pair: Pair, chunk: _Offered) -> list[int]:
        """Which of its blocks are wrong."""
        pair.check()
        if not pair.posts_first:
            if self._leaving:
                chunk.move(ChunkState.VOID)
                return []
            self._say(ready=worker.Ready(pair_seq=chunk.seq))
            chunk.move(ChunkState.READY)
            if not await pair.in_time(chunk.go, "Go"):
                chunk.move(ChunkState.VOID)
                return []
        await pair.turn(chunk.seq)
        if pair.posts_first and self._leaving:
            chunk.move(ChunkState.VOID)
            return []
        with self._section():
            arrival = await pair.recv(chunk.slot, chunk.count, chunk.seq)
            chunk.move(ChunkState.POSTED)
            pair.turns.over(chunk.seq)
            if pair.posts_first:
                self._say(ready=worker.Ready(pair_seq=chunk.seq))
        await arrival
        chunk.move(ChunkState.ARRIVED)
        bad = []
        if not self._leaving:
            with self._section():
                bad = await pair.scatter(chunk.slot, chunk.pages, chunk.crcs)
                self._say(taken=worker.Taken(pair_seq=chunk.seq))
        chunk.move(ChunkState.TAKEN)
        return bad


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _sent_from(
    outbox: asyncio.Queue[worker.FetchRequest | None],
) -> AsyncIterator[worker.FetchRequest]:
    while (message := await outbox.get()) is not None:
        yield message
