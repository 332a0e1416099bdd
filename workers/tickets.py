"""Every ticket of one worker, whichever role opened it: fetches, leases, and how each ends.

Whoever owns a sequence opens a ticket for it. One that was handed on, or that stood still for a
ticket that is over, ends here; a moving one that nobody took goes on.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from workers.core.errors import TicketError, TransferError
from workers.core.request import Sequence, SequenceStatus
from workers.core.ticket import Ticket, TicketState, TicketTable
from workers.core.waits import Offload, with_heartbeats
from workers.engine import Engine
from workers.metrics import Meter
from workers.source import SequenceSource
from workers.transfer.fetch import Fetch
from workers.transfer.sender import send_blocks
from workers.transfer.sender_pairs import SenderPairs
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker

T = TypeVar("T")
HEARTBEAT_S = 1.0
EXPIRY_CHECK_S = 0.5


class TicketDesk:
    def __init__(
        self,
        engine: Engine,
        pairs: SenderPairs,
        me: common.ReplicaRef,
        meter: Meter,
        *,
        offload: Offload,
        ttl_s: float,
        patience_s: float,
        checksums: bool = False,
        inline_bytes: int,
    ) -> None:
        """`patience_s`: how long a receiver may take for each of its answers. `inline_bytes`: what
        is not more goes inside the stream."""
        self.tickets = TicketTable(self._over)
        self.patience_s = patience_s
        self._engine = engine
        self._pairs = pairs
        self._me = me
        self._meter = meter
        self._offload = offload
        self._ttl_s = ttl_s
        self._checksums = checksums
        self._inline_bytes = inline_bytes
        self._sequences: dict[str, Sequence] = {}  # by ticket id
        self._fetches: dict[str, Fetch] = {}  # by ticket id, while they may read pages
        self._watching: set[asyncio.Task[None]] = set()  # one a fetch, until it is quiet

    def open(
        self, seq: Sequence, num_tokens: int, *, moving: bool = False
    ) -> tuple[Ticket, common.Ticket]:
        """A ticket for at least `num_tokens` tokens of KV, and what others are told of it. Unless
        it is `moving`, `seq` stands still when it is prefilled, and ends with its ticket."""
        ticket = Ticket(
            id=secrets.token_hex(16),
            request_id=seq.id,
            num_tokens=num_tokens,
            ttl_s=self._ttl_s,
            opened_at=self._now(),
            moving=moving,
        )
        self._sequences[ticket.id] = seq
        self.tickets.add(ticket)
        told = common.Ticket(
            id=ticket.id,
            prefill=self._me,
            kv_abi=self._engine.info.kv_abi,
            num_tokens=num_tokens,
            num_blocks=self._engine.pool.blocks_for(num_tokens),
            ttl_ms=int(self._ttl_s * 1000),
            shard=seq.shard,
            moving=moving,
        )
        return ticket, told

    def end(self, ticket: Ticket, why: str) -> None:
        """Its owner's word, whatever its epoch; idempotent."""
        ticket.release(None, self._now(), why)
        self._after_end(ticket)

    # -- FetchKV and Connect -------------------------------------------------------------------

    async def connect(self, request: worker.ConnectRequest) -> worker.ConnectResponse:
        """Raises TransferError when it is not us who is meant, or our KV is of another kind."""
        if request.sender_incarnation != self._me.incarnation:
            raise TransferError(
                f"{self._me.id} is now {self._me.incarnation}, not {request.sender_incarnation}"
            )
        if request.kv_abi != self._engine.info.kv_abi:
            raise TransferError(
                f"KV of {request.kv_abi!r} does not fit {self._engine.info.kv_abi!r}"
            )
        return await self._pairs.accept(request)

    def fetch(
        self, requests: AsyncIterator[worker.FetchRequest]
    ) -> AsyncIterator[worker.FetchResponse]:
        """Sends one ticket's blocks. Raises TicketError for an old epoch or an ended ticket."""
        return with_heartbeats(
            self._fetch(requests),
            lambda: worker.FetchResponse(heartbeat=worker.Heartbeat()),
            HEARTBEAT_S,
        )

    async def _fetch(
        self, requests: AsyncIterator[worker.FetchRequest]
    ) -> AsyncIterator[worker.FetchResponse]:
        redeem = await self._first(requests)
        ticket = self.tickets.get(redeem.ticket_id)
        self._check(redeem)
        await self._end_other_fetch(ticket, redeem.epoch)
        ticket.redeem(redeem.epoch, self._now())
        fetch = Fetch(ticket, redeem, requests, self.patience_s)
        self._fetches[ticket.id] = fetch
        seq = self._sequences[ticket.id]
        self._engine.pin(seq)
        watching = asyncio.create_task(self._when_quiet(fetch))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)
        try:
            source = SequenceSource(self._engine, seq, fetch.stopping)
            pair = await self._pairs.find(redeem.receiver, redeem.generation)
            pages = self._engine.runner.pages
            sending = send_blocks(
                fetch,
                source,
                pair,
                pages,
                self._offload,
                checksums=self._checksums,
                inline_bytes=self._inline_bytes,
            )
            async with aclosing(sending) as responses:
                async for response in responses:
                    if self._fetches.get(ticket.id) is fetch:
                        ticket.renew(self._now())
                    yield response
            ticket.received(redeem.epoch, self._now())
            self._let_go_of_pages(fetch)
            yield worker.FetchResponse(redeemed=worker.Redeemed())
        finally:
            if self._fetches.get(ticket.id) is fetch:
                ticket.stop(TicketState.OPEN, self._now(), "the fetch broke off")
            fetch.stop()
            fetch.done.set()
            if fetch.quiet.is_set():  # else a copy runs on, though this was cancelled
                self._let_go_of_pages(fetch)

    async def _first(self, requests: AsyncIterator[worker.FetchRequest]) -> worker.Redeem:
        message = await self._patiently(anext(requests, None))
        if message is None or not message.HasField("redeem"):
            raise TransferError("a fetch begins with Redeem")
        return message.redeem

    def _check(self, redeem: worker.Redeem) -> None:
        if redeem.kv_abi != self._engine.info.kv_abi:
            raise TicketError(
                f"ticket {redeem.ticket_id}: KV of {redeem.kv_abi!r} is wanted, ours is of "
                f"{self._engine.info.kv_abi!r}"
            )
        if redeem.first_block * self._engine.block_size > redeem.known_tokens:
            raise TicketError(
                f"ticket {redeem.ticket_id}: block {redeem.first_block} is none of "
                f"{redeem.known_tokens} tokens"
            )

    async def _end_other_fetch(self, ticket: Ticket, epoch: int) -> None:
        """A higher epoch takes the ticket over as soon as who has it reads no page any more."""
        while (other := self._fetches.get(ticket.id)) is not None:
            ticket.check_epoch(epoch)
            ticket.stop(TicketState.OPEN, self._now(), f"epoch {epoch} takes over")
            other.stop()
            await self._patiently(other.quiet.wait())
            self._let_go_of_pages(other)

    async def _when_quiet(self, fetch: Fetch) -> None:
        """What was stopped ends here, while its last chunks may still be on their way."""
        await fetch.quiet.wait()
        if fetch.ticket.state is TicketState.STOPPING:
            self._let_go_of_pages(fetch)

    def _let_go_of_pages(self, fetch: Fetch) -> None:
        """`fetch` reads no page any more. A moving sequence that it has not redeemed goes on."""
        ticket = fetch.ticket
        if self._fetches.get(ticket.id) is not fetch:
            return
        del self._fetches[ticket.id]
        ticket.stopped(self._now())
        seq = self._sequences[ticket.id]
        self._engine.unpin(seq)
        if ticket.moving and ticket.state is not TicketState.REDEEMED:
            self._engine.resume(seq)
        self.tickets.settle(ticket)

    async def _patiently(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.patience_s):
                return await work
        except TimeoutError:
            raise TransferError(f"no answer in {self.patience_s:.0f} s") from None

    # -- leases and ends -------------------------------------------------------------------------

    def renew(self, request: worker.RenewRequest) -> worker.RenewResponse:
        unknown = []
        for ticket_id in request.ticket_ids:
            ticket = self.tickets.find(ticket_id)
            if ticket is None:
                unknown.append(ticket_id)
            else:
                ticket.renew(self._now())
        return worker.RenewResponse(unknown=unknown)

    def release(self, request: worker.ReleaseRequest) -> worker.ReleaseResponse:
        ticket = self.tickets.find(request.ticket_id)
        if ticket is None:
            return worker.ReleaseResponse(released=False)
        released = ticket.release(request.epoch, self._now())
        self._after_end(ticket)
        return worker.ReleaseResponse(released=released)

    def cancel(self, request_id: str) -> None:
        """Every ticket of a request, whatever its epoch."""
        for ticket in self.tickets.live():
            if ticket.request_id == request_id:
                self.end(ticket, "cancelled")

    async def expire_leases(self) -> None:
        """Runs as long as the worker does."""
        while True:
            await asyncio.sleep(EXPIRY_CHECK_S)
            for ticket in self.tickets.live():
                if ticket.expire(self._now()):
                    self._meter.ticket_expired()
                    self._after_end(ticket)

    def _after_end(self, ticket: Ticket) -> None:
        fetch = self._fetches.get(ticket.id)
        if fetch is not None and ticket.state is TicketState.STOPPING:
            fetch.stop()  # quiet at once, or soon: see _when_quiet
        self.tickets.settle(ticket)

    def _over(self, ticket: Ticket) -> None:
        seq = self._sequences.pop(ticket.id)
        if not ticket.moving or ticket.state is TicketState.REDEEMED:
            self._engine.abort(seq)

    def _now(self) -> float:
        return self._engine.clock.now()

    # -- what others see -------------------------------------------------------------------------

    def report(self) -> list[worker.TicketInfo]:
        now = self._now()
        return [
            worker.TicketInfo(
                id=ticket.id,
                request_id=ticket.request_id,
                state=ticket.state,
                epoch=ticket.epoch,
                num_blocks=self._engine.pool.blocks_for(ticket.num_tokens),
                age_s=now - ticket.opened_at,
                lease_left_s=ticket.expires_at - now,
                story=ticket.story,
            )
            for ticket in self.tickets.live()
        ]

    def check_integrity(self) -> None:
        """Raise AssertionError unless tickets, fetches, sequences and pinned pages agree."""
        self.tickets.check_integrity(self._sequences)
        live = {ticket.id: ticket for ticket in self.tickets.live()}
        reading = {id_ for id_, ticket in live.items() if ticket.read}
        assert reading == set(self._fetches), "who reads pages, and whose ticket says so"
        for id_, ticket in live.items():
            seq = self._sequences[id_]
            assert seq.pinned == ticket.read or seq.status is SequenceStatus.FINISHED, seq
            assert not seq.frozen or ticket.read, f"{seq} waits for nobody"
        waiting_for = {self._sequences[id_] for id_, ticket in live.items() if ticket.pinned}
        assert self._engine.scheduler.held <= waiting_for, "a held sequence has no ticket"
