"""Calls to workers and tickets, held while a block runs, and what either leaves to clean up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

from router.flight import Binding, Flight
from router.leases import Leases
from router.replica import Replica
from router.worker_client import WorkerStream
from workers.core.errors import KvasirError
from workers.wire import worker_pb2 as worker

log = logging.getLogger(__name__)

CLEAN_UP_S = 3.0

AnyStream: TypeAlias = WorkerStream[worker.PrefillEvent] | WorkerStream[worker.DecodeEvent]


@dataclass(slots=True)
class Call:
    """`over`: the worker has said its last word, nothing needs to be cancelled."""

    over: bool = False


class Calls:
    """`async with Calls(...)`. Owns every task that a request may leave behind."""

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
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits for what is still being freed, CLEAN_UP_S at most."""
        assert self._renewals is not None
        self._renewals.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    @property
    def tickets_held(self) -> int:
        """Tickets renewed at this moment."""
        return self._leases.num_held

    @contextmanager
    def running(self, flight: Flight, replica: Replica, stream: AnyStream) -> Iterator[Call]:
        """A call that ends with the block: quietly when it is over, else by cancelling it."""
        flight.speaker = replica.incarnation
        call, attempt = Call(), flight.attempt
        try:
            with replica.bound(stream):
                yield call
        except (GeneratorExit, asyncio.CancelledError):
            # The client left. A retry never says this: workers cancel the whole request, and the
            # message could overtake the next attempt.
            if replica.alive and not call.over:
                self._later(replica.client.cancel(flight.id, attempt))
            raise
        finally:
            if call.over and not stream.ended:
                self._later(_read_out(stream))
            else:
                stream.cancel()

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
                    self._later(client.release(ticket, binding.epoch))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Cleaning up outlives the request that made it necessary, but not CLEAN_UP_S."""
        self._tasks.create_task(_bounded(work))


async def _bounded(work: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(CLEAN_UP_S):
            await work
    except (KvasirError, TimeoutError) as error:
        log.debug("cleaning up: %r", error)  # the lease will end what this could not


async def _read_out(stream: AnyStream) -> None:
    """Let the call end by itself, so that the worker sees no cancellation where there was none."""
    try:
        while await stream.read() is not None:
            pass
    finally:
        stream.cancel()
