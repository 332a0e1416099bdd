"""The sending half of a fetch: offer a range, wait until the receive is posted, send; or inline.

decode                          prefill
Redeem{ticket, epoch, from} ->
                             <- Offer{range, bytes, generation, pair_seq}
(posts its receive)
Ready{pair_seq}             ->
                                (gathered before; now posts its send)
...                             ...
Received                    ->  ticket REDEEMED, pages free
                             <- Redeemed
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from typing import TypeVar

from workers.core.errors import TicketError, TransferError
from workers.core.runner import PageStore
from workers.core.ticket import Ticket
from workers.core.waits import Offload, let_go, to_the_end
from workers.transfer.pairs import Pair
from workers.wire import worker_pb2 as worker

T = TypeVar("T")
INLINE_BYTES = 1 << 20  # of one message; well below gRPC's limit and the best size measured for it


class Fetch:
    """One binding's stream on the prefill side, and how others end it."""

    def __init__(
        self,
        ticket: Ticket,
        redeem: worker.Redeem,
        requests: AsyncIterator[worker.FetchRequest],
        patience_s: float,
    ) -> None:
        self.ticket = ticket
        self.redeem = redeem
        self.stopping = asyncio.Event()
        self.done = asyncio.Event()
        self._requests = requests
        self._patience_s = patience_s

    async def expect(self, what: str) -> worker.FetchRequest:
        """The decode worker's next message, which must be `what`. Raises TransferError."""
        message = await self.unless_stopped(_next(self._requests))
        if message is None or message.WhichOneof("message") != what:
            raise TransferError(f"ticket {self.ticket.id}: {what} expected, the decode worker left")
        return message

    async def unless_stopped(self, work: Awaitable[T], *, deadline: bool = True) -> T:
        """Await `work` unless the ticket is taken away (TicketError) or patience ends."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait(
                {task, stopped},
                timeout=self._patience_s if deadline else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if task.done():
                return task.result()
            if stopped.done():
                raise TicketError(f"ticket {self.ticket.id}: {self.ticket.story[-1]}")
            raise TransferError(f"ticket {self.ticket.id}: no answer in {self._patience_s:.0f} s")
        finally:
            await let_go(task)
            await let_go(stopped)


async def _next(requests: AsyncIterator[worker.FetchRequest]) -> worker.FetchRequest | None:
    return await anext(requests, None)


async def send_blocks(
    fetch: Fetch,
    blocks: Sequence[int],
    pair: Pair | None,
    pages: PageStore,
    offload: Offload,
    checksums: bool,
) -> AsyncGenerator[worker.FetchResponse]:
    """Send blocks[first_block:] in ranges that fit the staging, through `pair` or inline. A pair
    that breaks under another fetch leaves the rest of this one inline."""
    first = fetch.redeem.first_block
    while first < len(blocks):
        if fetch.stopping.is_set():
            raise TicketError(f"ticket {fetch.ticket.id}: {fetch.ticket.story[-1]}")
        if pair is not None and pair.link.failed is not None:
            pair = None
        size = pair.staging_bytes if pair is not None else INLINE_BYTES
        chunk = blocks[first : first + max(size // pages.block_bytes, 1)]
        if pair is None:
            yield await _inline(chunk, first, pages, offload, checksums)
            first += len(chunk)
            continue
        through = _through_pair(fetch, chunk, first, pair, pages, offload, checksums)
        async with aclosing(through) as offers:
            async for offer in offers:
                yield offer
                first += len(chunk)


async def _inline(
    chunk: Sequence[int], first: int, pages: PageStore, offload: Offload, checksums: bool
) -> worker.FetchResponse:
    num_bytes = len(chunk) * pages.block_bytes
    staging = pages.new_staging(num_bytes)
    await to_the_end(offload(pages.gather, chunk, staging))
    data = pages.to_bytes(staging, num_bytes)
    crc = zlib.crc32(data) if checksums else None
    return worker.FetchResponse(
        inline=worker.InlineBlocks(first_block=first, num_blocks=len(chunk), data=data, crc32=crc)
    )


async def _through_pair(
    fetch: Fetch,
    chunk: Sequence[int],
    first: int,
    pair: Pair,
    pages: PageStore,
    offload: Offload,
    checksums: bool,
) -> AsyncGenerator[worker.FetchResponse]:
    """One range, or nothing if the pair broke while this waited for its turn. Interrupted between
    offer and arrival, nobody knows what the receiver has posted: the generation is retired."""
    num_bytes = len(chunk) * pages.block_bytes
    async with pair.lock:
        if pair.link.failed is not None:
            return
        await to_the_end(offload(pages.gather, chunk, pair.link.staging))
        pair.seq += 1
        offer = worker.Offer(
            epoch=fetch.redeem.epoch,
            first_block=first,
            num_blocks=len(chunk),
            num_bytes=num_bytes,
            generation=pair.generation,
            pair_seq=pair.seq,
        )
        if checksums:
            offer.crc32 = zlib.crc32(pages.to_bytes(pair.link.staging, num_bytes))
        arrived = False
        try:
            yield worker.FetchResponse(offer=offer)
            ready = await fetch.expect("ready")
            if ready.ready.pair_seq != pair.seq:
                raise TransferError(f"ready for {ready.ready.pair_seq}, offered {pair.seq}")
            await pair.link.send(num_bytes, pair.seq)
            arrived = True
        finally:
            if not arrived:
                pair.retire()
