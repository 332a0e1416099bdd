"""A ticket's way to a decode worker: bound beside the prefill where that pays, else after it.

    early    opened -> [decision] -> Decode -> Admitted           the prompt is still computed
    late     first token -> placed -> Decode -> Admitted          bound again until somebody has it

An early call that fails is made again elsewhere as long as it pays, and late at last: always by the
same ticket, under a higher epoch, and nothing is computed twice.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType

from router.calls import Call, Kind, client_left
from router.desk import Desk
from router.flight import Binding, Flight
from router.placement.binding import Timing, overlap
from router.placement.decision import Decision
from router.worker_client import WorkerFailed, WorkerFull
from workers.core.errors import KvasirError
from workers.wire import worker_pb2 as worker

log = logging.getLogger(__name__)

BINDS_PER_TICKET = 4  # late ones; then its KV is taken for unreachable and computed again
EARLY_BINDS = 3


class Handoff:
    """`with Handoff(...)`: at the block's end its call is closed, unless somebody took it."""

    def __init__(self, desk: Desk, flight: Flight, binding: Binding) -> None:
        self.binding = binding
        self._desk = desk
        self._flight = flight
        self._call: Call[worker.DecodeEvent] | None = None  # not yet admitted, or not yet taken
        self._early: asyncio.Task[None] | None = None
        self._refused: KvasirError | None = None  # of the early call: no other one will help

    def __enter__(self) -> Handoff:
        return self

    def __exit__(
        self, kind: Kind, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(left=client_left(kind))

    @property
    def calls(self) -> bool:
        """Somebody is called for it now, or has it."""
        return self._call is not None

    def drop(self) -> None:
        """Its sender has finished the request: the ticket is over, and so is who wants it."""
        self.binding.end()
        self._close(left=False)

    def _close(self, *, left: bool) -> None:
        if self._early is not None:
            self._early.cancel()
        call, self._call = self._call, None
        if call is not None:
            call.close(left=left)

    def begin(self, prefill: Call[worker.PrefillEvent]) -> None:
        """The prompt's prefill has begun: binds it now if that pays."""
        decision = self._pays_now(prefill)
        if decision is not None:
            self._early = self._desk.calls.beside(self._bind_early(decision, prefill))

    async def settle(self) -> Call[worker.DecodeEvent]:
        """The first token is out: the call of whoever has the KV.

        Raises WorkerFailed or TicketError when it must be computed again, and what recover() and
        find() raise.
        """
        if self._early is not None:
            await asyncio.wait([self._early])
            if self._refused is not None:
                raise self._refused
        tries = 0
        while not self.binding.over:
            decision = await self._desk.find(self._flight, "decode", self.binding)
            tries += 1
            try:
                await self.bind(decision)
            except (WorkerFailed, WorkerFull) as error:
                if not self.binding.alive:
                    raise
                if tries >= BINDS_PER_TICKET:
                    raise WorkerFailed(f"nobody could fetch {self.binding.tell()}") from error
                await self._desk.recover(self._flight, error, "decode", self.binding.tell())
        return self.take()

    async def bind(self, decision: Decision) -> None:
        """One Decode call, until it is Admitted. Until then the sender's death ends it too."""
        binding, replica = self.binding, decision.replica
        self._call = call = self._desk.calls.redeem(self._flight, replica, binding)
        binding.note(f"bound to {replica.id}")
        avoided = replica.incarnation in self._flight.avoid
        trail = self._flight.trail
        trail.bound(decision, binding.epoch, moving=binding.moving)
        try:
            with binding.replica.bound(call.stream):
                event = await call.read()
                if not event.HasField("admitted"):
                    raise WorkerFailed(f"replica {replica.id} spoke before it was admitted")
        except KvasirError as error:
            binding.note(error.message)
            trail.unbound(error)
            if not binding.alive and not avoided:  # it was the sender that failed
                self._flight.avoid.discard(replica.incarnation)
            self._call = None
            call.close(left=False)
            raise
        binding.end()
        self._desk.metrics.admitted(event.admitted, binding.replica.id, replica.id, trail.exemplar)
        trail.fetched(event.admitted, moving=binding.moving)

    def take(self) -> Call[worker.DecodeEvent]:
        """The admitted call; whoever takes it closes it."""
        call, self._call = self._call, None
        assert call is not None and self.binding.over, self.binding.tell()
        return call

    async def _bind_early(self, decision: Decision, prefill: Call[worker.PrefillEvent]) -> None:
        choice: Decision | None = decision
        while choice is not None:
            try:
                await self.bind(choice)
                return
            except (WorkerFailed, WorkerFull) as error:
                log.info("%s: bound too early: %s", self._flight.id, error.message)
                self._desk.metrics.retried("early decode")
                choice = self._pays_now(prefill)
            except KvasirError as error:
                self._refused = error
                return

    def _pays_now(self, prefill: Call[worker.PrefillEvent]) -> Decision | None:
        """Where to bind it at this moment; None = late is better."""
        flight, binding = self._flight, self.binding
        if not binding.alive or binding.epoch >= EARLY_BINDS:
            return None
        decision = self._desk.find_now(flight, "decode", binding)
        if decision is None or decision.replica.incarnation in flight.avoid:
            return None
        predicted = overlap(
            self._desk.latency,
            prefill.replica,
            decision,
            len(flight.tokens),
            prefill.load.pending_tokens,
        )
        timing = predicted.choose()
        self._desk.metrics.timed(timing)
        flight.trail.timed(decision, predicted)
        binding.note(predicted.explain())
        log.debug("%s: %s", flight.id, predicted.explain())
        return decision if timing is Timing.EARLY else None
