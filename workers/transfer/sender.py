"""The sending half of a fetch. Blocks come from a source as their KV becomes complete; they go over
a pair, several chunks at a time, or inside the stream.

receiver                         sender
Redeem{ticket, epoch, from}   ->
                              <- Complete{tokens}    as soon as everything is computed
                              <- Offer{range, slot, pair_seq}   gathered before
(posts its receive)
Ready{pair_seq}               ->
                              <- Go{pair_seq}        only where both post at once
                                 (posts its send)
Taken{pair_seq}               ->                     the slot is free
...                              ...
Again{blocks}                 ->                     lost, or wrong checksums
                              <- InlineBlocks
Received                      ->                     everything is here and checked
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import nullcontext

from workers.core.errors import KvasirError, TicketError, TransferError
from workers.core.runner import PageStore
from workers.core.waits import Offload, let_go, to_the_end
from workers.transfer.fetch import Fetch, Source
from workers.transfer.offers import Offers, chunk_blocks
from workers.transfer.pair import Pair
from workers.transfer.port import block_checksums
from workers.wire import worker_pb2 as worker

MESSAGE_BYTES = 1 << 20  # well below gRPC's limit and the best size measured for it
MOST_AGAIN = 2  # times that a block may be: lost with its pair, then wrong
AHEAD = 2  # inline messages that wait for the stream


async def send_blocks(
    fetch: Fetch,
    source: Source,
    pair: Pair | None,
    pages: PageStore,
    offload: Offload,
    *,
    checksums: bool,
    inline_bytes: int,
) -> AsyncGenerator[worker.FetchResponse]:
    """Everything up to Received. `pages`: of whole blocks, for what goes inline: ranges of at most
    `inline_bytes`, and what failed on the pair and is asked for again. Raises TicketError (stopped,
    or the sequence is over) and TransferError (the receiver left, or is silent)."""
    sending = _Sending(fetch, source, pair, pages, offload, checksums, inline_bytes)
    task = asyncio.ensure_future(sending.run())
    try:
        with nullcontext() if pair is None else pair.used():
            async for response in sending.responses():
                yield response
        await task
    finally:
        await let_go(task)
        fetch.stop()


class _Sending:
    def __init__(
        self,
        fetch: Fetch,
        source: Source,
        pair: Pair | None,
        pages: PageStore,
        offload: Offload,
        checksums: bool,
        inline_bytes: int,
    ) -> None:
        self._fetch = fetch
        self._source = source
        self._pair = pair
        self._pages = pages
        self._offload = offload
        self._checksums = checksums
        self._inline_bytes = inline_bytes
        self._message_blocks = max(1, MESSAGE_BYTES // pages.block_bytes)
        self._outbox: asyncio.Queue[worker.FetchResponse | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(AHEAD)
        self._sent: list[int] = []  # pages of the blocks from redeem.first_block on
        self._offers: Offers | None = None
        self._resent = 0  # blocks, asked for again
        self._completed = False
        self._received = asyncio.Event()
        self._heard = asyncio.Event()

    async def responses(self) -> AsyncGenerator[worker.FetchResponse]:
        while (response := await self._outbox.get()) is not None:
            yield response
            if response.HasField("inline"):
                self._room.release()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                if self._pair is not None:
                    say = self._outbox.put_nowait
                    self._offers = Offers(self._fetch, self._pair, tasks, say, self._checksums)
                await self._send(tasks)
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            if self._offers is not None:
                self._offers.broken()
            self._outbox.put_nowait(None)

    async def _send(self, tasks: asyncio.TaskGroup) -> None:
        """Chunks under way end before this does, also when the ticket is taken away."""
        listening = tasks.create_task(self._listen(tasks))
        try:
            await self._feed()
            await self._until_received()
            await self._drained()
        except KvasirError:
            self._fetch.stop()
            await self._drained()
            raise
        finally:
            listening.cancel()

    async def _drained(self) -> None:
        if self._offers is not None:
            await self._offers.drained()

    # -- what the receiver says ------------------------------------------------------------------

    async def _listen(self, tasks: asyncio.TaskGroup) -> None:
        async for message in self._fetch.requests:
            match message.WhichOneof("message"):
                case "leave":
                    break
                case "again":
                    self._resent += len(message.again.blocks)
                    if self._resent > MOST_AGAIN * len(self._sent):
                        raise TransferError("blocks are asked for again and again")
                    tasks.create_task(self._resend(list(message.again.blocks)))
                case "received":
                    self._received.set()
            if self._offers is not None:
                _pass_on(message, self._offers)
            self._heard.set()
        else:
            if self._offers is not None:
                self._offers.broken()
        self._fetch.left.set()
        if self._offers is not None:
            self._offers.left()

    async def _until_received(self) -> None:
        while not self._received.is_set():
            self._heard.clear()
            try:
                async with asyncio.timeout(self._fetch.patience_s):
                    await self._fetch.unless_stopped(self._heard.wait())
            except TimeoutError:
                raise TransferError(
                    f"ticket {self._fetch.ticket.id}: no answer in {self._fetch.patience_s:.0f} s"
                ) from None

    # -- blocks out ------------------------------------------------------------------------------

    async def _feed(self) -> None:
        first = self._fetch.redeem.first_block
        while True:
            self._say_complete()
            if self._source.live:
                await self._fetch.unless_stopped(self._drained())
            blocks = await self._fetch.unless_stopped(self._source.blocks(first))
            self._say_complete()
            if not blocks:
                assert self._completed, "a source ended that is not complete"
                return
            self._sent.extend(blocks)
            end, size = first + len(blocks), self._chunk_blocks(len(blocks))
            while first < end:
                first += await self._move(first, end - first, size)
                self._say_complete()

    def _say_complete(self) -> None:
        if self._completed:
            return
        complete = self._source.complete(self._fetch.redeem.known_tokens)
        if complete is not None:
            self._completed = True
            self._outbox.put_nowait(worker.FetchResponse(complete=complete))

    def _chunk_blocks(self, num_blocks: int) -> int:
        """Of each chunk through the pair of so many blocks; 0: they go inline."""
        pair, block_bytes = self._pair, self._pages.block_bytes
        if pair is None or num_blocks * block_bytes <= self._inline_bytes:
            return 0
        return chunk_blocks(
            num_blocks, block_bytes, slots=pair.slots, blocks_per_slot=pair.blocks_per_slot
        )

    async def _move(self, first: int, left: int, chunk: int) -> int:
        """Some of the `left` blocks from `first` on, at most `chunk` through the pair; how many."""
        if chunk and self._offers is not None and self._offers.possible:
            count = min(left, chunk)
            if await self._offers.offer(first, self._pages_of(first, count)):
                return count
        count = min(left, self._message_blocks)
        await self._inline(first, count)
        return count

    def _pages_of(self, first: int, count: int) -> list[int]:
        start = first - self._fetch.redeem.first_block
        return self._sent[start : start + count]

    async def _inline(self, first: int, count: int) -> None:
        await self._fetch.unless_stopped(self._room.acquire())
        size = count * self._pages.block_bytes
        with self._fetch.reading():
            staging = self._pages.new_staging(size)
            blocks = self._pages_of(first, count)
            await to_the_end(self._offload(self._pages.gather, blocks, staging))
        crcs = block_checksums(self._pages, staging, count) if self._checksums else []
        data = self._pages.to_bytes(staging, size)
        inline = worker.InlineBlocks(first_block=first, num_blocks=count, data=data, crc32=crcs)
        self._outbox.put_nowait(worker.FetchResponse(inline=inline))

    async def _resend(self, blocks: Sequence[int]) -> None:
        start = self._fetch.redeem.first_block
        known = [block for block in blocks if 0 <= block - start < len(self._sent)]
        try:
            for first, count in _runs(known, self._message_blocks):
                await self._inline(first, count)
        except (TicketError, TransferError):
            return  # stopped, or the receiver left: the feeder says so


def _pass_on(message: worker.FetchRequest, offers: Offers) -> None:
    match message.WhichOneof("message"):
        case "ready":
            offers.ready(message.ready.pair_seq)
        case "taken":
            offers.taken(message.taken.pair_seq)
        case "again":
            offers.again(message.again.blocks)
        case "received":
            offers.received()


def _runs(blocks: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """(first, count) of neighbours, at most `most` together."""
    rest = sorted(set(blocks))
    while rest:
        count = 1
        while count < min(most, len(rest)) and rest[count] == rest[0] + count:
            count += 1
        yield rest[0], count
        rest = rest[count:]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What the world did wrong, if that is all; else our own bug."""
    known, bugs = group.split(KvasirError)
    if known is None or bugs is not None:
        return group
    first = known.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
