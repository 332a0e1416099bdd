"""Sequences that decode here, and how they go on elsewhere: what decode and aggregated share.

A sequence that is asked to move gets a ticket, which its caller is told (Moving), and goes on. Once
somebody has redeemed it, its stream ends with Moved, after every token that was sampled here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from workers.core.batch import SequenceUpdate
from workers.core.errors import Cancelled
from workers.core.request import Sequence, SequenceStatus
from workers.core.ticket import Ticket, TicketState
from workers.engine import Engine
from workers.metrics import Meter
from workers.tickets import TicketDesk
from workers.wire import worker_pb2 as worker
from workers.wire.codec import update_to_wire


@dataclass(eq=False)
class _Live:
    """`known`: the tokens that its caller has. `asked`: it is to be offered at the next chance."""

    seq: Sequence
    known: int
    asked: bool
    ticket: Ticket | None = None

    @property
    def offered(self) -> bool:
        return self.ticket is not None and not self.ticket.ended

    @property
    def taken(self) -> bool:
        return self.ticket is not None and self.ticket.state is TicketState.REDEEMED


class LiveSequences:
    """`draining`: whatever decodes here is offered to others, now and as it comes."""

    def __init__(self, engine: Engine, desk: TicketDesk, meter: Meter) -> None:
        self.draining = False
        self._engine = engine
        self._desk = desk
        self._meter = meter
        self._live: list[_Live] = []

    async def follow(
        self, seq: Sequence, updates: AsyncIterator[SequenceUpdate], attempt: int, known: int
    ) -> AsyncGenerator[worker.DecodeEvent]:
        """Tokens* and Moving* to the end of `seq`, or Moved. Its caller knows `known` tokens so
        far. Raises what ends it; the caller aborts it then."""
        live = _Live(seq, known, asked=self.draining)
        self._live.append(live)
        try:
            if self._to_offer(live):
                yield worker.DecodeEvent(attempt=attempt, moving=self._offer(live))
            async for update in updates:
                if update.tokens:
                    live.known += len(update.tokens)
                    self._meter.generated(len(update.tokens))
                    yield worker.DecodeEvent(attempt=attempt, tokens=update_to_wire(update))
                if self._to_offer(live):
                    yield worker.DecodeEvent(attempt=attempt, moving=self._offer(live))
        except Cancelled:
            if not live.taken:
                raise
            self._meter.moved_out()
            yield worker.DecodeEvent(attempt=attempt, moved=worker.Moved())
        finally:
            self._live.remove(live)
            if live.offered and live.ticket is not None:
                self._desk.end(live.ticket, "its decode call ended")

    def move(self, request_id: str) -> bool:
        """Offer it to others; False where it does not decode here."""
        found = [live for live in self._live if live.seq.id == request_id]
        for live in found:
            self._ask(live)
        return bool(found)

    def move_all(self) -> None:
        """Offer everything that is not on offer."""
        for live in self._live:
            self._ask(live)

    def _ask(self, live: _Live) -> None:
        if not live.asked and not live.offered:
            live.asked = True
            self._engine.nudge(live.seq)

    def _to_offer(self, live: _Live) -> bool:
        return live.asked and live.seq.status is not SequenceStatus.FINISHED

    def _offer(self, live: _Live) -> worker.Moving:
        """In the order of the stream: whoever reads it knows the tokens that the ticket covers."""
        live.asked = False
        live.ticket, ticket = self._desk.open(live.seq, live.known - 1, moving=True)
        return worker.Moving(ticket=ticket)
