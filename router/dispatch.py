"""A request's way through the workers: prefill, bind the ticket to a decode worker, stream.

Whatever breaks, the client sees each position once. Before decode is Admitted the same ticket is
bound again, elsewhere or to the restarted worker, under a higher epoch; after that, or when the
ticket is gone, prompt + emitted tokens are prefilled again. Leaving run() in any phase frees both
sides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

from router.config import Limits
from router.flight import Binding, Emission, Flight, RetryBudget
from router.index.prefix import PrefixIndex
from router.leases import Leases
from router.metrics import RouterMetrics
from router.placement.decision import Decision, Need
from router.placement.placement import Placement
from router.pool import Pool
from router.replica import Replica, RoleName
from router.worker_client import WorkerFailed, WorkerFull, WorkerStream
from workers.core.clock import Clock
from workers.core.errors import KvasirError, TicketError, Unavailable
from workers.core.request import Request
from workers.wire import worker_pb2 as worker
from workers.wire.codec import finish_from_wire, token_from_wire

log = logging.getLogger(__name__)

BINDS_PER_TICKET = 4  # then its KV is taken for unreachable and computed again
CLEAN_UP_S = 3.0
STOPPING = "the router is stopping"

AnyStream: TypeAlias = WorkerStream[worker.PrefillEvent] | WorkerStream[worker.DecodeEvent]


class Dispatcher:
    """`async with Dispatcher(...)`; run() once for each request. Owns every task it starts."""

    def __init__(
        self,
        pool: Pool,
        placement: Placement,
        index: PrefixIndex,
        limits: Limits,
        clock: Clock,
        metrics: RouterMetrics,
    ) -> None:
        self._pool = pool
        self._placement = placement
        self._index = index
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._leases = Leases(on_lost=pool.wake)
        self._tasks = asyncio.TaskGroup()
        self._renewals: asyncio.Task[None] | None = None
        self._stopping = False

    async def __aenter__(self) -> Dispatcher:
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

    def stop(self) -> None:
        """From now on every request ends with Unavailable, also those under way."""
        self._stopping = True
        for replica in self._pool:
            replica.abort_calls(STOPPING)
        self._pool.wake()

    async def run(self, request: Request) -> AsyncGenerator[Emission]:
        """Tokens as they come; the last emission has finish_reason. Close it to cancel.

        Raises InvalidRequest as the worker said it, Unavailable or Overloaded when the retry
        budget is over, Unavailable after stop().
        """
        limits = self._limits
        budget = RetryBudget(
            self._clock, limits.retry_attempts, limits.retry_s, limits.worker_wait_s
        )
        flight = Flight(request, budget)
        while True:
            try:
                async with aclosing(self._attempt(flight)) as emissions:
                    async for emission in emissions:
                        yield emission
                        if emission.finish_reason is not None:
                            return
            except (WorkerFailed, WorkerFull, TicketError) as error:
                await self._recover(flight, error, "prefill")

    async def _attempt(self, flight: Flight) -> AsyncGenerator[Emission]:
        """Prefill of everything so far, then decode."""
        decision = await self._place(flight, "prefill")
        replica = decision.replica
        request = flight.next_request()
        uncached = len(flight.tokens) - decision.cached_tokens
        blocks = flight.block_ids(replica.kv_abi, replica.record.block_size)
        self._index.expect(replica.id, blocks)
        binding: Binding | None = None
        with ExitStack() as held:
            load = held.enter_context(replica.assigned(uncached, len(flight.tokens)))
            stream = replica.client.prefill(request)
            call = held.enter_context(self._call(flight, replica, stream))
            async for event in stream:
                if event.attempt != request.attempt:
                    continue
                if event.HasField("opened"):
                    binding = Binding(event.opened.ticket, replica)
                    held.enter_context(self._holding(binding))
                    self._opened(flight, decision, event.opened)
                    load.pending_tokens = len(flight.tokens) - event.opened.cached_tokens
                elif event.HasField("progress"):
                    computed = event.progress.computed_tokens
                    load.pending_tokens = max(0, len(flight.tokens) - computed)
                elif event.HasField("first_token"):
                    break
            else:
                raise WorkerFailed(f"replica {replica.id} ended a prefill without a token")
            first = event.first_token
            finish = finish_from_wire(first.finish_reason)
            fresh = flight.accept((token_from_wire(first.token),))
            if not fresh or (binding is None and finish is None):
                raise WorkerFailed(f"replica {replica.id} sent a first token out of turn")
            load.pending_tokens = 0
            self._metrics.prefilled(first.queue_s, first.prefill_s)
            call.over = finish is not None
            if binding is not None and finish is not None:
                binding.end()
            yield Emission(fresh, finish, flight.cached_tokens or 0)
            if binding is None or finish is not None:
                return
            async with aclosing(self._decode(flight, binding, call)) as emissions:
                async for emission in emissions:
                    yield emission

    async def _decode(
        self, flight: Flight, binding: Binding, prefill: _Call
    ) -> AsyncGenerator[Emission]:
        """Binds the ticket to decode workers, one after the other, until one has finished."""
        for _ in range(BINDS_PER_TICKET):
            decision = await self._place(flight, "decode", binding)
            bound = self._bind(flight, binding, decision.replica, prefill)
            try:
                async with aclosing(bound) as emissions:
                    async for emission in emissions:
                        yield emission
                return
            except (WorkerFailed, WorkerFull) as error:
                if binding.over or not binding.alive:
                    raise
                await self._recover(flight, error, "decode")
        raise WorkerFailed(f"no decode worker could fetch ticket {binding.ticket.id}")

    async def _bind(
        self, flight: Flight, binding: Binding, replica: Replica, prefill: _Call
    ) -> AsyncGenerator[Emission]:
        """One decode call. Until it is Admitted the prefill worker's death ends it too."""
        binding.epoch += 1
        request = flight.next_request()
        with ExitStack() as held:
            load = held.enter_context(replica.assigned(0, len(flight.tokens)))
            stream = replica.client.decode(request, binding.ticket, binding.epoch)
            call = held.enter_context(self._call(flight, replica, stream))
            fetching = held.enter_context(ExitStack())
            fetching.enter_context(binding.replica.bound(stream))
            async for event in stream:
                if event.attempt != request.attempt:
                    continue
                if event.HasField("admitted"):
                    fetching.close()
                    binding.end()
                    prefill.over = True
                    self._metrics.admitted(event.admitted)
                    continue
                fresh = flight.accept(tuple(map(token_from_wire, event.tokens.tokens)))
                finish = finish_from_wire(event.tokens.finish_reason)
                load.kv_tokens = len(flight.tokens)
                call.over = finish is not None
                if fresh or call.over:
                    yield Emission(fresh, finish, flight.cached_tokens or 0)
                if call.over:
                    return
            raise WorkerFailed(f"replica {replica.id} ended a decode without a finish")

    async def _place(
        self, flight: Flight, role: RoleName, binding: Binding | None = None
    ) -> Decision:
        """Chooses a replica, waiting for one as long as the budget says. Raises Unavailable; for a
        binding whose prefill worker dies meanwhile, WorkerFailed."""
        try:
            async with asyncio.timeout(flight.budget.left_s()):
                while True:
                    self._check_stopping()
                    if binding is not None and not binding.alive:
                        raise WorkerFailed(f"replica {binding.replica.id} is gone with its ticket")
                    need = self._need(flight, role, binding)
                    decision = self._placement.place(need, self._pool)
                    if decision is not None:
                        log.debug("%s: %s on %s", flight.id, role, decision.explain())
                        return decision
                    await self._pool.wait_changed()
        except TimeoutError:
            raise Unavailable(
                f"no {role} worker is ready for this request", retry_after_s=1.0
            ) from None

    def _need(self, flight: Flight, role: RoleName, binding: Binding | None) -> Need:
        cached: dict[str, int] = {}
        layouts = {(r.kv_abi, r.record.block_size) for r in self._pool if r.up and r.role == role}
        for kv_abi, size in layouts:
            depths = self._index.match(flight.block_ids(kv_abi, size))
            cached.update((name, depth * size) for name, depth in depths.items())
        partner = binding.ticket.kv_abi if binding is not None else None
        return Need(role, len(flight.tokens), cached, partner, flight.avoid)

    def _opened(self, flight: Flight, decision: Decision, opened: worker.Opened) -> None:
        if flight.cached_tokens is None:
            flight.cached_tokens = opened.cached_tokens
            self._metrics.opened(len(flight.tokens), decision.cached_tokens, opened.cached_tokens)

    async def _recover(self, flight: Flight, error: KvasirError, again: str) -> None:
        """Counts the failure and pauses before the next try. Raises when there is none."""
        self._check_stopping()
        flight.avoid.add(flight.speaker)
        pause = flight.budget.failed(error)
        self._metrics.retried(again)
        log.warning("%s: %s again: %s", flight.id, again, error.message)
        await asyncio.sleep(pause)

    def _check_stopping(self) -> None:
        if self._stopping:
            raise Unavailable(STOPPING, retry_after_s=1.0)

    @contextmanager
    def _call(self, flight: Flight, replica: Replica, stream: AnyStream) -> Iterator[_Call]:
        """A call that ends with the block: quietly when it is over, else by cancelling it."""
        flight.speaker = replica.incarnation
        call, attempt = _Call(), flight.attempt
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
    def _holding(self, binding: Binding) -> Iterator[None]:
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


@dataclass(slots=True)
class _Call:
    """`over`: the worker has said its last word, nothing needs to be cancelled."""

    over: bool = False


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
