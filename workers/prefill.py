"""The prefill role: compute a prompt, say its first token, keep its KV for whoever has the ticket.

Speaks messages, not gRPC: server.py puts it on a socket, simulations call it directly.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from workers.core.errors import Cancelled, KvasirError, Unavailable
from workers.core.request import Sequence, SequenceStatus
from workers.core.ticket import Ticket, TicketState
from workers.engine import Engine
from workers.metrics import Meter
from workers.tickets import TicketDesk
from workers.wire import worker_pb2 as worker
from workers.wire.codec import finish_to_wire, request_from_wire, token_to_wire


class PrefillRole:
    def __init__(self, engine: Engine, desk: TicketDesk, meter: Meter) -> None:
        self.draining = False
        self._engine = engine
        self._desk = desk
        self._meter = meter
        self._active: dict[Sequence, Ticket | None] = {}  # whose Prefill call is open

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def sequences(self) -> set[Sequence]:
        return set(self._active)

    async def prefill(self, message: worker.PrefillRequest) -> AsyncIterator[worker.PrefillEvent]:
        """Opened, Progress*, FirstToken, Done. From Opened on the ticket can be redeemed. Left
        before its first token is said, everything it held is freed."""
        if self.draining:
            raise Unavailable("this worker is draining")
        request = request_from_wire(message.sequence)
        seq = self._engine.new_sequence(request, hold=True)
        updates = self._engine.updates(seq)
        arrived = self._now()
        self._engine.submit(seq)
        self._active[seq] = ticket = None
        delivered = False

        def event(**what: object) -> worker.PrefillEvent:
            return worker.PrefillEvent(attempt=request.attempt, **what)  # type: ignore[arg-type]

        try:
            async for update in updates:
                if ticket is None:
                    if seq.status is SequenceStatus.FINISHED and not update.finished:
                        raise Cancelled(seq.id)
                    ticket, told = self._desk.open(seq, len(request.token_ids))
                    self._active[seq] = ticket
                    yield event(opened=worker.Opened(ticket=told, cached_tokens=seq.num_cached))
                if ticket.ended and ticket.state is not TicketState.REDEEMED:
                    raise Cancelled(seq.id)  # while its caller was told of it
                if not update.tokens:
                    yield event(progress=worker.Progress(computed_tokens=seq.num_computed))
                    continue
                first = self._first_token(seq, arrived)
                first.token.CopyFrom(token_to_wire(update.tokens[0]))
                if update.finished:
                    self._desk.end(ticket, "finished at the first token")
                yield event(first_token=first)
                delivered = True
                break
            yield event(done=worker.PrefillDone())
        finally:
            del self._active[seq]
            if ticket is None:
                self._engine.abort(seq)
            elif not delivered:
                self._desk.end(ticket, "the prefill call was left")

    def _first_token(self, seq: Sequence, arrived: float) -> worker.FirstToken:
        now = self._now()
        admitted = arrived if seq.admitted_at is None else seq.admitted_at
        self._meter.prefilled(admitted - arrived, now - admitted, seq.request.traceparent)
        self._meter.generated(1)
        return worker.FirstToken(
            finish_reason=finish_to_wire(seq.finish_reason),
            queue_s=admitted - arrived,
            prefill_s=now - admitted,
        )

    def cancel(self, request_id: str) -> None:
        """Its Prefill call ends with Cancelled, and every ticket of it."""
        for seq, ticket in list(self._active.items()):
            if seq.id == request_id and ticket is None:
                self._engine.abort(seq)
        self._desk.cancel(request_id)

    def end(self, why: KvasirError) -> None:
        """Every Prefill call that is open ends with `why`."""
        for seq in list(self._active):
            self._engine.abort(seq, why)

    def _now(self) -> float:
        return self._engine.clock.now()
