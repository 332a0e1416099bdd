"""The prefill role: compute a prompt, say its first token, keep its KV for whoever has the ticket.

Speaks messages, not gRPC: server.py puts it on a socket, simulations call it directly.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from workers.core.errors import Cancelled, TicketError, TransferError, Unavailable
from workers.core.request import Sequence, SequenceStatus
from workers.core.ticket import Ticket, TicketState, TicketTable
from workers.core.waits import Offload, with_heartbeats
from workers.engine import Engine
from workers.metrics import Meter
from workers.transfer.pairs import SenderPairs
from workers.transfer.sender import Fetch, send_blocks
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import finish_to_wire, request_from_wire, token_to_wire

T = TypeVar("T")
HEARTBEAT_S = 1.0
EXPIRY_CHECK_S = 0.5


class PrefillRole:
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
    ) -> None:
        """`patience_s`: how long a fetching decode worker may take for each of its answers."""
        self.tickets = TicketTable(self._unpin)
        self.draining = False
        self._engine = engine
        self._pairs = pairs
        self._me = me
        self._meter = meter
        self._offload = offload
        self._ttl_s = ttl_s
        self.patience_s = patience_s
        self._checksums = checksums
        self._active: list[Sequence] = []  # whose Prefill call is open
        self._sequences: dict[str, Sequence] = {}  # by ticket id
        self._fetches: dict[str, Fetch] = {}  # by ticket id
        self._prefilled: dict[str, asyncio.Event] = {}  # by ticket id

    @property
    def num_active(self) -> int:
        return len(self._active)

    # -- Prefill -------------------------------------------------------------------------------

    async def prefill(self, message: worker.PrefillRequest) -> AsyncIterator[worker.PrefillEvent]:
        """Opened, Progress*, FirstToken, Done. Left early, everything it held is freed."""
        if self.draining:
            raise Unavailable("this worker is draining")
        request = request_from_wire(message.sequence)
        seq = self._engine.new_sequence(request, hold=True)
        updates = self._engine.updates(seq)
        arrived = self._now()
        self._engine.submit(seq)
        self._active.append(seq)
        ticket: Ticket | None = None
        delivered = False

        def event(**what: object) -> worker.PrefillEvent:
            return worker.PrefillEvent(attempt=request.attempt, **what)  # type: ignore[arg-type]

        try:
            async for update in updates:
                if ticket is None:
                    if seq.status is SequenceStatus.FINISHED and not update.finished:
                        raise Cancelled(seq.id)
                    ticket = self._open(seq)
                    opened = worker.Opened(
                        ticket=self._to_wire(ticket, seq), cached_tokens=seq.num_cached
                    )
                    yield event(opened=opened)
                if not ticket.pinned:  # ended while the client was told of it
                    raise Cancelled(seq.id)
                if not update.tokens:
                    yield event(progress=worker.Progress(computed_tokens=seq.num_computed))
                    continue
                first = self._first_token(seq, arrived)
                first.token.CopyFrom(token_to_wire(update.tokens[0]))
                if update.finished:
                    self._release(ticket, "finished at the first token")
                else:
                    self._prefilled[ticket.id].set()
                yield event(first_token=first)
                delivered = True
                break
            yield event(done=worker.PrefillDone())
        finally:
            self._active.remove(seq)
            if ticket is None:
                self._engine.abort(seq)
            elif not delivered:
                self._release(ticket, "the prefill call was left")

    def _first_token(self, seq: Sequence, arrived: float) -> worker.FirstToken:
        now = self._now()
        admitted = arrived if seq.admitted_at is None else seq.admitted_at
        self._meter.prefilled(admitted - arrived, now - admitted)
        self._meter.generated(1)
        return worker.FirstToken(
            finish_reason=finish_to_wire(seq.finish_reason),
            queue_s=admitted - arrived,
            prefill_s=now - admitted,
        )

    def _open(self, seq: Sequence) -> Ticket:
        ticket = Ticket(
            id=secrets.token_hex(16),
            request_id=seq.id,
            num_tokens=len(seq.request.token_ids),
            ttl_s=self._ttl_s,
            opened_at=self._now(),
        )
        self._sequences[ticket.id] = seq
        self._prefilled[ticket.id] = asyncio.Event()
        self.tickets.add(ticket)
        return ticket

    def _to_wire(self, ticket: Ticket, seq: Sequence) -> common.Ticket:
        return common.Ticket(
            id=ticket.id,
            prefill=self._me,
            kv_abi=self._engine.info.kv_abi,
            num_tokens=ticket.num_tokens,
            num_blocks=self._engine.pool.blocks_for(ticket.num_tokens),
            ttl_ms=int(self._ttl_s * 1000),
        )

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
        redeem = (await self._patiently(anext(requests))).redeem
        ticket = self.tickets.get(redeem.ticket_id)
        if redeem.kv_abi != self._engine.info.kv_abi:
            raise TicketError(f"ticket {ticket.id}: KV of another kind is wanted: {redeem.kv_abi}")
        await self._end_other_fetch(ticket, redeem.epoch)
        ticket.redeem(redeem.epoch, self._now())
        fetch = Fetch(ticket, redeem, requests, self.patience_s)
        self._fetches[ticket.id] = fetch
        try:
            await fetch.unless_stopped(self._prefilled[ticket.id].wait(), deadline=False)
            blocks = self._sequences[ticket.id].blocks
            pair = await self._pairs.find(redeem.receiver, redeem.generation)
            pages = self._engine.runner.pages
            sending = send_blocks(fetch, blocks, pair, pages, self._offload, self._checksums)
            async with aclosing(sending) as responses:
                async for response in responses:
                    ticket.renew(self._now())
                    yield response
            await fetch.expect("received")
            ticket.received(redeem.epoch, self._now())
            self.tickets.settle(ticket)
            yield worker.FetchResponse(redeemed=worker.Redeemed())
        finally:
            del self._fetches[ticket.id]
            ticket.stop(TicketState.OPEN, self._now(), "the fetch broke off")
            ticket.stopped(self._now())
            self.tickets.settle(ticket)
            fetch.done.set()

    async def _end_other_fetch(self, ticket: Ticket, epoch: int) -> None:
        """A higher epoch takes the ticket over; the fetch that has it ends at its next chunk."""
        while (other := self._fetches.get(ticket.id)) is not None:
            ticket.check_epoch(epoch)
            ticket.stop(TicketState.OPEN, self._now(), f"epoch {epoch} takes over")
            other.stopping.set()
            await self._patiently(other.done.wait())

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
        """Its Prefill call, and every ticket of it, whatever its epoch."""
        for seq in self._active:
            if seq.id == request_id and seq not in self._sequences.values():
                self._engine.abort(seq)
        for ticket in self.tickets.live():
            if ticket.request_id == request_id:
                self._release(ticket, "cancelled")

    async def expire_leases(self) -> None:
        """Runs as long as the worker does."""
        while True:
            await asyncio.sleep(EXPIRY_CHECK_S)
            for ticket in self.tickets.live():
                if ticket.expire(self._now()):
                    self._meter.ticket_expired()
                    self._after_end(ticket)

    def _release(self, ticket: Ticket, why: str) -> None:
        ticket.release(None, self._now(), why)
        self._after_end(ticket)

    def _after_end(self, ticket: Ticket) -> None:
        fetch = self._fetches.get(ticket.id)
        if fetch is not None and ticket.state is TicketState.STOPPING:
            fetch.stopping.set()
        self.tickets.settle(ticket)

    def _unpin(self, ticket: Ticket) -> None:
        del self._prefilled[ticket.id]
        self._engine.abort(self._sequences.pop(ticket.id))

    def _now(self) -> float:
        return self._engine.clock.now()

    def check_integrity(self) -> None:
        """Raise AssertionError unless tickets, sequences and pinned pages agree."""
        self.tickets.check_integrity(self._sequences)
        held = {seq for seq in self._sequences.values() if seq.status is SequenceStatus.HELD}
        assert held == self._engine.scheduler.held, "a held sequence has no ticket"
        assert set(self._fetches) <= set(self._sequences), "a fetch has no ticket"
