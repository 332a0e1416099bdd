"""The aggregated role: compute a prompt and decode it on the same engine, without a ticket.

The scheduler mixes the chunks of its prompt with the decodes of others. Speaks messages, not gRPC:
server.py puts it on a socket, simulations call it directly.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from workers.core.errors import KvasirError, Unavailable
from workers.core.request import Sequence
from workers.engine import Engine
from workers.live import LiveSequences
from workers.metrics import Meter
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_from_wire, update_to_wire

TRANSPORT = "local"


class AggregatedRole:
    def __init__(self, engine: Engine, live: LiveSequences, meter: Meter) -> None:
        self.draining = False
        self._engine = engine
        self._live = live
        self._meter = meter
        self._active: list[Sequence] = []  # whose Decode call is open

    async def decode(self, message: worker.DecodeRequest) -> AsyncIterator[worker.DecodeEvent]:
        """Admitted, Progress*, Prefilled, then Tokens to the end, or to Moved. Left early,
        everything it held is freed.

        Raises InvalidRequest, ContextTooLong; Cancelled; Unavailable while draining.
        """
        if self.draining:
            raise Unavailable("this worker is draining")
        request = request_from_wire(message.sequence)
        arrived = self._now()
        seq = self._engine.add(request)
        updates = self._engine.updates(seq)
        self._active.append(seq)
        admitted, known = False, len(request.token_ids)

        def event(**what: object) -> worker.DecodeEvent:
            return worker.DecodeEvent(attempt=request.attempt, **what)  # type: ignore[arg-type]

        try:
            async for update in updates:
                if not admitted:
                    admitted = True
                    yield event(admitted=self._admitted(seq, arrived))
                if update.tokens:
                    yield event(prefilled=self._prefilled(seq, arrived))
                    self._meter.generated(len(update.tokens))
                    known += len(update.tokens)
                    yield event(tokens=update_to_wire(update))
                    break
                yield event(progress=worker.Progress(computed_tokens=seq.num_computed))
            follow = self._live.follow(seq, updates, request.attempt, known)
            async with aclosing(follow) as events:
                async for later in events:
                    yield later
        finally:
            self._engine.abort(seq)
            self._active.remove(seq)

    def cancel(self, request_id: str) -> None:
        """Its Decode call ends with Cancelled."""
        for seq in self._active:
            if seq.id == request_id:
                self._engine.abort(seq)

    def end(self, why: KvasirError) -> None:
        """Every call that is open ends with `why`."""
        for seq in self._active:
            self._engine.abort(seq, why)

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def sequences(self) -> set[Sequence]:
        return set(self._active)

    def _admitted(self, seq: Sequence, arrived: float) -> worker.Admitted:
        return worker.Admitted(
            cached_tokens=seq.num_cached,
            admit_wait_s=self._began(seq) - arrived,
            transport=TRANSPORT,
        )

    def _prefilled(self, seq: Sequence, arrived: float) -> worker.Prefilled:
        began = self._began(seq)
        prefill_s = self._now() - began
        self._meter.prefilled(began - arrived, prefill_s, seq.request.traceparent)
        return worker.Prefilled(prefill_s=prefill_s)

    def _began(self, seq: Sequence) -> float:
        assert seq.admitted_at is not None, f"{seq} has an update and was never in a step"
        return seq.admitted_at

    def _now(self) -> float:
        return self._engine.clock.now()
