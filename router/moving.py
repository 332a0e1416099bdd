"""Following a decode stream, and where it goes: a worker may offer its running sequence to others.

    old worker   Tokens  Moving{ticket}  Tokens ... Tokens  Moved
    new worker                  Decode ............ Admitted       Tokens ... finish

The old stream is read until it says Moved; what the new one says meanwhile waits in its stream, so
positions stay in order. If nobody takes the sequence the ticket is released and the old stream goes
on; if the old worker dies first, its tokens are computed again, as ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType

from router.calls import Call, Kind
from router.desk import Desk
from router.flight import Binding, Emission, Flight
from router.handoff import BINDS_PER_TICKET, Handoff
from router.worker_client import WorkerFailed, WorkerFull
from workers.core.errors import KvasirError
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker

log = logging.getLogger(__name__)

LAST_WORD_S = 0.5  # that somebody has redeemed it may be known a moment after its worker's death
PAUSE_S = 0.05  # times the number of failures


async def follow(
    desk: Desk, flight: Flight, call: Call[worker.DecodeEvent]
) -> AsyncGenerator[Emission]:
    """Tokens to the end, whoever says them. Takes the call over. Raises WorkerFailed."""
    while True:
        with (
            call,
            Move(desk, flight, call) as move,
            desk.decoding(flight.id, call.replica),
        ):
            async with aclosing(_read(call, move)) as emissions:
                async for emission in emissions:
                    yield emission
            if call.finished:
                return
            successor = await move.successor()
        log.info("%s: moved from %s to %s", flight.id, call.replica.id, successor.replica.id)
        desk.metrics.moved("moved")
        flight.trail.moved(successor.replica.id)
        call = successor


async def _read(call: Call[worker.DecodeEvent], move: Move) -> AsyncGenerator[Emission]:
    """One worker's part: to the finish, or until the sequence is somebody else's."""
    while not call.over:
        try:
            event = await call.read()
        except WorkerFailed:
            if not await move.redeemed(LAST_WORD_S):
                raise  # else it died after it had given everything away
            return
        if event.HasField("tokens"):
            emission = call.accept(event.tokens.tokens, event.tokens.finish_reason)
            if call.over:
                move.drop()
            if emission is not None:
                yield emission
        elif event.HasField("moving"):
            move.offered(event.moving.ticket)
        elif event.HasField("moved"):
            call.over = True


class Move:
    """A running sequence's way to another worker. `with` it: what it holds ends with the block."""

    def __init__(self, desk: Desk, flight: Flight, source: Call[worker.DecodeEvent]) -> None:
        self._desk = desk
        self._flight = flight
        self._source = source
        self._open = True  # the old worker still decodes it
        self._handoff: Handoff | None = None
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Move:
        return self

    def __exit__(
        self, kind: Kind, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._handoff is not None:
            self._handoff.__exit__(kind, error, trace)

    def offered(self, ticket: common.Ticket) -> None:
        """The old worker would let it go. An offer takes the place of one that nobody took."""
        self.drop()
        self._flight.trail.offered(self._source.replica.id)
        binding = Binding(ticket, self._source.replica, moving=True)
        self._handoff = Handoff(self._desk, self._flight, binding)
        self._task = self._desk.calls.beside(self._carry(self._handoff))

    def drop(self) -> None:
        """Whatever was offered is over."""
        if self._task is not None:
            self._task.cancel()
        if self._handoff is not None:
            self._handoff.drop()

    async def redeemed(self, patience_s: float | None = None) -> bool:
        """The old worker says no more. Whether who is called at this moment has the sequence."""
        self._open = False
        if self._task is not None and self._handoff is not None and self._handoff.calls:
            await asyncio.wait([self._task], timeout=patience_s)
        return self._handoff is not None and self._handoff.binding.over

    async def successor(self) -> Call[worker.DecodeEvent]:
        """The call of whoever redeemed it. Raises WorkerFailed if that one is gone, too."""
        if await self.redeemed():
            assert self._handoff is not None
            return self._handoff.take()
        story = self._handoff.binding.tell() if self._handoff is not None else "no ticket came"
        raise WorkerFailed(f"it moved and nobody has it: {story}")

    async def _carry(self, handoff: Handoff) -> None:
        """Offers it until somebody has it, or gives the ticket back."""
        binding = handoff.binding
        with self._desk.calls.holding(binding):
            while self._open and binding.alive and binding.epoch < BINDS_PER_TICKET:
                try:
                    # Where nobody else is, somebody may come: a worker that leaves needs it.
                    decision = await self._desk.find_patiently(self._flight, "decode", binding)
                    await handoff.bind(decision)
                    return
                except (WorkerFailed, WorkerFull):
                    await asyncio.sleep(PAUSE_S * binding.epoch)
                except KvasirError:
                    break
            log.warning("%s: stays where it is: %s", self._flight.id, binding.tell())
            self._desk.metrics.moved("stayed")
            self._flight.trail.stayed(binding.tell())
