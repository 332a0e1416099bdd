"""The receiving half of a fetch: redeem a ticket, fill pages of the caller's with its blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from workers.core.runner import PageStore
from workers.core.waits import Offload
from workers.transfer.arrivals import Arrivals, Counts
from workers.transfer.exchange import Exchange, Landing
from workers.transfer.pair import Pair
from workers.transfer.receiver_pairs import Peer, ReceiverPairs
from workers.transfer.sender_pairs import receiver_name
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker


@dataclass(frozen=True, slots=True)
class Fetched:
    """`num_tokens` have KV now; `token_ids` came with it, those after the known ones. `exposed_s`:
    of `seconds`, after the sender had computed everything; `exposed_bytes` came in it. `transport`:
    that moved most bytes. `refetched`: blocks that were lost or wrong the first time."""

    num_bytes: int
    seconds: float
    exposed_s: float
    exposed_bytes: int
    transport: str
    num_tokens: int
    token_ids: tuple[int, ...]
    refetched: int


class Receiver:
    def __init__(
        self,
        peer_at: Callable[[str], Peer],
        pairs: ReceiverPairs,
        pages: PageStore,
        me: common.ReplicaRef,
        offload: Offload,
        *,
        block_size: int,
        inline_bytes: int,
    ) -> None:
        """`pages`: of whole blocks, for what comes inline: all of it where it is no more than
        `inline_bytes`."""
        self.counts = Counts()
        self._peer_at = peer_at
        self._pairs = pairs
        self._pages = pages
        self._me = me
        self._offload = offload
        self._block_size = block_size
        self._inline_bytes = inline_bytes
        self._running: set[asyncio.Task[None]] = set()

    async def fetch(
        self,
        ticket: common.Ticket,
        epoch: int,
        first_block: int,
        known_tokens: int,
        landing: Landing,
        *,
        shard: int = 0,
    ) -> Fetched:
        """Fill pages of `landing` with the ticket's blocks from `first_block` on. Returns or raises
        only when nothing is written into them any more: TicketError (the ticket is over or
        another's; CorruptKV) or TransferError (it may be bound again with a higher epoch)."""
        began = asyncio.get_running_loop().time()
        pair = await self._pair(ticket, first_block, shard)
        redeem = worker.Redeem(
            ticket_id=ticket.id,
            epoch=epoch,
            kv_abi=ticket.kv_abi,
            first_block=first_block,
            receiver=receiver_name(self._me),
            generation=0 if pair is None else pair.generation,
            known_tokens=known_tokens,
        )
        arrivals = Arrivals(ticket.id, first_block, self._block_size, self.counts)
        peer = self._peer_at(ticket.prefill.address)
        exchange = Exchange(peer, redeem, pair, self._pages, self._offload, landing, arrivals)
        task = asyncio.create_task(_run(exchange, pair))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await exchange.result()
        if pair is not None and exchange.pair_bytes and pair.failed is None:
            self._pairs.succeeded(ticket.prefill)
        return _fetched(exchange, arrivals, pair, began)

    async def _pair(self, ticket: common.Ticket, first_block: int, shard: int) -> Pair | None:
        """None where little is to come: that goes inline."""
        blocks = ticket.num_blocks - first_block
        if blocks * self._pages.block_bytes <= self._inline_bytes:
            return None
        return await self._pairs.pair_with(ticket.prefill, ticket.shard, shard)

    async def close(self) -> None:
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)


async def _run(exchange: Exchange, pair: Pair | None) -> None:
    with nullcontext() if pair is None else pair.used():
        await exchange.run()


def _fetched(exchange: Exchange, arrivals: Arrivals, pair: Pair | None, began: float) -> Fetched:
    now = asyncio.get_running_loop().time()
    complete = arrivals.complete
    assert complete is not None
    through_pair = pair is not None and exchange.pair_bytes >= exchange.inline_bytes
    num_bytes = exchange.pair_bytes + exchange.inline_bytes
    return Fetched(
        num_bytes=num_bytes,
        seconds=now - began,
        exposed_s=now - (began if exchange.computed_at is None else exchange.computed_at),
        exposed_bytes=num_bytes - exchange.bytes_before,
        transport=pair.backend if pair is not None and through_pair else "inline",
        num_tokens=complete.num_tokens,
        token_ids=tuple(complete.token_ids),
        refetched=arrivals.refetched,
    )
