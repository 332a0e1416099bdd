"""A request's way through the workers: prefill, bind the ticket to a decode worker, stream; or all
of it on one worker, where placement finds that better.

    state      held                          goes on to
    placing    nothing                       prefill, alone; Unavailable when the budget is over
    prefill    Prefill call, from Opened     binding at the first token; early when that pays (its
               on the ticket                 Decode call is open beside it); ends at a finish
    alone      Decode call without a ticket  decoding once its prompt is computed
    binding    ticket, Decode call           decoding when Admitted; binding again, one epoch higher
    decoding   Decode call                   ends at the finish; moving when its worker offers it
    moving     Decode call, its ticket,      decoding: by the second call at Moved, by the first
               a second Decode call          when nobody takes it or it finishes

From every state a failure leads back to placing, with the tokens emitted so far as the prompt: what
caches hold of them is not computed again. A ticket outlives failures of those it is bound to. The
client sees each position once; leaving run() in any state frees all that is held. Prefill and alone
stand here, binding in handoff.py, decoding and moving in moving.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from types import TracebackType

from router.calls import Call
from router.config import Limits
from router.desk import Desk
from router.explain.trail import Trail
from router.flight import Binding, BlockIds, Emission, Flight, RetryBudget
from router.handoff import Handoff
from router.index.prefix import PrefixIndex
from router.latency import LatencyModel
from router.metrics import RouterMetrics
from router.moving import follow
from router.placement.decision import NO_TARGETS, Decision, Targets
from router.placement.placement import Placement
from router.pool import Pool
from router.replica import Replica
from router.worker_client import WorkerFailed, WorkerFull
from workers.core.clock import Clock
from workers.core.errors import TicketError
from workers.core.request import Request
from workers.wire import worker_pb2 as worker


class Dispatcher:
    """`async with Dispatcher(...)`; run() once for each request. Owns every task it starts."""

    def __init__(
        self,
        pool: Pool,
        placement: Placement,
        index: PrefixIndex,
        latency: LatencyModel,
        limits: Limits,
        clock: Clock,
        metrics: RouterMetrics,
    ) -> None:
        self._desk = Desk(pool, placement, index, latency, metrics)
        self._limits = limits
        self._clock = clock

    async def __aenter__(self) -> Dispatcher:
        await self._desk.calls.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits for what is still being freed."""
        await self._desk.calls.__aexit__(kind, error, trace)

    @property
    def tickets_held(self) -> int:
        return self._desk.calls.tickets_held

    def stop(self) -> None:
        """From now on every request ends with Unavailable, also those under way."""
        self._desk.stop()

    async def move(self, request_id: str) -> bool:
        """Asks the worker that decodes it to offer it to others; it moves where one takes it.
        False: it does not decode anywhere now. Raises WorkerFailed."""
        replica = self._desk.decodes(request_id)
        return replica is not None and await replica.client.move(request_id)

    async def relieve(self, replica: Replica) -> bool:
        """Moves the request that came to it last: the least is lost where that goes wrong. False:
        none of ours decodes there. Raises WorkerFailed."""
        request_id = self._desk.last_decoding(replica)
        return request_id is not None and await self.move(request_id)

    def expected_s(self, blocks: BlockIds) -> float:
        """Predicted seconds of prefill, where the least of it is left to compute; 0 while nobody
        can do it."""
        return self._desk.expected_s(blocks)

    async def run(
        self,
        request: Request,
        blocks: BlockIds | None = None,
        placed: Callable[[], None] = lambda: None,
        trail: Trail | None = None,
        targets: Targets = NO_TARGETS,
    ) -> AsyncGenerator[Emission]:
        """Tokens as they come; the last emission has finish_reason. Close it to cancel. `blocks`:
        the request's, where they are hashed already. `placed` is called when it counts as the load
        of a replica. `trail` is told what happens. `targets`: what its class is promised.

        Raises InvalidRequest as the worker said it, Unavailable or Overloaded when the retry
        budget is over, Unavailable after stop().
        """
        limits = self._limits
        budget = RetryBudget(
            self._clock, limits.retry_attempts, limits.retry_s, limits.worker_wait_s
        )
        trail = trail or Trail(self._clock.now, self._clock.now())
        flight = Flight(request, budget, blocks or BlockIds(request), placed, trail, targets)
        while True:
            try:
                async with aclosing(await self._attempt(flight)) as emissions:
                    async for emission in emissions:
                        yield emission
                        if emission.finish_reason is not None:
                            return
            except (WorkerFailed, WorkerFull, TicketError) as error:
                trail.failed(error)
                await self._desk.recover(flight, error, "prefill")

    async def _attempt(self, flight: Flight) -> AsyncGenerator[Emission]:
        """Everything so far prefilled and decoded further, one way or the other."""
        began = self._clock.now()
        flight.trail.began()
        decision = await self._desk.find(flight, "prefill")
        flight.trail.placed(decision)
        replica = decision.replica
        blocks = flight.blocks.of(replica.kv_abi, replica.record.block_size)
        self._desk.index.expect(replica.id, blocks)
        flight.placed()  # nobody else decides before its call is open and counts
        self._desk.metrics.went(decision, self._clock.now() - began)
        if decision.alone:
            return follow(self._desk, flight, await self._alone(flight, decision))
        return self._split(flight, decision)

    async def _split(self, flight: Flight, decision: Decision) -> AsyncGenerator[Emission]:
        """The first token from a prefill worker, the others from whoever redeems its ticket."""
        with self._desk.calls.prefill(flight, decision) as prefill, ExitStack() as held:
            handoff, first = await self._first_token(flight, decision, prefill, held)
            emission = prefill.accept([first.token], first.finish_reason)
            if emission is None or (handoff is None and not prefill.over):
                raise WorkerFailed(f"replica {decision.replica.id}: a first token out of turn")
            self._desk.metrics.prefilled(first.queue_s, first.prefill_s, flight.trail.exemplar)
            flight.trail.prefilled(first.queue_s, first.prefill_s)
            if handoff is not None and prefill.over:
                handoff.drop()
            yield emission
            if handoff is None or prefill.over:
                return
            decode = await handoff.settle()
            prefill.over = True
        async with aclosing(follow(self._desk, flight, decode)) as emissions:
            async for emission in emissions:
                yield emission

    async def _first_token(
        self,
        flight: Flight,
        decision: Decision,
        prefill: Call[worker.PrefillEvent],
        held: ExitStack,
    ) -> tuple[Handoff | None, worker.FirstToken]:
        """Reads up to it. The ticket's lease, and its handoff, are `held`."""
        handoff: Handoff | None = None
        while True:
            event = await prefill.read()
            if event.HasField("opened"):
                binding = Binding(event.opened.ticket, decision.replica)
                held.enter_context(self._desk.calls.holding(binding))
                handoff = held.enter_context(Handoff(self._desk, flight, binding))
                self._opened(flight, decision, event.opened.cached_tokens, prefill)
                handoff.begin(prefill)
            elif event.HasField("progress"):
                prefill.progressed(event.progress.computed_tokens)
            elif event.HasField("first_token"):
                return handoff, event.first_token
            else:
                raise WorkerFailed(f"replica {decision.replica.id}: a prefill without a token")

    async def _alone(self, flight: Flight, decision: Decision) -> Call[worker.DecodeEvent]:
        """All of it in one call to one worker: a ticket there is only if it moves. Its prompt is
        computed, its tokens follow."""
        with ExitStack() as held:
            call = held.enter_context(self._desk.calls.alone(flight, decision))
            queue_s = 0.0
            while not (event := await call.read()).HasField("prefilled"):
                if event.HasField("admitted"):
                    queue_s = event.admitted.admit_wait_s
                    self._opened(flight, decision, event.admitted.cached_tokens, call)
                elif event.HasField("progress"):
                    call.progressed(event.progress.computed_tokens)
                else:
                    raise WorkerFailed(f"replica {decision.replica.id}: no prompt, but tokens")
            self._desk.metrics.prefilled(queue_s, event.prefilled.prefill_s, flight.trail.exemplar)
            flight.trail.prefilled(queue_s, event.prefilled.prefill_s)
            held.pop_all()  # the call is follow's now
        return call

    def _opened(
        self,
        flight: Flight,
        decision: Decision,
        cached_tokens: int,
        call: Call[worker.PrefillEvent] | Call[worker.DecodeEvent],
    ) -> None:
        """The prompt's prefill has begun; only what is not cached is computed."""
        call.progressed(cached_tokens)
        flight.trail.opened(cached_tokens)
        if flight.cached_tokens is None:
            flight.cached_tokens = cached_tokens
            self._desk.metrics.opened(len(flight.tokens), decision.cached_tokens, cached_tokens)
