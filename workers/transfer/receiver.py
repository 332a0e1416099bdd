"""The receiving half of a fetch: redeem a ticket, post a receive for each offer, scatter into pages
that the caller has reserved. See sender.py for the exchange."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from workers.core.errors import TransferError
from workers.core.runner import PageStore
from workers.core.waits import Offload, to_the_end
from workers.transfer.pairs import Pair, ReceiverPairs, receiver_name
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker

SILENCE_S = 3.0  # the prefill worker beats every second


class Peer(Protocol):
    """Another worker as fetches see it. Errors come as TicketError or TransferError."""

    async def connect(self, request: worker.ConnectRequest) -> worker.ConnectResponse: ...

    def fetch(
        self, requests: AsyncIterator[worker.FetchRequest]
    ) -> AsyncIterator[worker.FetchResponse]: ...


@dataclass(frozen=True, slots=True)
class Fetched:
    num_bytes: int
    seconds: float
    transport: str


class Receiver:
    def __init__(
        self,
        peer_at: Callable[[str], Peer],
        pairs: ReceiverPairs,
        pages: PageStore,
        me: common.ReplicaRef,
        offload: Offload,
        transport_name: str,
    ) -> None:
        self._peer_at = peer_at
        self._pairs = pairs
        self._pages = pages
        self._me = me
        self._offload = offload
        self._transport_name = transport_name

    async def fetch(
        self, ticket: common.Ticket, epoch: int, first_block: int, blocks: Sequence[int]
    ) -> Fetched:
        """Fill `blocks` with the ticket's blocks from `first_block` on. They must be the caller's
        alone until this returns or raises: TicketError (the ticket is over or another's) or
        TransferError (it may be bound again with a higher epoch)."""
        began = asyncio.get_running_loop().time()
        peer = self._peer_at(ticket.prefill.address)
        pair = await self._pairs.pair_with(ticket.prefill, peer.connect)
        redeem = worker.Redeem(
            ticket_id=ticket.id,
            epoch=epoch,
            kv_abi=ticket.kv_abi,
            first_block=first_block,
            receiver=receiver_name(self._me),
            generation=0 if pair is None else pair.generation,
        )
        try:
            inline = await self._exchange(peer, redeem, pair, blocks)
        except TransferError:
            self._pairs.quarantine(ticket.prefill)
            raise
        return Fetched(
            num_bytes=len(blocks) * self._pages.block_bytes,
            seconds=asyncio.get_running_loop().time() - began,
            transport="inline" if inline else self._transport_name,
        )

    async def _exchange(
        self, peer: Peer, redeem: worker.Redeem, pair: Pair | None, blocks: Sequence[int]
    ) -> bool:
        """Returns whether the blocks came inline."""
        outbox: asyncio.Queue[worker.FetchRequest | None] = asyncio.Queue()
        outbox.put_nowait(worker.FetchRequest(redeem=redeem))
        stream = peer.fetch(_sent_from(outbox))
        missing = list(blocks)
        inline = pair is None
        try:
            if not missing:
                outbox.put_nowait(worker.FetchRequest(received=worker.Received()))
            while (response := await self._next(stream)) is not None:
                match response.WhichOneof("message"):
                    case "offer":
                        _check_order(response.offer.first_block, redeem, blocks, missing)
                        await self._receive(pair, response.offer, missing, outbox)
                        del missing[: response.offer.num_blocks]
                    case "inline":
                        inline = True
                        _check_order(response.inline.first_block, redeem, blocks, missing)
                        await self._take_inline(response.inline, missing)
                        del missing[: response.inline.num_blocks]
                    case "redeemed" if not missing:
                        return inline
                    case "heartbeat":
                        continue
                    case other:
                        raise TransferError(f"{other} with {len(missing)} blocks missing")
                if not missing:
                    outbox.put_nowait(worker.FetchRequest(received=worker.Received()))
            raise TransferError("the prefill worker ended the stream")
        finally:
            outbox.put_nowait(None)
            await stream.aclose()  # type: ignore[attr-defined]

    async def _next(
        self, stream: AsyncIterator[worker.FetchResponse]
    ) -> worker.FetchResponse | None:
        try:
            async with asyncio.timeout(SILENCE_S):
                return await anext(stream, None)
        except TimeoutError:
            raise TransferError(f"the prefill worker was silent for {SILENCE_S:.0f} s") from None

    async def _receive(
        self,
        pair: Pair | None,
        offer: worker.Offer,
        missing: Sequence[int],
        outbox: asyncio.Queue[worker.FetchRequest | None],
    ) -> None:
        """Post, say Ready, wait, check, scatter. A receive that was posted and did not end is never
        taken back: the generation goes."""
        self._check_offer(pair, offer, missing)
        assert pair is not None
        async with pair.lock:
            arrival = pair.link.recv(offer.num_bytes, offer.pair_seq)
            arrived = False
            try:
                ready = worker.Ready(pair_seq=offer.pair_seq)
                outbox.put_nowait(worker.FetchRequest(ready=ready))
                await arrival
                arrived = True
            finally:
                if not arrived:
                    pair.retire()
            if offer.HasField("crc32"):
                data = self._pages.to_bytes(pair.link.staging, offer.num_bytes)
                _check_crc(data, offer.crc32)
            chunk = missing[: offer.num_blocks]
            await to_the_end(self._offload(self._pages.scatter, pair.link.staging, chunk))

    def _check_offer(self, pair: Pair | None, offer: worker.Offer, missing: Sequence[int]) -> None:
        """Sizes are agreed before anything is posted: a receive too short aborts the process."""
        if pair is None or offer.generation != pair.generation:
            raise TransferError(f"offer for generation {offer.generation}, which is not ours")
        if offer.num_blocks > len(missing):
            raise TransferError(f"{offer.num_blocks} blocks offered, {len(missing)} missing")
        if not (
            0 < offer.num_bytes <= pair.staging_bytes
            and offer.num_bytes == offer.num_blocks * self._pages.block_bytes
        ):
            raise TransferError(f"{offer.num_bytes} bytes offered for {offer.num_blocks} blocks")

    async def _take_inline(self, message: worker.InlineBlocks, missing: Sequence[int]) -> None:
        if message.num_blocks > len(missing) or (
            len(message.data) != message.num_blocks * self._pages.block_bytes
        ):
            raise TransferError(f"{len(message.data)} inline bytes for {message.num_blocks} blocks")
        if message.HasField("crc32"):
            _check_crc(message.data, message.crc32)
        staging = self._pages.from_bytes(message.data)
        await to_the_end(self._offload(self._pages.scatter, staging, missing[: message.num_blocks]))


def _check_order(
    first: int, redeem: worker.Redeem, blocks: Sequence[int], missing: Sequence[int]
) -> None:
    expected = redeem.first_block + len(blocks) - len(missing)
    if first != expected:
        raise TransferError(f"block {first} came where {expected} was due")


def _check_crc(data: bytes, expected: int) -> None:
    if zlib.crc32(data) != expected:
        raise TransferError("checksum mismatch: the bytes changed on their way")


async def _sent_from(
    outbox: asyncio.Queue[worker.FetchRequest | None],
) -> AsyncIterator[worker.FetchRequest]:
    while (message := await outbox.get()) is not None:
        yield message
