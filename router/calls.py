"""Calls to workers and tickets: held by a request, and what either leaves to clean up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

from router.flight import Binding, Emission, Flight
from router.leases import Leases
from router.placement.decision import Decision
from router.replica import Replica
from router.worker_client import WorkerFailed, WorkerFull, WorkerStream
from workers.core.errors import KvasirError, TicketError
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import finish_from_wire, tokens_from_wire

log = logging.getLogger(__name__)

CLEAN_UP_S = 3.0

E = TypeVar("E", worker.PrefillEvent, worker.DecodeEvent)
Kind = type[BaseException] | None


def client_left(kind: Kind) -> bool:
    """Whether a block ended because nobody wants the answer any more."""
    return kind is not None and issubclass(kind, (GeneratorExit, asyncio.CancelledError))


class Call(Generic[E]):
    """One Prefill or Decode call, open from the start; close() it, or use it as a block.

    `load`: what it is to its replica; `decodes`: it stays there once its prompt is computed.
    `over`: the worker has said its last word, nothing needs to be cancelled. `finished`: that word
    was the request's finish.
    """

    def __init__(
        self,
        calls: Calls,
        flight: Flight,
        replica: Replica,
        stream: WorkerStream[E],
        pending: int,
        *,
        decodes: bool,
    ) -> None:
        self.replica = replica
        self.stream: WorkerStream[E] = stream
        self.over = False
        self.finished = False
        self._calls = calls
        self._flight = flight
        self._attempt = flight.attempt
        self._incarnation = replica.incarnation
        self._held = ExitStack()
        load = replica.assigned(pending, len(flight.tokens), decodes=decodes)
        self.load = self._held.enter_context(load)
        self._held.enter_context(replica.bound(stream))

    async def read(self) -> E:
        """The next event of this attempt; what an older one says is dropped.

        Raises what the worker said, and WorkerFailed where it ends too early.
        """
        try:
            while True:
                event = await self.stream.read()
                if event is None:
                    raise WorkerFailed(f"replica {self.replica.id} ended its call too early")
                if event.attempt == self._attempt:
                    return event
        except (WorkerFailed, WorkerFull, TicketError):
            self._blame()
            raise

    def accept(
        self, tokens: Iterable[common.Token], finish_reason: common.FinishReason
    ) -> Emission | None:
        """What of `tokens` is news to the client, if anything. Raises WorkerFailed for a gap."""
        flight = self._flight
        try:
            fresh = flight.accept(tokens_from_wire(tokens))
        except WorkerFailed:
            self._blame()
            raise
        finish = finish_from_wire(finish_reason)
        self.load.update(pending_tokens=0, kv_tokens=len(flight.tokens))
        self.over = self.finished = finish is not None
        if not fresh and finish is None:
            return None
        return Emission(fresh, finish, flight.cached_tokens or 0)

    def progressed(self, computed_tokens: int) -> None:
        """So many tokens of the prompt are computed or were cached."""
        self.load.update(pending_tokens=max(0, len(self._flight.tokens) - computed_tokens))

    def close(self, *, left: bool) -> None:
        """Ends it: quietly when it is over, else by cancelling it. `left`: the client is gone."""
        self._held.close()
        if left and not self.over and self.replica.alive:
            # A retry never says this: workers cancel the whole request, and the message could
            # overtake the next attempt.
            self._calls.later(self.replica.client.cancel(self._flight.id, self._attempt))
        if self.over and not self.stream.ended:
            self._calls.later(_read_out(self.stream))
        else:
            self.stream.cancel()

    def __enter__(self) -> Call[E]:
        return self

    def __exit__(
        self, kind: Kind, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(left=client_left(kind))

    def _blame(self) -> None:
        self._flight.avoid.add(self._incarnation)


class Calls:
    """`async with Calls(...)`. Owns every task of a request, also those that outlive it."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called when a worker no longer knows a ticket that is held."""
        self._leases = Leases(on_lost)
        self._tasks = asyncio.TaskGroup()
        self._renewals: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Calls:
        await self._tasks.__aenter__()
        self._renewals = self._tasks.create_task(self._leases.run(), name="renew tickets")
        return self

    async def __aexit__(
        self, kind: Kind, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for what is still being freed, CLEAN_UP_S at most."""
        assert self._renewals is not None
        self._renewals.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    @property
    def tickets_held(self) -> int:
        """Tickets renewed at this moment."""
        return self._leases.num_held

    def prefill(self, flight: Flight, decision: Decision) -> Call[worker.PrefillEvent]:
        replica = decision.replica
        stream = replica.client.prefill(flight.next_request())
        return Call(self, flight, replica, stream, _uncached(flight, decision), decodes=False)

    def alone(self, flight: Flight, decision: Decision) -> Call[worker.DecodeEvent]:
        """Prefill and decode on one replica."""
        replica = decision.replica
        stream = replica.client.decode(flight.next_request())
        return Call(self, flight, replica, stream, _uncached(flight, decision), decodes=True)

    def redeem(
        self, flight: Flight, replica: Replica, binding: Binding
    ) -> Call[worker.DecodeEvent]:
        """Binds the ticket anew: one epoch higher."""
        binding.epoch += 1
        stream = replica.client.decode(flight.next_request(), binding.ticket, binding.epoch)
        return Call(self, flight, replica, stream, pending=0, decodes=True)

    @contextmanager
    def holding(self, binding: Binding) -> Iterator[None]:
        """Keeps the ticket's lease until it is over; what is left of it then is released."""
        ticket, client = binding.ticket.id, binding.replica.client
        with binding.lease:
            binding.lease.enter_context(self._leases.hold(binding))
            try:
                yield
            finally:
                if not binding.over and binding.alive:
                    self.later(client.release(ticket, binding.epoch))

    def beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs beside a request, which cancels it at its end. `work` raises nothing."""
        return self._tasks.create_task(work)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Cleaning up outlives the request that made it necessary, but not CLEAN_UP_S."""
        self._tasks.create_task(_bounded(work))


def _uncached(flight: Flight, decision: Decision) -> int:
    return len(flight.tokens) - decision.cached_tokens


async def _bounded(work: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(CLEAN_UP_S):
            await work
    except (KvasirError, TimeoutError) as error:
        log.debug("cleaning up: %r", error)  # the lease will end what this could not


async def _read_out(stream: WorkerStream[Any]) -> None:
    """Let the call end by itself, so that the worker sees no cancellation where there was none."""
    try:
        while await stream.read() is not None:
            pass
    finally:
        stream.cancel()
