"""The decode role: redeem a ticket into pages of its own, then decode and stream.

Speaks messages, not gRPC: server.py puts it on a socket, simulations call it directly.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from collections.abc import Sequence as Blocks
from contextlib import aclosing
from dataclasses import dataclass

from workers.core.errors import (
    Cancelled,
    InvalidRequest,
    KvasirError,
    TicketError,
    TransferError,
    Unavailable,
)
from workers.core.request import Sequence, SequenceStatus
from workers.engine import Engine
from workers.live import LiveSequences
from workers.metrics import Meter
from workers.transfer.receiver import Fetched, Receiver
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_from_wire

REPORTED = 256  # transfers, kept for those who watch


@dataclass(frozen=True, slots=True)
class _Admission:
    waited_s: float
    fetched: Fetched


@dataclass(eq=False)
class _Active:
    """A request in this role. While `admission` runs its pages may be written from outside."""

    seq: Sequence
    admission: asyncio.Task[_Admission]
    why: KvasirError | None = None  # it was ended from here

    async def admitted(self) -> _Admission:
        try:
            return await self.admission
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise self.why or Cancelled(self.seq.id) from None


@dataclass(frozen=True, slots=True)
class _Landing:
    """Where a fetch may write: a reserved sequence's pages from block `first` on. Those before are
    cached here, and others read them."""

    engine: Engine
    seq: Sequence
    first: int

    def pages(self, first: int, count: int) -> Blocks[int]:
        """A sequence that grows where it comes from gets more. Raises TransferError where there are
        none, or none are due."""
        end = first + count
        if first < self.first or end > self.engine.pool.blocks_for(self.seq.most_tokens):
            raise TransferError(f"blocks {first}..{end - 1} were not asked for")
        if not self.engine.scheduler.extend(self.seq, end):
            raise TransferError(f"no pages here for blocks {first}..{end - 1}")
        return self.seq.blocks[first:end]


class DecodeRole:
    def __init__(
        self, engine: Engine, receiver: Receiver, live: LiveSequences, meter: Meter
    ) -> None:
        self.draining = False
        self._engine = engine
        self._receiver = receiver
        self._live = live
        self._meter = meter
        self._active: list[_Active] = []  # a late attempt may overlap the next one
        self.transfers: deque[worker.TransferReport] = deque(maxlen=REPORTED)
        self.transfers_recorded = 0  # the newest of which stand in `transfers`

    async def decode(self, message: worker.DecodeRequest) -> AsyncIterator[worker.DecodeEvent]:
        """Admitted, then Tokens, those that came with the KV excluded, to the end or to Moved. Left
        early, everything it held is freed.

        Raises TicketError (prefill again), TransferError (bind again with a higher epoch),
        Unavailable while draining.
        """
        if self.draining:
            raise Unavailable("this worker is draining")
        request = request_from_wire(message.sequence)
        self._check(message, len(request.token_ids))
        early = len(request.token_ids) == message.ticket.num_tokens
        seq = self._engine.new_sequence(request, to_come=int(early))
        active = _Active(seq, asyncio.ensure_future(self._admit(seq, message)))
        self._active.append(active)
        try:
            admission = await active.admitted()
            if seq.status is not SequenceStatus.RESERVED:
                raise active.why or Cancelled(seq.id)
            updates = self._engine.updates(seq)
            self._engine.start(seq, self._arrived(seq, admission.fetched))
            known = len(seq.tokens)
            yield worker.DecodeEvent(
                attempt=request.attempt, admitted=_admitted(seq.num_cached, admission)
            )
            async with aclosing(self._live.follow(seq, updates, request.attempt, known)) as events:
                async for event in events:
                    yield event
        finally:
            self._engine.abort(seq)
            self._active.remove(active)

    def cancel(self, request_id: str, why: KvasirError | None = None) -> None:
        """Its Decode calls end with `why`, or Cancelled; pages go when nothing writes them."""
        for active in self._active:
            if active.seq.id == request_id:
                self._end(active, why)

    def end(self, why: KvasirError) -> None:
        """Every Decode call that is open ends with `why`."""
        for active in list(self._active):
            self._end(active, why)

    def _end(self, active: _Active, why: KvasirError | None) -> None:
        active.why = why
        if active.admission.done():
            self._engine.abort(active.seq, why)
        else:
            active.admission.cancel()

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def sequences(self) -> set[Sequence]:
        return {active.seq for active in self._active}

    def _check(self, message: worker.DecodeRequest, num_tokens: int) -> None:
        ticket = message.ticket
        if ticket.kv_abi != self._engine.info.kv_abi:
            raise TicketError(
                f"ticket {ticket.id}: its KV is of {ticket.kv_abi!r}, ours of "
                f"{self._engine.info.kv_abi!r}"
            )
        if num_tokens < ticket.num_tokens:
            raise InvalidRequest(
                f"ticket {ticket.id} covers {ticket.num_tokens} tokens, only {num_tokens} came"
            )

    async def _admit(self, seq: Sequence, message: worker.DecodeRequest) -> _Admission:
        """Reserve, pinning what is cached here, and fetch only the rest."""
        clock = self._engine.clock
        arrived = clock.now()
        await self._engine.reserve(seq)
        waited = clock.now() - arrived
        first = seq.num_cached // self._engine.block_size
        landing = _Landing(self._engine, seq, first)
        try:
            fetched = await self._receiver.fetch(
                message.ticket, message.epoch, first, len(seq.tokens), landing, shard=seq.shard
            )
        except KvasirError as error:
            self._meter.fetch_failed(type(error).__name__)
            raise
        self._note(message, waited, fetched)
        return _Admission(waited, fetched)

    def _note(self, message: worker.DecodeRequest, waited_s: float, fetched: Fetched) -> None:
        ticket = message.ticket
        self._meter.fetched(
            fetched.transport,
            fetched.num_bytes,
            wait_s=waited_s,
            transfer_s=fetched.seconds,
            exposed_s=fetched.exposed_s,
            traceparent=message.sequence.traceparent,
        )
        if ticket.moving:
            self._meter.moved_in()
        if not fetched.exposed_bytes:
            return  # all came while the prompt was computed: that says nothing of the wire
        self.transfers_recorded += 1
        self.transfers.append(
            worker.TransferReport(
                sender=ticket.prefill.id,
                transport=fetched.transport,
                num_bytes=fetched.exposed_bytes,
                seconds=fetched.exposed_s,
            )
        )

    def _arrived(self, seq: Sequence, fetched: Fetched) -> tuple[int, ...]:
        """The tokens that came with the KV. Raises TransferError for what cannot be right."""
        tokens = fetched.token_ids
        total = len(seq.tokens) + len(tokens)
        if not (
            fetched.num_tokens + 1 == total <= seq.most_tokens
            and all(0 <= token < self._engine.info.vocab_size for token in tokens)
            and len(seq.blocks) >= self._engine.pool.blocks_for(fetched.num_tokens)
        ):
            raise TransferError(
                f"{seq.id}: KV of {fetched.num_tokens} tokens and {len(tokens)} more tokens came "
                f"for {len(seq.tokens)}"
            )
        return tokens


def _admitted(cached_tokens: int, admission: _Admission) -> worker.Admitted:
    fetched = admission.fetched
    return worker.Admitted(
        cached_tokens=cached_tokens,
        fetched_bytes=fetched.num_bytes,
        admit_wait_s=admission.waited_s,
        transfer_s=fetched.seconds,
        transport=fetched.transport,
        refetched_blocks=fetched.refetched,
        exposed_s=fetched.exposed_s,
    )
