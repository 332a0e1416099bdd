"""The decode role: redeem a ticket into pages of its own, then decode and stream.

Speaks messages, not gRPC: server.py puts it on a socket, simulations call it directly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from workers.core.errors import Cancelled, InvalidRequest, TicketError, Unavailable
from workers.core.request import Sequence, SequenceStatus
from workers.engine import Engine
from workers.metrics import Meter
from workers.transfer.receiver import Receiver
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_from_wire, update_to_wire


@dataclass(eq=False)
class _Active:
    """A request in this role. While `admission` runs its pages may be written from outside."""

    seq: Sequence
    admission: asyncio.Task[worker.Admitted]

    async def admitted(self) -> worker.Admitted:
        try:
            return await self.admission
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Cancelled(self.seq.id) from None


class DecodeRole:
    def __init__(self, engine: Engine, receiver: Receiver, meter: Meter) -> None:
        self.draining = False
        self._engine = engine
        self._receiver = receiver
        self._meter = meter
        self._active: dict[str, _Active] = {}

    async def decode(self, message: worker.DecodeRequest) -> AsyncIterator[worker.DecodeEvent]:
        """Admitted, then Tokens to the end. Left early, everything it held is freed.

        Raises TicketError (prefill again), TransferError (bind again with a higher epoch),
        Unavailable while draining.
        """
        if self.draining:
            raise Unavailable("this worker is draining")
        request = request_from_wire(message.sequence)
        self._check(message, len(request.token_ids))
        seq = self._engine.new_sequence(request)
        active = _Active(seq, asyncio.ensure_future(self._admit(seq, message)))
        self._active[seq.id] = active
        try:
            admitted = await active.admitted()
            if seq.status is not SequenceStatus.RESERVED:
                raise Cancelled(seq.id)
            updates = self._engine.updates(seq)
            self._engine.start(seq)
            yield worker.DecodeEvent(attempt=request.attempt, admitted=admitted)
            async for update in updates:
                if not update.tokens:
                    continue  # computed again after a preemption
                self._meter.generated(len(update.tokens))
                yield worker.DecodeEvent(attempt=request.attempt, tokens=update_to_wire(update))
        finally:
            self._engine.abort(seq)
            if self._active.get(seq.id) is active:
                del self._active[seq.id]

    def cancel(self, request_id: str) -> None:
        """Its Decode call ends with Cancelled; pages go when nothing writes them any more."""
        active = self._active.get(request_id)
        if active is None:
            return
        if active.admission.done():
            self._engine.abort(active.seq)
        else:
            active.admission.cancel()

    @property
    def num_active(self) -> int:
        return len(self._active)

    def _check(self, message: worker.DecodeRequest, num_tokens: int) -> None:
        ticket = message.ticket
        if ticket.kv_abi != self._engine.info.kv_abi:
            raise TicketError(
                f"ticket {ticket.id}: its KV is of {ticket.kv_abi!r}, ours of "
                f"{self._engine.info.kv_abi!r}"
            )
        if num_tokens != ticket.num_tokens + 1:
            raise InvalidRequest(
                f"ticket {ticket.id} covers {ticket.num_tokens} tokens; a sequence of "
                f"{ticket.num_tokens + 1} is wanted, {num_tokens} came"
            )

    async def _admit(self, seq: Sequence, message: worker.DecodeRequest) -> worker.Admitted:
        """Reserve, pinning what is cached here, and fetch only the rest."""
        clock = self._engine.clock
        arrived = clock.now()
        await self._engine.reserve(seq)
        admitted = clock.now()
        first = seq.num_cached // self._engine.block_size
        fetched = await self._receiver.fetch(
            message.ticket, message.epoch, first, seq.blocks[first : message.ticket.num_blocks]
        )
        self._meter.fetched(admitted - arrived, fetched.seconds, fetched.num_bytes)
        return worker.Admitted(
            cached_tokens=seq.num_cached,
            fetched_bytes=fetched.num_bytes,
            admit_wait_s=admitted - arrived,
            transfer_s=fetched.seconds,
            transport=fetched.transport,
        )
