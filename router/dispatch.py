"""A request's way through the workers: prefill, bind the ticket to a decode worker, stream; or all
of it on one aggregated worker, where placement finds that better.

Whatever breaks, the client sees each position once. Before decode is Admitted the same ticket is
bound again, elsewhere or to the restarted worker, under a higher epoch; after that, or when there
is no ticket, prompt + emitted tokens are prefilled again. Leaving run() in any phase frees both
sides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, ExitStack, aclosing
from types import TracebackType

from router.calls import Call, Calls
from router.config import Limits
from router.flight import Binding, Emission, Flight, RetryBudget
from router.index.prefix import PrefixIndex
from router.metrics import RouterMetrics
from router.placement.decision import Decision, Need, Phase
from router.placement.filters import serves
from router.placement.placement import Placement
from router.pool import Pool
from router.replica import Assignment, Replica
from router.worker_client import WorkerFailed, WorkerFull
from workers.core.clock import Clock
from workers.core.errors import KvasirError, TicketError, Unavailable
from workers.core.request import Request
from workers.wire import worker_pb2 as worker
from workers.wire.codec import finish_from_wire, token_from_wire

log = logging.getLogger(__name__)

BINDS_PER_TICKET = 4  # then its KV is taken for unreachable and computed again
STOPPING = "the router is stopping"


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
        self._calls = Calls(on_lost=pool.wake)
        self._stopping = False

    async def __aenter__(self) -> Dispatcher:
        await self._calls.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits for what is still being freed."""
        await self._calls.__aexit__(kind, error, trace)

    @property
    def tickets_held(self) -> int:
        return self._calls.tickets_held

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
                async with aclosing(await self._attempt(flight)) as emissions:
                    async for emission in emissions:
                        yield emission
                        if emission.finish_reason is not None:
                            return
            except (WorkerFailed, WorkerFull, TicketError) as error:
                await self._recover(flight, error, "prefill")

    async def _attempt(self, flight: Flight) -> AsyncGenerator[Emission]:
        """Everything so far prefilled and decoded further, one way or the other."""
        decision = await self._place(flight, "prefill")
        replica = decision.replica
        blocks = flight.block_ids(replica.kv_abi, replica.record.block_size)
        self._index.expect(replica.id, blocks)
        if replica.role == "aggregated":
            return self._aggregated(flight, decision)
        return self._disaggregated(flight, decision)

    async def _disaggregated(self, flight: Flight, decision: Decision) -> AsyncGenerator[Emission]:
        """The first token from a prefill worker, the others from whoever redeems its ticket."""
        replica = decision.replica
        request = flight.next_request()
        binding: Binding | None = None
        with ExitStack() as held:
            load = held.enter_context(self._assigned(flight, decision))
            stream = replica.client.prefill(request)
            call = held.enter_context(self._calls.running(flight, replica, stream))
            async for event in stream:
                if event.attempt != request.attempt:
                    continue
                if event.HasField("opened"):
                    binding = Binding(event.opened.ticket, replica)
                    held.enter_context(self._calls.holding(binding))
                    self._opened(flight, decision, event.opened.cached_tokens, load)
                elif event.HasField("progress"):
                    _progressed(flight, event.progress, load)
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
        self, flight: Flight, binding: Binding, prefill: Call
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
        self, flight: Flight, binding: Binding, replica: Replica, prefill: Call
    ) -> AsyncGenerator[Emission]:
        """One decode call. Until it is Admitted the prefill worker's death ends it too."""
        binding.epoch += 1
        request = flight.next_request()
        with ExitStack() as held:
            load = held.enter_context(replica.assigned(0, len(flight.tokens)))
            stream = replica.client.decode(request, binding.ticket, binding.epoch)
            call = held.enter_context(self._calls.running(flight, replica, stream))
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
                emission = _accept(flight, event.tokens, load, call)
                if emission is not None:
                    yield emission
                if call.over:
                    return
            raise WorkerFailed(f"replica {replica.id} ended a decode without a finish")

    async def _aggregated(self, flight: Flight, decision: Decision) -> AsyncGenerator[Emission]:
        """All of it in one call to one worker: there is no ticket that could be bound again."""
        replica = decision.replica
        request = flight.next_request()
        queue_s = 0.0
        with ExitStack() as held:
            load = held.enter_context(self._assigned(flight, decision))
            stream = replica.client.decode(request)
            call = held.enter_context(self._calls.running(flight, replica, stream))
            async for event in stream:
                if event.attempt != request.attempt:
                    continue
                if event.HasField("admitted"):
                    queue_s = event.admitted.admit_wait_s
                    self._opened(flight, decision, event.admitted.cached_tokens, load)
                elif event.HasField("progress"):
                    _progressed(flight, event.progress, load)
                elif event.HasField("prefilled"):
                    self._metrics.prefilled(queue_s, event.prefilled.prefill_s)
                else:
                    load.pending_tokens = 0
                    emission = _accept(flight, event.tokens, load, call)
                    if emission is not None:
                        yield emission
                    if call.over:
                        return
            raise WorkerFailed(f"replica {replica.id} ended a request without a finish")

    async def _place(
        self, flight: Flight, phase: Phase, binding: Binding | None = None
    ) -> Decision:
        """Chooses a replica, waiting for one as long as the budget says. Raises Unavailable; for a
        binding whose prefill worker dies meanwhile, WorkerFailed."""
        try:
            async with asyncio.timeout(flight.budget.left_s()):
                while True:
                    self._check_stopping()
                    if binding is not None and not binding.alive:
                        raise WorkerFailed(f"replica {binding.replica.id} is gone with its ticket")
                    need = self._need(flight, phase, binding)
                    decision = self._placement.place(need, self._pool)
                    if decision is not None:
                        log.debug("%s: %s on %s", flight.id, phase, decision.explain())
                        return decision
                    await self._pool.wait_changed()
        except TimeoutError:
            raise Unavailable(
                f"no worker is ready to {phase} this request", retry_after_s=1.0
            ) from None

    def _need(self, flight: Flight, phase: Phase, binding: Binding | None) -> Need:
        cached: dict[str, int] = {}
        layouts = {
            (r.kv_abi, r.record.block_size) for r in self._pool if r.up and serves(r.role, phase)
        }
        for kv_abi, size in layouts:
            depths = self._index.match(flight.block_ids(kv_abi, size))
            cached.update((name, depth * size) for name, depth in depths.items())
        partner = binding.ticket.kv_abi if binding is not None else None
        return Need(phase, len(flight.tokens), cached, partner, flight.avoid)

    def _assigned(self, flight: Flight, decision: Decision) -> AbstractContextManager[Assignment]:
        uncached = len(flight.tokens) - decision.cached_tokens
        return decision.replica.assigned(uncached, len(flight.tokens))

    def _opened(
        self, flight: Flight, decision: Decision, cached_tokens: int, load: Assignment
    ) -> None:
        """The prompt's prefill has begun; only what is not cached is computed."""
        load.pending_tokens = max(0, len(flight.tokens) - cached_tokens)
        if flight.cached_tokens is None:
            flight.cached_tokens = cached_tokens
            self._metrics.opened(len(flight.tokens), decision.cached_tokens, cached_tokens)

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


def _progressed(flight: Flight, progress: worker.Progress, load: Assignment) -> None:
    load.pending_tokens = max(0, len(flight.tokens) - progress.computed_tokens)


def _accept(flight: Flight, tokens: worker.Tokens, load: Assignment, call: Call) -> Emission | None:
    """What of `tokens` is news to the client, if anything."""
    fresh = flight.accept(tuple(map(token_from_wire, tokens.tokens)))
    finish = finish_from_wire(tokens.finish_reason)
    load.kv_tokens = len(flight.tokens)
    call.over = finish is not None
    if not fresh and not call.over:
        return None
    return Emission(fresh, finish, flight.cached_tokens or 0)
